"""Scenes to words and words to constraints.

`caption` words a scene in one of several ways and says only what the medium can show; `canonical`
is the one complete wording; `parse_caption` reads any of them, and what a person might type.
Knows nothing of pixels, samples or ids.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

from polyglyph.data.shapes.claims import Claim, Constraints
from polyglyph.data.shapes.scene import COLORS, OBSERVABLE, SHAPES, SIZES, Scene, Thing
from polyglyph.errors import InputError

PLACES: dict[tuple[int, int], str] = {
    (0, 0): "at the top left",
    (0, 1): "at the top",
    (0, 2): "at the top right",
    (1, 0): "on the left",
    (1, 1): "in the centre",
    (1, 2): "on the right",
    (2, 0): "at the bottom left",
    (2, 1): "at the bottom",
    (2, 2): "at the bottom right",
}
RISING = {"up": "rising", "down": "falling", "level": "level"}


def noun(thing: Thing, size: bool = True) -> str:
    """big red circle"""
    return f"{thing.size} {thing.color} {thing.shape}" if size else f"{thing.color} {thing.shape}"


def a_noun(thing: Thing, size: bool = True) -> str:
    """a big red circle · an orange ring"""
    words = noun(thing, size)
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def motion_words(thing: Thing) -> str:
    """still · moving up · moving up then left · moving up then still · still then moving up"""
    first, second = thing.motion
    if first == second:
        return first if first == "still" else f"moving {first}"
    if first == "still":
        return f"still then moving {second}"
    return f"moving {first} then {second}"


def rise_words(thing: Thing) -> str:
    """Nothing for a level tone; else rising · falling · rising then level ..."""
    first, second = thing.rise
    if first == second:
        return "" if first == "level" else RISING[first]
    return f"{RISING[first]} then {RISING[second]}"


def _moves(thing: Thing, modality: str) -> str:
    words = {"image": "", "video": motion_words(thing), "audio": rise_words(thing)}[modality]
    return f" {words}" if words else ""


def canonical(scene: Scene, modality: str) -> str:
    """The complete wording: everything that the medium shows, in the order of the scene."""
    if "cell" in OBSERVABLE[modality]:
        return ", ".join(f"{a_noun(t)} {PLACES[t.cell]}{_moves(t, modality)}" for t in scene.things)
    return ", then ".join(f"{a_noun(t)}{_moves(t, modality)}" for t in scene.things)


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _listed(scene: Scene, rng: random.Random, modality: str) -> str:
    """Every thing with its place, in any order: complete."""
    things = rng.sample(scene.things, len(scene.things))
    lead = rng.choice(("", "", "there is "))
    if rng.random() < 0.3:
        return _join([f"{PLACES[t.cell]} {a_noun(t)}{_moves(t, modality)}" for t in things])
    return lead + _join([f"{a_noun(t)} {PLACES[t.cell]}{_moves(t, modality)}" for t in things])


def _bare(scene: Scene, rng: random.Random, modality: str) -> str:
    """The things without places, with or without sizes and motions."""
    things = rng.sample(scene.things, len(scene.things))
    size, moves = rng.random() < 0.6, rng.random() < 0.6
    parts = [f"{a_noun(t, size)}{_moves(t, modality) if moves else ''}" for t in things]
    return _join(parts)


def _relation(one: Thing, other: Thing, rng: random.Random, sound: bool) -> str:
    """A word that puts one thing beside the other."""
    (row, column), (other_row, other_column) = one.cell, other.cell
    words = []
    if column != other_column:
        words.append("left of" if column < other_column else "right of")
    if row != other_row and not sound:
        words.append("above" if row < other_row else "below")
    return rng.choice(words) if words else ""


def _related(scene: Scene, rng: random.Random, modality: str) -> str:
    """Two or three things by how they lie to one another; "" where no word fits."""
    things = rng.sample(scene.things, len(scene.things))
    size, moves = rng.random() < 0.75, rng.random() < 0.5
    names = [f"{a_noun(t, size)}{_moves(t, modality) if moves else ''}" for t in things]
    sound = "cell" not in OBSERVABLE[modality]
    first = _relation(things[0], things[1], rng, sound)
    if not first:
        return ""
    text = f"{names[0]} {first} {names[1]}"
    if len(things) == 2:
        return text
    from_first = rng.random() < 0.5
    second = _relation(things[0] if from_first else things[1], things[2], rng, sound)
    if not second:
        return ""
    return f"{text} {'and' if from_first else 'which is'} {second} {names[2]}"


def _in_turn(scene: Scene, rng: random.Random) -> str:
    """What sounds one after the other."""
    names = [f"{a_noun(t)}{_moves(t, 'audio')}" for t in scene.things]
    if len(names) > 1 and rng.random() < 0.3:
        return f"first {names[0]}, " + ", ".join(f"then {name}" for name in names[1:])
    return (", then " if rng.random() < 0.7 else " before ").join(names)


def caption(scene: Scene, rng: random.Random, modality: str) -> str:
    """One of the wordings that ask for this scene in a medium: complete ones and open ones."""
    draw = rng.random()
    if "cell" not in OBSERVABLE[modality]:
        if draw < 0.7 or len(scene.things) == 1:
            return _in_turn(scene, rng)
        return _related(scene, rng, modality) or _in_turn(scene, rng)
    if draw < 0.35:
        return canonical(scene, modality)
    if draw < 0.6:
        return _listed(scene, rng, modality)
    if draw < 0.9 and len(scene.things) > 1:
        return _related(scene, rng, modality) or _listed(scene, rng, modality)
    return _bare(scene, rng, modality)


_NOUNS = {name: name for name in SHAPES} | {f"{name}s": name for name in SHAPES}
_NOUNS |= {"crosses": "cross", "plus": "cross", "disc": "circle", "disk": "circle"}
_ANY = {"thing", "object", "shape"}
_SIZES = {name: name for name in SIZES} | {"large": "big", "little": "small", "tiny": "small"}
_COLOR_WORDS = {name: name for name in COLORS} | {"magenta": "purple", "violet": "purple"}
_ARTICLES = {"a", "an", "one", "the"}
_ROWS = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
_COLUMNS = {"left": 0, "right": 2}
_MIDDLE = {"centre", "center", "middle"}
_BESIDE = {"above": "above", "over": "above", "below": "below", "under": "below"}
_BESIDE |= {"beneath": "below", "before": "before"}
_STEPS = {"up", "down", "left", "right", "still", "upwards", "downwards"}
_GLIDES = {"rising": "up", "falling": "down", "level": "level"}
_GLIDES |= {"rises": "up", "falls": "down"}
_MOVE = {"moving", "moves", "move", "going", "goes"}
_FILLER = {"there", "that", "it", "first", "last", "finally", "standing", "stands", "corner"}
_FILLER |= {"picture", "clip", "video", "image", "sound", "of", "with", "are", "show", "draw"}
_FILLER |= {"is", "which"}


class _Reader:
    """One pass over the words; the state is what the next word may refer to."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = re.findall(r"[a-z]+|[^\sa-z]", text.lower())
        self.at = 0
        self.claims: list[Claim] = []
        self.relations: list[tuple[int, str, int]] = []
        self.subject: int | None = None  # the thing that a clause began with
        self.pending_cell: tuple[int, int] | None = None
        self.pending_relation: tuple[int, str] | None = None
        self.fresh = True  # a clause has just begun: a place is that of the next thing
        self.joined = False  # "and" has just been said

    def peek(self, ahead: int = 0) -> str:
        where = self.at + ahead
        return self.words[where] if where < len(self.words) else ""

    def fail(self, why: str) -> InputError:
        return InputError(f"can't read {self.text!r} as words about shapes: {why}")

    def change(self, **what: object) -> None:
        if not self.claims:
            raise self.fail("it says something before it names a thing")
        self.claims[-1] = replace(self.claims[-1], **what)  # type: ignore[arg-type]

    def read(self) -> Constraints:
        while self.at < len(self.words):
            self.step()
        if self.pending_relation:
            raise self.fail("it ends before the second thing")
        if self.pending_cell and self.claims and self.claims[-1].cell is None:
            self.change(cell=self.pending_cell)
        if not self.claims:
            raise self.fail("it names no thing")
        return Constraints(tuple(self.claims), tuple(self.relations))

    def step(self) -> None:
        word = self.peek()
        if word in (",", ".", ";", ":", "and"):
            self.at += 1
            self.fresh, self.joined = True, word == "and"
        elif word in _BESIDE or (word in _COLUMNS and self.peek(1) == "of"):
            self.relate()
        elif word in ("at", "in", "on", "to"):
            self.at += 1
            self.place()
        elif word in _ARTICLES or word in _SIZES or word in _COLOR_WORDS or word in _NOUNS:
            self.thing()
        elif word in _MOVE or word == "still" or word in _GLIDES:
            self.motion()
        elif word == "then":
            self.then()
        elif word in _FILLER:
            self.at += 1
        else:
            raise self.fail(f"it says {word!r}")

    def thing(self) -> None:
        while self.peek() in _ARTICLES:
            self.at += 1
        what: dict[str, Any] = {}
        while True:
            word = self.peek()
            if word in _SIZES:
                what["size"] = _SIZES[word]
            elif word in _COLOR_WORDS:
                what["color"] = _COLOR_WORDS[word]
            else:
                break
            self.at += 1
        if word in _NOUNS:
            what["shape"] = _NOUNS[word]
        elif word not in _ANY:
            raise self.fail(f"a shape should stand where {word!r} does")
        self.at += 1
        self.claims.append(replace(Claim(cell=self.pending_cell), **what))
        self.pending_cell = None
        index = len(self.claims) - 1
        if self.pending_relation:
            subject, relation = self.pending_relation
            self.relations.append((subject, relation, index))
            self.pending_relation = None
        else:
            self.subject = index
        self.fresh = self.joined = False

    def relate(self) -> None:
        word = self.peek()
        if not self.claims:
            raise self.fail("it says where before it names a thing")
        self.at += 2 if word in _COLUMNS else 1
        last = len(self.claims) - 1
        subject = self.subject if self.joined and self.subject is not None else last
        self.pending_relation = (subject, _BESIDE.get(word, word))
        self.joined = False

    def place(self) -> None:
        row = column = None
        seen = False
        while True:
            word = self.peek()
            if word in _COLUMNS and self.peek(1) == "of":
                return self.relate()
            if word in _ROWS and row is None:
                row = _ROWS[word]
            elif word in _COLUMNS and column is None:
                column = _COLUMNS[word]
            elif word not in _MIDDLE and word != "the":
                break
            seen = seen or word != "the"
            self.at += 1
        if not seen:
            raise self.fail(f"a place should stand where {word!r} does")
        cell = (1 if row is None else row, 1 if column is None else column)
        if self.fresh:
            self.pending_cell = cell
        else:
            self.change(cell=cell)
        return None

    def one_motion(self) -> tuple[str, str]:
        """("motion" | "rise", value)"""
        while self.peek() in _MOVE:
            self.at += 1
        word = self.peek()
        self.at += 1
        if word in _GLIDES:
            return "rise", _GLIDES[word]
        if word not in _STEPS:
            raise self.fail(f"a direction should stand where {word!r} does")
        return "motion", word.removesuffix("wards")

    def motion(self) -> None:
        kind, first = self.one_motion()
        second = first
        follows = self.peek() == "then" and (
            self.peek(1) in _STEPS or self.peek(1) in _MOVE or self.peek(1) in _GLIDES
        )
        if follows:
            self.at += 1
            other, second = self.one_motion()
            if other != kind:
                raise self.fail("one thing both moves and glides")
        self.change(**{kind: (first, second)})

    def then(self) -> None:
        self.at += 1
        if not self.claims:
            raise self.fail("nothing comes before 'then'")
        self.pending_relation = (len(self.claims) - 1, "before")
        self.fresh, self.joined = False, False


def parse_caption(text: str) -> Constraints:
    """What a text says of a scene. InputError when it can't be read as words of this world."""
    return _Reader(text).read()
