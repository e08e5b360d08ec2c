"""Reads a scene back from a sound by analysis-by-synthesis: no learned model.

For one, two and three things the sound is cut into slots and each slot's spectrogram, on a
logarithmic scale of frequency, is compared with that of every tone; the number whose best tones
lie nearest wins. Knows nothing of captions or ids.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from polyglyph.data.shapes.check import Observed
from polyglyph.data.shapes.scene import COLORS, MOTIONS, RISES, SHAPES, SIZES, rise_of
from polyglyph.data.shapes.sound import N_SAMPLES, SAMPLE_RATE, slots, tone

_WINDOW, _HOP = 1024, 512
_BANDS = 80
_LOW_HZ, _HIGH_HZ = 75.0, 3500.0
_FLOOR = 0.02  # of the spectrum; what is fainter counts as silence
_SILENT = 0.004  # root mean square of a whole sound that holds nothing


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """Triangles on a logarithmic scale, (513, bands) float32, each of unit sum."""
    hz = np.arange(_WINDOW // 2 + 1) * SAMPLE_RATE / _WINDOW
    edges = np.geomspace(_LOW_HZ, _HIGH_HZ, _BANDS + 2)
    width = np.maximum(np.diff(edges), SAMPLE_RATE / _WINDOW)
    rising = 1 - (edges[1:-1] - hz[:, None]) / width[:-1]
    falling = 1 - (hz[:, None] - edges[1:-1]) / width[1:]
    weights = np.clip(np.minimum(rising, falling), 0, None)
    return (weights / weights.sum(0)).astype(np.float32)


def _features(waves: np.ndarray) -> np.ndarray:
    """Spectrograms (N, frames * bands) of waves (N, S), compressed by a logarithm."""
    pad = _WINDOW // 2
    padded = np.pad(waves, ((0, 0), (pad, pad)))
    cuts = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, ::_HOP]
    spectrum = np.abs(np.fft.rfft(cuts * np.hanning(_WINDOW).astype(np.float32), axis=-1))
    bands = (spectrum / 64).astype(np.float32) @ _filters()
    return np.log(bands + _FLOOR).reshape(len(waves), -1)


@lru_cache(maxsize=3)
def _templates(n: int) -> tuple[np.ndarray, np.ndarray, list[Observed]]:
    """Features (K, P) of the tones that a sound of n things may hold, their squares, names."""
    length = min(stop - start for start, stop in slots(n))
    if n == 1:
        rises = sorted({rise_of((a, b)) for a in MOTIONS for b in MOTIONS})
    else:
        rises = [(rise, rise) for rise in RISES]
    names = [
        Observed(shape, color, size, rise=rise)
        for shape in SHAPES
        for color in COLORS
        for size in SIZES
        for rise in rises
    ]
    bank = np.concatenate(
        [
            _features(tone(t.shape, t.color, t.size, t.rise, length)[None])
            for t in names
            if t.rise is not None
        ]
    )
    return bank, (bank**2).sum(1), names


def _fit_length(samples: np.ndarray) -> np.ndarray:
    """One second of mono, whatever came: channels averaged, cut or filled with silence."""
    wave = np.nan_to_num(np.asarray(samples, np.float32))
    if wave.ndim == 2:
        wave = wave.mean(0)
    assert wave.ndim == 1, f"samples (S,) or (C, S) expected, not {wave.shape}"
    return np.pad(wave, (0, max(0, N_SAMPLES - len(wave))))[:N_SAMPLES]


def read_sound(samples: np.ndarray) -> list[Observed]:
    """The things in a sound (S,) or (C, S) at 16 kHz, in order; of silence, none."""
    wave = _fit_length(samples)
    if np.sqrt(np.mean(wave**2)) < _SILENT:
        return []
    best: list[Observed] = []
    best_distance = np.inf
    for n in (1, 2, 3):
        length = min(stop - start for start, stop in slots(n))
        parts = np.stack([wave[start : start + length] for start, _ in slots(n)])
        bank, squares, names = _templates(n)
        seen = _features(parts)
        distances = squares - 2 * seen @ bank.T + (seen**2).sum(1)[:, None]
        total = float(distances.min(1).sum()) / seen.size
        if total < best_distance:
            best_distance = total
            best = [names[i] for i in distances.argmin(1)]
    return best
