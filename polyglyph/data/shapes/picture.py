"""A scene as a picture: 72x72 RGB, dark ground, anti-aliased shapes; masks and depth as well.

Holds the colours and the outlines. Knows nothing of captions or ids.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from polyglyph.data.shapes.scene import DIAMETER, SIDE, Scene, Thing, path

BACKGROUND = (24, 24, 32)
RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 35),
    "orange": (255, 140, 0),
    "yellow": (250, 240, 70),
    "green": (30, 160, 55),
    "cyan": (60, 220, 235),
    "blue": (45, 75, 240),
    "purple": (190, 60, 210),
    "white": (245, 245, 245),
}
DEPTH_GREY = {"small": 110, "big": 230}  # a small thing stands farther away
SPRITE = 24  # pixels: the biggest shape at any sub-pixel offset
_FINE = 8  # sub-pixels a side


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether points, in units of the radius around the centre, lie inside a shape."""
    if shape == "circle":
        return y**2 + x**2 <= 1.0
    if shape == "square":
        return np.maximum(abs(y), abs(x)) <= 1.0
    if shape == "triangle":
        return (abs(y) <= 1.0) & (abs(x) <= (y + 1.0) / 2)
    if shape == "cross":
        arm = np.minimum(abs(y), abs(x)) <= 0.34
        return arm & (np.maximum(abs(y), abs(x)) <= 1.0)
    assert shape == "ring", shape
    distance = y**2 + x**2
    return (distance <= 1.0) & (distance >= 0.55**2)


@lru_cache(maxsize=4096)
def sprite(shape: str, diameter: float, dy: float = 0.0, dx: float = 0.0) -> np.ndarray:
    """Coverage (24, 24) float32 in [0, 1] of a shape centred at (12 + dy, 12 + dx)."""
    fine = (np.arange(SPRITE * _FINE) + 0.5) / _FINE - SPRITE / 2
    y, x = (fine - dy)[:, None] * (2 / diameter), (fine - dx)[None, :] * (2 / diameter)
    cover = _inside(shape, y + 0 * x, x + 0 * y).astype(np.float32)
    cover = cover.reshape(SPRITE, _FINE, SPRITE, _FINE).mean((1, 3))
    cover.flags.writeable = False
    return cover


def place(shape: str, diameter: float, y: float, x: float) -> tuple[slice, slice, np.ndarray]:
    """Rows, columns and coverage of a shape centred at (y, x) pixels, cut to the picture."""
    top, left = int(y), int(x)
    cover = sprite(shape, diameter, y - top, x - left)
    top, left = top - SPRITE // 2, left - SPRITE // 2
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + SPRITE, SIDE), min(left + SPRITE, SIDE)
    return slice(y0, y1), slice(x0, x1), cover[y0 - top : y1 - top, x0 - left : x1 - left]


@lru_cache(maxsize=1 << 14)
def _patch(
    shape: str, diameter: int, y: float, x: float, color: tuple[int, int, int]
) -> tuple[slice, slice, np.ndarray]:
    """Rows, columns and what to add to the ground there: (h, w, 3) int16."""
    rows, columns, cover = place(shape, diameter, y, x)
    lift = np.array(color, np.float32) - np.array(BACKGROUND, np.float32)
    return rows, columns, np.rint(cover[..., None] * lift).astype(np.int16)


def draw(scene: Scene, frame: int = 0) -> np.ndarray:
    """The scene at a frame, (72, 72, 3) uint8."""
    canvas = np.empty((SIDE, SIDE, 3), np.int16)
    canvas[:] = BACKGROUND
    for thing in scene.things:
        y, x = path(thing.cell, thing.motion)[frame]
        rows, columns, lift = _patch(thing.shape, thing.diameter, y, x, RGB[thing.color])
        canvas[rows, columns] += lift
    return canvas.astype(np.uint8)


def picture(scene: Scene) -> np.ndarray:
    """The scene as a picture, (72, 72, 3) uint8; things stand where the clip begins."""
    return draw(scene)


def _flat(things: list[tuple[Thing, int]]) -> np.ndarray:
    canvas = np.zeros((SIDE, SIDE), np.float32)
    for thing, grey in things:
        y, x = path(thing.cell, thing.motion)[0]
        rows, columns, cover = place(thing.shape, DIAMETER[thing.size], y, x)
        canvas[rows, columns] += grey * cover
    return np.repeat(np.rint(canvas).astype(np.uint8)[..., None], 3, axis=2)


def mask(scene: Scene, index: int) -> np.ndarray:
    """The mask of one thing, white on black, (72, 72, 3) uint8."""
    return _flat([(scene.things[index], 255)])


def depth(scene: Scene) -> np.ndarray:
    """How near each thing is (small is far), grey on black, (72, 72, 3) uint8."""
    return _flat([(thing, DEPTH_GREY[thing.size]) for thing in scene.things])
