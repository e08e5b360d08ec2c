"""Reads a scene back from pixels by analysis-by-synthesis: no learned model.

Each cell's window is compared with every outline at every size, a pixel or two aside; the colour is
the one that fits best in the least-squares sense. A clip adds the paths. Sounds are read in
`check_sound`. Knows nothing of captions or ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from polyglyph.data.shapes.picture import BACKGROUND, RGB, SPRITE, place, sprite
from polyglyph.data.shapes.scene import (
    CELLS,
    CENTRES,
    COLORS,
    DIAMETER,
    MOTIONS,
    N_FIRST,
    N_FRAMES,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    path,
    rise_of,
)

UNKNOWN = "unknown"  # the shape of something that is none of ours
_REACH = 11  # pixels from a cell's centre to its window's edge
_SLACK = 2  # pixels that a thing may stand off its cell's centre
_CORE = 8  # pixels from a cell's centre that the blurred edge of a neighbour does not reach
_ENERGY = 500_000.0  # squared pixel values there; the faintest thing has 2.1 million
_EXPLAINED = 0.5  # share of a window's energy that a shape must explain
_PALEST, _BRIGHTEST = 0.5, 1.2  # share of its lift above the ground that a colour may keep
_PALETTE = np.array([RGB[color] for color in COLORS], np.float32)
_GROUND = np.array(BACKGROUND, np.float32)


@dataclass(frozen=True)
class Observed:
    """One thing as read back; what the medium does not carry is None. `fit` is in [0, 1]."""

    shape: str
    color: str
    size: str
    cell: tuple[int, int] | None = None
    motion: tuple[str, str] | None = None
    rise: tuple[str, str] | None = None
    fit: float = 1.0


def observe(scene: Scene, modality: str) -> list[Observed]:
    """What a perfect reading of the scene in a medium gives."""
    rows = []
    for thing in scene.things:
        known = {"image": ("cell",), "video": ("cell", "motion", "rise"), "audio": ("rise",)}
        carried = {name: getattr(thing, name) for name in known[modality]}
        rows.append(Observed(thing.shape, thing.color, thing.size, **carried))
    return rows


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """Outlines (K, 484), their energies (K,), and which shape and size each one is."""
    low, high = SPRITE // 2 - _REACH, SPRITE // 2 + _REACH
    rows, names = [], []
    offsets = range(-_SLACK, _SLACK + 1)
    for shape in SHAPES:
        for size in SIZES:
            for dy in offsets:
                for dx in offsets:
                    cover = sprite(shape, DIAMETER[size], dy, dx)[low:high, low:high]
                    rows.append(cover.ravel())
                    names.append((shape, size))
    bank = np.stack(rows).astype(np.float32)
    return bank, (bank**2).sum(1), names


@lru_cache(maxsize=1)
def _core() -> np.ndarray:
    """Which of a window's pixels lie near its cell's centre, bool (484,)."""
    near = abs(np.arange(-_REACH, _REACH) + 0.5) < _CORE
    return (near[:, None] & near[None, :]).ravel()


def _canvas(pixels: np.ndarray) -> np.ndarray:
    """A picture or frames as floats above the ground, (..., 72, 72, 3)."""
    pixels = np.asarray(pixels)
    assert pixels.ndim >= 3 and pixels.shape[-1] == 3, f"RGB expected, not {pixels.shape}"
    if pixels.shape[-3:-1] != (SIDE, SIDE):
        from PIL import Image

        flat = pixels.reshape(-1, *pixels.shape[-3:]).astype(np.uint8)
        small = [
            np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BOX)) for p in flat
        ]
        pixels = np.stack(small).reshape(*pixels.shape[:-3], SIDE, SIDE, 3)
    return np.nan_to_num(pixels.astype(np.float32)) - _GROUND


def nearest_color(rgb: np.ndarray) -> str:
    """The world's colour nearest to an RGB value, however much paler it came out."""
    lift = np.asarray(rgb, np.float32) - _GROUND
    lifts = _PALETTE - _GROUND
    scale = np.clip((lifts @ lift) / (lifts**2).sum(1), _PALEST, _BRIGHTEST)
    return COLORS[int(((scale[:, None] * lifts - lift) ** 2).sum(1).argmin())]


def _read_cells(lifted: np.ndarray) -> list[tuple[Observed, np.ndarray]]:
    """The things in a lifted picture, from left to right, each with its lift (3,)."""
    bank, energies, names = _templates()
    windows = np.stack(
        [
            lifted[
                CENTRES[row] - _REACH : CENTRES[row] + _REACH,
                CENTRES[column] - _REACH : CENTRES[column] + _REACH,
            ].reshape(-1, 3)
            for row, column in CELLS
        ],
        axis=1,
    )  # (484, 9, 3)
    squares = (windows**2).sum(2)
    total, core = squares.sum(0), squares[_core()].sum(0)
    fits = (bank @ windows.reshape(len(windows), -1)).reshape(len(bank), len(CELLS), 3)
    gains = (fits**2).sum(2) / energies[:, None]
    found = []
    for index, cell in enumerate(CELLS):
        if core[index] < _ENERGY:
            continue
        best = int(gains[:, index].argmax())
        explained = float(gains[best, index] / total[index])
        lift = fits[best, index] / energies[best]
        shape, size = names[best]
        if explained < _EXPLAINED:
            shape = UNKNOWN
        color = nearest_color(_GROUND + lift)
        found.append((Observed(shape, color, size, cell, fit=explained), lift))
    found.sort(key=lambda pair: (pair[0].cell or (0, 0))[::-1])
    return found


def read_picture(pixels: np.ndarray) -> list[Observed]:
    """The things in a picture (H, W, 3) uint8, from left to right and then from top to bottom.

    Something that is none of our shapes is reported with the shape `unknown`.
    """
    return [thing for thing, _ in _read_cells(_canvas(pixels))]


def _gain(likeness: np.ndarray, seen: Observed, motion: tuple[str, str], steps: range) -> float:
    """How much a thing's place on a path looks like the thing, over some frames."""
    assert seen.cell is not None
    total = 0.0
    for frame in steps:
        y, x = path(seen.cell, motion)[frame]
        rows, columns, cover = place(seen.shape, DIAMETER[seen.size], y, x)
        total += float((cover * likeness[frame, rows, columns]).sum())
    return total


def _inside(cell: tuple[int, int], motion: tuple[str, str], frame: int) -> bool:
    y, x = path(cell, motion)[frame]
    return min(y, x) >= 5 and max(y, x) <= SIDE - 5


def _read_motion(
    lifted: np.ndarray, seen: Observed, lift: np.ndarray, may_change: bool
) -> tuple[str, str]:
    """The path on which the clip's pixels are most like the thing: 1 where they have its colour,
    0 where they are ground, less elsewhere."""
    apart = ((lifted - lift) ** 2).sum(-1) / float(lift @ lift)
    likeness = np.maximum(1 - apart, -1)
    assert seen.cell is not None
    first_gain, last = {}, N_FRAMES - 1
    for first in MOTIONS:
        if _inside(seen.cell, (first, first), N_FIRST):
            steps = range(1, N_FIRST + 1)
            first_gain[first] = _gain(likeness, seen, (first, first), steps)
    best, best_gain = ("still", "still"), -np.inf
    for first, gain in first_gain.items():
        for second in MOTIONS if may_change else (first,):
            motion = (first, second)
            if not _inside(seen.cell, motion, last):
                continue
            steps = range(N_FIRST + 1, N_FRAMES)
            total = gain + _gain(likeness, seen, motion, steps)
            if total > best_gain:
                best, best_gain = motion, total
    return best


def _along(
    lifted: np.ndarray, seen: Observed, motion: tuple[str, str]
) -> tuple[str, str, str, float]:
    """Shape, size, colour and fit from all frames along a path, which outvotes a bad frame."""
    assert seen.cell is not None
    points = path(seen.cell, motion)
    best: tuple[float, str, str, np.ndarray] | None = None
    for shape in SHAPES:
        for size in SIZES:
            fit, energy = np.zeros(3), 0.0
            for frame, (y, x) in enumerate(points):
                rows, columns, cover = place(shape, DIAMETER[size], y, x)
                window = lifted[frame, rows, columns]
                fit += cover.reshape(-1) @ window.reshape(-1, 3)
                energy += float((cover * cover).sum())
            gain = float(fit @ fit) / energy
            if best is None or gain > best[0]:
                best = (gain, shape, size, fit / energy)
    assert best is not None
    return best[1], best[2], nearest_color(_GROUND + best[3]), seen.fit


def read_clip(frames: np.ndarray) -> list[Observed]:
    """The things in a clip (8, H, W, 3) uint8 with their motions, ordered as at frame 0.

    Fewer frames than eight are filled with the last one, more are left out.
    """
    frames = np.asarray(frames)
    assert frames.ndim == 4 and len(frames), f"frames expected, not {frames.shape}"
    at = np.minimum(np.arange(N_FRAMES), len(frames) - 1)
    lifted = _canvas(frames[at])
    cells = _read_cells(lifted[0])
    found = []
    for seen, lift in cells:
        if seen.shape == UNKNOWN:
            found.append(seen)
            continue
        motion = _read_motion(lifted, seen, lift, may_change=len(cells) == 1)
        shape, size, color, fit = _along(lifted, seen, motion)
        found.append(Observed(shape, color, size, seen.cell, motion, rise_of(motion), fit))
    return found
