"""Questions about a picture or clip with their one right answer, and phrases that point at a thing.

Knows nothing of pixels, samples or ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from polyglyph.data.shapes.captions import PLACES, a_noun, motion_words, noun
from polyglyph.data.shapes.scene import CELLS, COLORS, OBSERVABLE, SHAPES, SIZES, Scene, Thing

NUMBERS = ("none", "one", "two", "three")


@dataclass(frozen=True)
class Question:
    """A question, its answer in a word or a few, and its family."""

    text: str
    answer: str
    family: str


def phrase(scene: Scene, index: int, rng: random.Random) -> str:
    """Words that fit one thing of the scene only: the ring · the blue thing · the red circle."""
    thing = scene.things[index]
    choices = [f"the {noun(thing, size=False)}", f"the {noun(thing)}"]
    if sum(t.shape == thing.shape for t in scene.things) == 1:
        choices.append(f"the {thing.shape}")
    if sum(t.color == thing.color for t in scene.things) == 1:
        choices.append(f"the {thing.color} thing")
    if len(scene.things) > 1 and sum(t.size == thing.size for t in scene.things) == 1:
        choices.append(f"the {thing.size} thing")
    return rng.choice(choices)


def _pick(scene: Scene, rng: random.Random) -> Thing:
    return rng.choice(scene.things)


def _count(scene: Scene, rng: random.Random) -> Question:
    thing = _pick(scene, rng)
    draw = rng.random()
    if draw < 0.3:
        return Question("how many things are there?", NUMBERS[len(scene.things)], "count")
    word = rng.choice((thing.color, thing.size, thing.shape))
    if draw > 0.8:
        word = rng.choice(COLORS + SIZES + SHAPES)
    n = sum(word in (t.color, t.size, t.shape) for t in scene.things)
    plural = {"cross": "crosses"}.get(word, f"{word}s") if word in SHAPES else f"{word} things"
    return Question(f"how many {plural} are there?", NUMBERS[n], "count")


def _alone(scene: Scene, rng: random.Random, attribute: str) -> Thing | None:
    """A thing that is the only one of its shape, or colour."""
    values = [getattr(t, attribute) for t in scene.things]
    alone = [t for t in scene.things if values.count(getattr(t, attribute)) == 1]
    return rng.choice(alone) if alone else None


def _color(scene: Scene, rng: random.Random) -> Question | None:
    thing = _alone(scene, rng, "shape")
    if thing is None:
        return None
    return Question(f"what colour is the {thing.shape}?", thing.color, "color")


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    thing = _alone(scene, rng, "color")
    if thing is None:
        return None
    return Question(f"what shape is the {thing.color} thing?", thing.shape, "shape")


def _size(scene: Scene, rng: random.Random) -> Question:
    thing = _pick(scene, rng)
    return Question(f"how big is the {noun(thing, size=False)}?", thing.size, "size")


def _where(scene: Scene, rng: random.Random) -> Question:
    thing = _pick(scene, rng)
    return Question(f"where is the {noun(thing, size=False)}?", PLACES[thing.cell], "where")


def _what(scene: Scene, rng: random.Random) -> Question:
    by_cell = {t.cell: t for t in scene.things}
    cell = rng.choice(list(by_cell)) if rng.random() < 0.7 else rng.choice(CELLS)
    answer = a_noun(by_cell[cell]) if cell in by_cell else "nothing"
    return Question(f"what is {PLACES[cell]}?", answer, "what")


def _there(scene: Scene, rng: random.Random) -> Question:
    pairs = {(t.color, t.shape) for t in scene.things}
    color, shape = rng.choice(sorted(pairs))
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            color = rng.choice(COLORS)
        else:
            shape = rng.choice(SHAPES)
    article = "an" if color[0] in "aeiou" else "a"
    answer = "yes" if (color, shape) in pairs else "no"
    return Question(f"is there {article} {color} {shape}?", answer, "there")


def _beside(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.things) < 2:
        return None
    one, other = rng.sample(scene.things, 2)
    word = rng.choice(("left of", "right of", "above", "below"))
    axis = 1 if word in ("left of", "right of") else 0
    apart = one.cell[axis] - other.cell[axis]
    holds = apart < 0 if word in ("left of", "above") else apart > 0
    text = f"is the {noun(one, size=False)} {word} the {noun(other, size=False)}?"
    return Question(text, "yes" if holds else "no", "beside")


def _motion(scene: Scene, rng: random.Random) -> Question:
    thing = _pick(scene, rng)
    answer = motion_words(thing).removeprefix("moving ")
    return Question(f"how does the {noun(thing, size=False)} move?", answer, "motion")


_Maker = Callable[[Scene, random.Random], Question | None]
_FAMILIES: dict[str, _Maker] = {
    "count": _count,
    "color": _color,
    "shape": _shape,
    "size": _size,
    "where": _where,
    "what": _what,
    "there": _there,
    "beside": _beside,
    "motion": _motion,
}
FAMILIES = tuple(_FAMILIES)


def question(scene: Scene, rng: random.Random, modality: str = "image") -> Question:
    """One question that the medium (image or video) answers; `motion` is asked of clips only."""
    names = [name for name in FAMILIES if name != "motion" or name in OBSERVABLE[modality]]
    while True:
        asked = _FAMILIES[rng.choice(names)](scene, rng)
        if asked is not None:
            return asked
