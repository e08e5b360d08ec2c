"""An original beside its reconstruction, as one picture: pixels, frames, or spectrograms.

Knows media only; no codec, no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyglyph.eval.page import spectrogram
from polyglyph.media import mix_channels, modality_of, resample

if TYPE_CHECKING:
    import PIL.Image

_MOST_SIDE = 1024  # pixels that one medium takes at most; larger ones are scaled down
_N_FRAMES = 6  # of a clip, spread evenly
_GAP, _TITLE = 6, 16  # pixels
_WHITE = (255, 255, 255)


def side_by_side(original: Any, result: Any) -> PIL.Image.Image | None:
    """Pictures left and right, clips as two rows of frames, sounds as two spectrograms; None for
    media that nobody looks at (texts, regions, actions)."""
    painter = _PAINTERS.get(modality_of(original))
    return painter(original, result) if painter is not None else None


def _pictures(a: Any, b: Any) -> PIL.Image.Image:
    return _laid_out([[_small(a.array), _small(b.array)]], ["original", "reconstruction"])


def _clips(a: Any, b: Any) -> PIL.Image.Image:
    n = min(a.n_frames, b.n_frames)
    at = np.unique(np.linspace(0, n - 1, min(n, _N_FRAMES)).round().astype(int))
    most = _MOST_SIDE // 4
    rows = [[_small(clip.frames[i, : a.height, : a.width], most) for i in at] for clip in (a, b)]
    return _laid_out(rows, [f"above: original, below: reconstruction; {n} frames"])


def spectrograms(a: Any, b: Any, note: str = "") -> PIL.Image.Image:
    """Two sounds one above the other; `note` ends the title.

    On the scale of the higher rate: what a codec of a lower one leaves out shows."""
    rate = max(a.sample_rate, b.sample_rate)
    rows = []
    for sound in (a, b):
        mono = resample(mix_channels(sound.samples, 1), sound.sample_rate, rate)[0]
        rows.append([np.kron(spectrogram(mono, rate), np.ones((2, 3, 1), np.uint8))])
    return _laid_out(rows, [f"above: original, below: reconstruction; 150 Hz to 6 kHz{note}"])


def _small(pixels: np.ndarray, most: int = _MOST_SIDE) -> np.ndarray:
    """uint8 (H, W, 3), its longer side at most `most` pixels."""
    import PIL.Image

    scale = most / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.array(PIL.Image.fromarray(np.ascontiguousarray(pixels)).resize(size))


def _laid_out(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> PIL.Image.Image:
    """A grid of pictures under its titles, one over each column or one over all."""
    import PIL.Image
    import PIL.ImageDraw

    n = len(rows[0])
    widths = [max(row[i].shape[1] for row in rows) for i in range(n)]
    heights = [max(cell.shape[0] for cell in row) for row in rows]
    size = (sum(widths) + _GAP * (n + 1), sum(heights) + _GAP * len(rows) + _TITLE + _GAP)
    sheet = PIL.Image.new("RGB", size, _WHITE)
    pen, top = PIL.ImageDraw.Draw(sheet), _TITLE + _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for cell, width in zip(row, widths, strict=True):
            sheet.paste(PIL.Image.fromarray(cell), (left, top))
            left += width + _GAP
        top += height + _GAP
    for i, title in enumerate(titles):
        pen.text((_GAP + sum(widths[:i]) + _GAP * i, 3), title, fill=(60, 60, 60))
    return sheet


_PAINTERS: dict[str, Callable[[Any, Any], Any]] = {
    "image": _pictures,
    "video": _clips,
    "audio": spectrograms,
}
