"""A pusher: actions that move one thing to a goal, and the clip of it.

The pusher is a small grey block behind the thing; what it does in a frame moves the thing by that
much. Knows nothing of ids.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from polyglyph.data.shapes.captions import PLACES, noun
from polyglyph.data.shapes.picture import RGB, draw, place
from polyglyph.data.shapes.scene import CELLS, CENTRES, N_FRAMES, SIDE, Scene, Thing

REACH = 4.0  # pixels that an action of 1 moves a thing in one frame
BLOCK = 6  # pixels across
GREY = (120, 120, 120)
TOLERANCE = 3.0  # pixels from the goal that still count as there


@dataclass(frozen=True)
class Push:
    """A thing, its goal, the instruction, and the actions (8, 2) float32 (down, right) in [-1, 1];
    action t leads from frame t to frame t + 1, the last one is zero."""

    thing: Thing
    goal: tuple[int, int]
    instruction: str
    actions: np.ndarray


def _centre(cell: tuple[int, int]) -> np.ndarray:
    return np.array([CENTRES[cell[0]], CENTRES[cell[1]]], np.float32)


def push(scene: Scene, rng: random.Random) -> Push:
    """The first thing of a scene, pushed to a neighbouring cell in seven equal steps."""
    thing = scene.at_rest().things[0]
    goals = [
        cell
        for cell in CELLS
        if max(abs(cell[0] - thing.cell[0]), abs(cell[1] - thing.cell[1])) == 1
    ]
    goal = rng.choice(goals)
    step = (_centre(goal) - _centre(thing.cell)) / (N_FRAMES - 1)
    actions = np.zeros((N_FRAMES, 2), np.float32)
    actions[:-1] = step / REACH
    where = PLACES[goal].split(" ", 1)[1]
    return Push(thing, goal, f"push the {noun(thing, size=False)} to {where}", actions)


def replay(thing: Thing, actions: np.ndarray) -> np.ndarray:
    """Where the thing is at every frame, (T, 2) pixels (y, x), held inside the picture."""
    moves = np.clip(np.nan_to_num(np.asarray(actions, np.float32)), -1, 1) * REACH
    at = [_centre(thing.cell)]
    low, high = thing.diameter / 2, SIDE - thing.diameter / 2
    for move in moves[:-1]:
        at.append(np.clip(at[-1] + move, low, high))
    return np.stack(at)


def reaches(push: Push, actions: np.ndarray) -> bool:
    """Whether the actions leave the thing within 3 pixels of its goal."""
    end = replay(push.thing, actions)[-1]
    return bool(np.abs(end - _centre(push.goal)).max() <= TOLERANCE)


def film(push: Push) -> np.ndarray:
    """The clip of a push, (8, 72, 72, 3) uint8: the thing, and the block behind it."""
    where = replay(push.thing, push.actions)
    ground = draw(Scene(())).astype(np.float32)
    frames = []
    for at, action in zip(where, push.actions[[*range(N_FRAMES - 1), -2]], strict=True):
        canvas = ground.copy()
        away = np.sign(action) * (push.thing.diameter + BLOCK) / 2
        y, x = np.round(np.clip(at - away, 0, SIDE - 1) * 2) / 2
        _paint(canvas, "square", BLOCK, float(y), float(x), GREY)
        y, x = np.round(at * 2) / 2
        color = RGB[push.thing.color]
        _paint(canvas, push.thing.shape, push.thing.diameter, float(y), float(x), color)
        frames.append(np.rint(canvas).astype(np.uint8))
    return np.stack(frames)


def _paint(
    canvas: np.ndarray, shape: str, diameter: int, y: float, x: float, color: tuple[int, int, int]
) -> None:
    rows, columns, cover = place(shape, diameter, y, x)
    window = canvas[rows, columns]
    window += cover[..., None] * (np.array(color, np.float32) - window)
