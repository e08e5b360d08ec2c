"""Edits: an instruction, and the scene after it. Knows nothing of pixels, samples or ids."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from polyglyph.data.shapes.captions import PLACES, a_noun, noun
from polyglyph.data.shapes.scene import (
    CELLS,
    COLORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)


@dataclass(frozen=True)
class Edit:
    """Asked of a picture: `after` is the scene at rest once the instruction is done."""

    instruction: str
    after: Scene
    kind: str


def _free(scene: Scene) -> list[tuple[int, int]]:
    taken = {thing.cell for thing in scene.things}
    return [cell for cell in CELLS if cell not in taken]


def _recolor(scene: Scene, i: int, rng: random.Random) -> Edit | None:
    thing = scene.things[i]
    taken = {(t.color, t.shape) for t in scene.things} | HELD_OUT
    colors = [color for color in COLORS if (color, thing.shape) not in taken]
    color = rng.choice(colors)
    text = f"make the {noun(thing, size=False)} {color}"
    return Edit(text, scene.with_thing(i, color=color), "recolor")


def _resize(scene: Scene, i: int, rng: random.Random) -> Edit | None:
    thing = scene.things[i]
    size = SIZES[1 - SIZES.index(thing.size)]
    text = f"make the {noun(thing, size=False)} {size}"
    return Edit(text, scene.with_thing(i, size=size), "resize")


def _move(scene: Scene, i: int, rng: random.Random) -> Edit | None:
    cell = rng.choice(_free(scene))
    place = PLACES[cell].split(" ", 1)[1]
    text = f"move the {noun(scene.things[i], size=False)} to {place}"
    return Edit(text, scene.with_thing(i, cell=cell), "move")


def _remove(scene: Scene, i: int, rng: random.Random) -> Edit | None:
    if len(scene.things) == 1:
        return None
    rest = scene.things[:i] + scene.things[i + 1 :]
    return Edit(f"remove the {noun(scene.things[i], size=False)}", Scene(rest), "remove")


def _add(scene: Scene, i: int, rng: random.Random) -> Edit | None:
    if len(scene.things) == 3:
        return None
    taken = {(t.color, t.shape) for t in scene.things} | HELD_OUT
    kinds = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in taken]
    color, shape = rng.choice(kinds)
    thing = Thing(shape, color, rng.choice(SIZES), rng.choice(_free(scene)))
    text = f"add {a_noun(thing)} {PLACES[thing.cell]}"
    return Edit(text, Scene((*scene.things, thing)), "add")


_KINDS: dict[str, Callable[[Scene, int, random.Random], Edit | None]] = {
    "recolor": _recolor,
    "resize": _resize,
    "move": _move,
    "remove": _remove,
    "add": _add,
}
KINDS = tuple(_KINDS)


def edit(scene: Scene, rng: random.Random) -> Edit:
    """One edit of the scene's picture; it makes no held-out pair and no twin."""
    rest = scene.at_rest()
    while True:
        made = _KINDS[rng.choice(KINDS)](rest, rng.randrange(len(rest.things)), rng)
        if made is not None:
            return made
