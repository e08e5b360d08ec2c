"""Regions of a scene: boxes, points and times. Knows nothing of ids."""

from __future__ import annotations

import numpy as np

from polyglyph.data.shapes.scene import SIDE, Scene, box, path
from polyglyph.data.shapes.sound import N_SAMPLES, slots

ENOUGH = 0.5  # intersection over union from which a region counts as right


def box_of(scene: Scene, index: int) -> np.ndarray:
    """x0, y0, x1, y1 of a thing in the picture, float32 in [0, 1]."""
    return np.array(box(scene.things[index]), np.float32)


def point_of(scene: Scene, index: int) -> np.ndarray:
    """x, y of a thing's centre in the picture, float32 in [0, 1]."""
    thing = scene.things[index]
    y, x = path(thing.cell, thing.motion)[0]
    return np.array([x / SIDE, y / SIDE], np.float32)


def time_of(scene: Scene, index: int) -> np.ndarray:
    """Start and end of a thing in the sound, float32, as shares of its length."""
    return np.array(slots(len(scene.things))[index], np.float32) / N_SAMPLES


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) or two times (2,), in [0, 1]."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    n = len(one) // 2
    if one.shape != other.shape or n == 0:
        return 0.0
    low, high = np.maximum(one[:n], other[:n]), np.minimum(one[n:], other[n:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    areas = [float(np.prod(np.clip(r[n:] - r[:n], 0, None))) for r in (one, other)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0
