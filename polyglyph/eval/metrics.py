"""Closed-form metrics: no weights, no network, no modality's checker.

PSNR and SSIM on uint8 pixels (SSIM: Wang et al., 2004, as scikit-image with Gaussian weights),
SI-SDR and mel distance on samples, bits of codes, use of codebooks, bootstrap intervals. Knows
nothing of tasks, scenes or models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyglyph.errors import InputError
from polyglyph.tokenizers.base import CodeGrid, SpanSpec

if TYPE_CHECKING:
    from polyglyph.tokenizers.quantize import CodebookUse

PEAK = 255.0
PSNR_CAP_DB = 100.0  # of equal pixels, so that a mean over pictures stays finite
_RADIUS, _SIGMA = 5, 1.5  # SSIM's window: 11 wide
_K1, _K2 = 0.01, 0.03
_N_RESAMPLES = 2000


def _pair(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64: the difference of two uint8 arrays wraps around."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.size == 0:
        raise InputError(
            f"two arrays of one shape are compared; got {one.shape} and {other.shape}; "
            f"crop or resize one of them"
        )
    return one.astype(np.float64), other.astype(np.float64)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pixels of any shape, at most 100 dB."""
    a, b = _pair(one, other)
    error = float(np.mean((a - b) ** 2))
    return min(PSNR_CAP_DB, 10 * math.log10(PEAK**2 / error)) if error else PSNR_CAP_DB


def difference_psnr(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of the frame-to-frame differences of two clips (F, H, W, 3): flicker, motion.

    One frame has no differences: 100 dB."""
    a, b = _pair(one, other)
    if len(a) < 2:
        return PSNR_CAP_DB
    error = float(np.mean((np.diff(a, axis=0) - np.diff(b, axis=0)) ** 2))
    return min(PSNR_CAP_DB, 10 * math.log10(PEAK**2 / error)) if error else PSNR_CAP_DB


def _blur(x: np.ndarray, window: np.ndarray) -> np.ndarray:
    """The weighted mean around each pixel of (H, W, C) whose window lies inside."""
    n = len(window)
    rows = sum(w * x[i : x.shape[0] - n + 1 + i] for i, w in enumerate(window))
    return sum(w * rows[:, i : x.shape[1] - n + 1 + i] for i, w in enumerate(window))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity in [-1, 1] of uint8 (H, W) or (H, W, C), mean over channels.

    Gaussian window of 11 pixels, sigma 1.5, where it lies inside; narrower for a picture narrower
    than that."""
    a, b = _pair(one, other)
    if a.ndim == 2:
        a, b = a[..., None], b[..., None]
    radius = min(_RADIUS, (min(a.shape[:2]) - 1) // 2)
    at = np.arange(-radius, radius + 1)
    window = np.exp(-0.5 * (at / _SIGMA) ** 2)
    window /= window.sum()
    mean_a, mean_b = _blur(a, window), _blur(b, window)
    var_a = _blur(a * a, window) - mean_a**2
    var_b = _blur(b * b, window) - mean_b**2
    both = _blur(a * b, window) - mean_a * mean_b
    c1, c2 = (_K1 * PEAK) ** 2, (_K2 * PEAK) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def clip_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Mean SSIM over the frames of two clips (F, H, W, 3)."""
    _pair(one, other)
    return float(np.mean([ssim(a, b) for a, b in zip(one, other, strict=True)]))


def si_sdr(estimate: np.ndarray, target: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of samples (S,) or (C, S), mean over C."""
    import torch

    from polyglyph.tokenizers import spectral

    a, b = (torch.from_numpy(x).float() for x in _pair(estimate, target))
    return float(spectral.si_sdr(a, b).mean())


class RunningSiSdr:
    """`si_sdr` of mono samples that come in parts, by sums in float64."""

    def __init__(self) -> None:
        self._n = 0
        self._sums = np.zeros(5)  # of e, t, e e, e t, t t

    def add(self, estimate: np.ndarray, target: np.ndarray) -> None:
        """The next samples of both, of one shape."""
        e, t = (x.reshape(-1) for x in _pair(estimate, target))
        self._n += len(e)
        self._sums += [e.sum(), t.sum(), e @ e, e @ t, t @ t]

    @property
    def value(self) -> float:
        """In dB, of all so far."""
        e, t, ee, et, tt = self._sums
        ee, et, tt = ee - e * e / self._n, et - e * t / self._n, tt - t * t / self._n
        eps = 1e-12
        scale = et / (tt + eps)
        signal = max(0.0, scale * scale * tt)
        noise = max(0.0, ee - 2 * scale * et + signal)  # of equal sounds, a rounding below zero
        return 10 * math.log10((signal + eps) / (noise + eps))


def mel_distance(estimate: np.ndarray, target: np.ndarray, sample_rate: int) -> float:
    """Mean |log10-mel difference| of samples (S,) or (C, S); 0 is equal, 0.1 is 2 dB."""
    import torch

    from polyglyph.tokenizers import spectral

    a, b = (torch.from_numpy(x).float() for x in _pair(estimate, target))
    return float(spectral.mel_distance(a, b, sample_rate).mean())


def bits(grid: CodeGrid, spec: SpanSpec) -> float:
    """Bits that a grid's codes take at log2(codebook_size) each."""
    return grid.n_tokens * math.log2(spec.codebook_size)


def codebook_use(grids: Iterable[CodeGrid], spec: SpanSpec) -> list[CodebookUse]:
    """One entry per codebook that some grid has. Few grids cannot use a large codebook: read it
    with their number."""
    import torch

    from polyglyph.tokenizers import quantize

    rows = [grid.codes.reshape(grid.n_codebooks, -1).T for grid in grids]  # each (n, Q' ≤ Q)
    n = max((row.shape[1] for row in rows), default=spec.n_codebooks)
    # -1: a codebook that a grid of fewer codebooks leaves out.
    rows = [np.pad(row, ((0, 0), (0, n - row.shape[1])), constant_values=-1) for row in rows]
    codes = np.concatenate([np.zeros((0, n), np.int32), *rows])
    return quantize.codebook_use(torch.from_numpy(codes), spec.codebook_size)


@dataclass(frozen=True)
class Estimate:
    """A mean over n items with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def bootstrap(values: Sequence[float] | np.ndarray, seed: int = 0, level: float = 0.95) -> Estimate:
    """The mean of values with its percentile interval (Efron, 1979); InputError without values.

    Pure in (values, seed). All-equal values have an interval of no width: see n."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise InputError("an interval needs at least one value; score at least one item")
    draws = np.random.default_rng(seed).integers(0, len(x), (_N_RESAMPLES, len(x)))
    low, high = np.quantile(x[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    mean = float(x.mean())
    # Rounding in the resampled means may step over a mean of equal values by an ulp.
    return Estimate(mean, min(float(low), mean), max(float(high), mean), len(x))
