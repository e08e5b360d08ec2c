"""STOI, how much of speech can be understood (Taal, Hendriks, Heusdens, Jensen: An Algorithm for
Intelligibility Prediction of Time-Frequency Weighted Noisy Speech, IEEE TASLP 19(7), 2011).

Correlates the envelopes of 15 third-octave bands in stretches of 384 ms. Our own form of it: no
package of the core has one. Knows samples only.
"""

from __future__ import annotations

import functools

import numpy as np

from polyglyph.errors import InputError
from polyglyph.media import resample

RATE = 10_000  # Hz; the paper's
_FRAME, _HOP, _N_FFT = 256, 128, 512
_N_BANDS, _LOWEST_HZ = 15, 150.0  # centres, a third of an octave apart
_STRETCH = 30  # frames that are compared together, 384 ms
_RANGE_DB = 40.0  # frames fainter than this below the loudest are left out
_CLIP = 1 + 10 ** (15 / 20)  # of a band over the target's: a signal-to-distortion of -15 dB
_BATCH = 2048  # stretches at a time: an hour of sound has 280,000
_EPS = np.finfo(float).eps


def stoi(estimate: np.ndarray, target: np.ndarray, sample_rate: int) -> float | None:
    """Intelligibility of `estimate`, up to 1 of the target itself; samples (S,) or (C, S), the
    mean over C.

    None where less than 0.4 s of the target is within 40 dB of its loudest frame, and for a silent
    one: nothing to judge. InputError for two shapes."""
    one, other = np.atleast_2d(np.asarray(estimate)), np.atleast_2d(np.asarray(target))
    if one.shape != other.shape or one.ndim != 2:
        raise InputError(
            f"two sounds of one shape are compared; got {one.shape} and {other.shape}; cut one"
        )
    a, b = (
        resample(x.astype(np.float32), sample_rate, RATE).astype(np.float64) for x in (one, other)
    )
    found = [_one_channel(*pair) for pair in zip(a, b, strict=True)]
    judged = [value for value in found if value is not None]
    return float(np.mean(judged)) if judged else None


def _one_channel(estimate: np.ndarray, target: np.ndarray) -> float | None:
    """STOI of samples (S,) at 10 kHz."""
    if len(target) <= _FRAME:
        return None
    framed, due = _frames(estimate), _frames(target)  # (F, 256)
    level_db = 20 * np.log10(np.linalg.norm(due, axis=1) + _EPS)
    is_heard = level_db > level_db.max() - _RANGE_DB
    if is_heard.sum() < _STRETCH or not target.any():
        return None
    x, y = (_bands(_joined(f[is_heard])) for f in (due, framed))  # (15, F')
    if x.shape[1] < _STRETCH:
        return None
    xs, ys = (np.lib.stride_tricks.sliding_window_view(b, _STRETCH, axis=1) for b in (x, y))
    total, n = 0.0, xs.shape[1]
    for start in range(0, n, _BATCH):
        part = slice(start, start + _BATCH)
        total += _correlations(xs[:, part], ys[:, part])
    return total / (n * _N_BANDS)


def _frames(samples: np.ndarray) -> np.ndarray:
    """(F, 256) half-overlapping frames under a Hann window; like the authors' own code, without
    the one that ends with the last sample."""
    cuts = np.lib.stride_tricks.sliding_window_view(samples, _FRAME)[:-1:_HOP]
    return cuts * _window()


@functools.cache
def _window() -> np.ndarray:
    return np.hanning(_FRAME + 2)[1:-1]


def _joined(frames: np.ndarray) -> np.ndarray:
    """Frames (F, 256) added up again at half overlap: (128 F + 128,)."""
    halves = frames.reshape(len(frames), 2, _HOP)
    out = np.zeros((len(frames) + 1, _HOP))
    out[:-1] += halves[:, 0]
    out[1:] += halves[:, 1]
    return out.reshape(-1)


def _bands(samples: np.ndarray) -> np.ndarray:
    """(15, F) magnitudes of the third-octave bands of every frame."""
    power = np.abs(np.fft.rfft(_frames(samples), _N_FFT)) ** 2  # (F, 257)
    return np.sqrt(_filters() @ power.T)


@functools.cache
def _filters() -> np.ndarray:
    """(15, 257): 1 where a bin belongs to a band, whose edges are rounded to bins."""
    hertz = np.linspace(0, RATE, _N_FFT + 1)[: _N_FFT // 2 + 1]
    edges_hz = _LOWEST_HZ * 2.0 ** ((2 * np.arange(_N_BANDS + 1) - 1) / 6)
    edges = np.abs(hertz[None] - edges_hz[:, None]).argmin(axis=1)
    bins = np.arange(len(hertz))
    return ((bins >= edges[:-1, None]) & (bins < edges[1:, None])).astype(np.float64)


def _correlations(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of correlations of the stretches of x and y (15, n, 30)."""
    scale = _norm(x) / (_norm(y) + _EPS)
    return float((_centred(x) * _centred(np.minimum(y * scale, x * _CLIP))).sum())


def _centred(x: np.ndarray) -> np.ndarray:
    """Of mean 0 and norm 1 along the last axis."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / (_norm(x) + _EPS)


def _norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1, keepdims=True)
