"""Spectral views of sound: mel filterbank, log-mel, multi-scale distances, SI-SDR; the weights of
an audio codec's losses.

Pure functions and loss modules over waveforms (..., S). Knows nothing of codecs, codes or
training loops. Losses after DAC (arXiv:2306.06546) and Parallel WaveGAN (arXiv:1910.11480);
SI-SDR after arXiv:1811.02508.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from polyglyph.tokenizers.losses import JudgedLossConfig, added

FLOOR = 1e-5  # magnitudes below -100 dB of full scale count as silence
N_MELS = {32: 5, 64: 10, 128: 20, 256: 40, 512: 64, 1024: 80, 2048: 128}
"""Bands per window such that no triangle is empty (DAC's 5 to 320, kept below two per bin)."""


class AudioLossConfig(JudgedLossConfig):
    """`[loss]` of an audio codec: the weight of each summand.

    mel: multi-scale log-mel L1. stft: spectral convergence and log magnitude. waveform: energy of
    the error over the energy of the sound. l1: mean absolute error of the samples. windows: STFT
    sizes in samples. floor: the magnitude, 1 for a full sinusoid, that logarithms take for silence;
    a low one makes pauses silent. discriminator_windows: those of the multi-scale STFT
    discriminator.

    semantic: weight of the distillation of a speech model into the first codebook (tokenizers/
    semantic.py); teacher: the folder of a HuBERT; teacher_layer: one of its layers, else the mean
    of all.
    """

    mel: float = Field(1.0, ge=0)
    stft: float = Field(0.3, ge=0)
    waveform: float = Field(1.0, ge=0)
    l1: float = added(0.0, ge=0)
    windows: tuple[PositiveInt, ...] = (2048, 512, 128)
    floor: float = added(5e-3, gt=0)
    discriminator_windows: tuple[PositiveInt, ...] = added((2048, 1024, 512, 256, 128))
    semantic: float = added(0.0, ge=0)
    teacher: str | None = added(None)
    teacher_layer: int | None = added(None, ge=0)

    @model_validator(mode="after")
    def _teacher_named(self) -> AudioLossConfig:
        if self.semantic and self.teacher is None:
            raise ValueError("semantic needs teacher, the folder of a HuBERT in safetensors")
        if min(self.discriminator_windows, default=0) < 16:
            raise ValueError("discriminator_windows are at least one, of 16 samples or more")
        return self


def hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """The HTK mel scale: 2595 log10(1 + f / 700)."""
    return 2595.0 * np.log10(1.0 + hertz / 700.0)


def mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hertz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


@functools.lru_cache(maxsize=32)
def mel_filters(
    n_mels: int, n_fft: int, sample_rate: int, f_min: float = 0.0, f_max: float | None = None
) -> np.ndarray:
    """Triangular filters (n_fft // 2 + 1, n_mels), float32, peak 1, HTK scale, from f_min to
    f_max Hz (default: half the sample rate)."""
    f_max = sample_rate / 2 if f_max is None else f_max
    edges_mel = np.linspace(
        hertz_to_mel(np.array(f_min)), hertz_to_mel(np.array(f_max)), n_mels + 2
    )
    edges = mel_to_hertz(edges_mel)  # (n_mels + 2,) Hz
    bins = np.linspace(0.0, sample_rate // 2, n_fft // 2 + 1)
    rise = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall)).astype(np.float32)


def stft_magnitudes(x: Tensor, n_fft: int, hop: int | None = None) -> Tensor:
    """Hann-windowed, centred magnitudes of x (..., S): (..., n_fft // 2 + 1, frames).

    The sound is padded with zeros by half a window on both sides, so any length ≥1 works.
    Scaled by 2 / sum(window): a sinusoid of amplitude 1 peaks at 1 whatever the window."""
    hop = n_fft // 4 if hop is None else hop
    window = _hann(n_fft, x.device)
    flat = x.reshape(-1, x.shape[-1]).float()
    spectrum = torch.stft(
        flat, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True
    )
    # The 1e-12 keeps the gradient of the magnitude finite in digital silence.
    power = spectrum.real.square() + spectrum.imag.square()
    magnitudes = (power + 1e-12).sqrt() * (2.0 / float(window.sum()))
    return magnitudes.reshape(*x.shape[:-1], *magnitudes.shape[-2:])


def log_mel(
    x: Tensor, sample_rate: int, n_fft: int = 1024, hop: int | None = None, n_mels: int = 80
) -> Tensor:
    """Natural-log mel magnitudes of x (..., S): (..., n_mels, frames), floored at 1e-5."""
    return mel_of(stft_magnitudes(x, n_fft, hop), sample_rate, n_mels)


def mel_of(magnitudes: Tensor, sample_rate: int, n_mels: int, floor: float = FLOOR) -> Tensor:
    """log(mel + floor) of magnitudes (..., bins, frames): (..., n_mels, frames)."""
    n_fft = 2 * (magnitudes.shape[-2] - 1)
    filters = _filters(n_mels, n_fft, sample_rate, magnitudes.device)
    return (filters @ magnitudes + floor).log()


@functools.lru_cache(maxsize=32)
def _hann(n_fft: int, device: torch.device) -> Tensor:
    return torch.hann_window(n_fft, device=device)


@functools.lru_cache(maxsize=32)
def _filters(n_mels: int, n_fft: int, sample_rate: int, device: torch.device) -> Tensor:
    filters = mel_filters(n_mels, n_fft, sample_rate)
    return torch.from_numpy(np.ascontiguousarray(filters.T)).to(device)  # (n_mels, bins)


@dataclass(frozen=True)
class SpectralDistance:
    """Distances between two batches of sound; scalars, means over batch, bands and scales."""

    mel: Tensor  # () mean |log-mel difference|, nepers
    stft: Tensor  # () spectral convergence + mean |log magnitude difference|


class SpectralLoss(nn.Module):
    """Multi-scale log-mel L1 and multi-scale STFT distance from one STFT per scale.

    forward(estimate, target), both (..., S) -> SpectralDistance."""

    def __init__(self, sample_rate: int, windows: tuple[int, ...], floor: float = 5e-3) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.windows = windows
        # -46 dB: at -100 dB the empty bands between the partials of a tone rule the loss.
        self.floor = floor

    def forward(self, estimate: Tensor, target: Tensor) -> SpectralDistance:
        mel = estimate.new_zeros(())
        stft = estimate.new_zeros(())
        for n_fft in self.windows:
            a = stft_magnitudes(estimate, n_fft)
            with torch.no_grad():
                b = stft_magnitudes(target, n_fft)
            n_mels = bands_for(n_fft)
            mel = mel + F.l1_loss(
                mel_of(a, self.sample_rate, n_mels, self.floor),
                mel_of(b, self.sample_rate, n_mels, self.floor),
            )
            stft = stft + stft_distance(a, b, self.floor)
        n = len(self.windows)
        return SpectralDistance(mel=mel / n, stft=stft / n)


def bands_for(n_fft: int) -> int:
    """Mel bands used with a window of n_fft samples."""
    return N_MELS.get(n_fft, max(4, n_fft // 16))


def stft_distance(a: Tensor, b: Tensor, floor: float) -> Tensor:
    """Spectral convergence per item plus mean |difference of log(magnitude + floor)|; magnitudes
    (B, ..., bins, frames), b the target; a scalar."""
    difference = (a - b).flatten(1).norm(dim=1)
    # The floor on the norm stops silent targets from dividing by nothing.
    convergence = difference / b.flatten(1).norm(dim=1).clamp_min(1e-2 * b[0].numel() ** 0.5)
    return convergence.mean() + F.l1_loss((a + floor).log(), (b + floor).log())


def mel_distance(estimate: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Mean |log10-mel difference| of (..., S) over windows 2048 and 512; shape (...)."""
    total = torch.zeros(estimate.shape[:-1], device=estimate.device)
    for n_fft in (2048, 512):
        n_mels = bands_for(n_fft)
        a = log_mel(estimate, sample_rate, n_fft, n_mels=n_mels)
        b = log_mel(target, sample_rate, n_fft, n_mels=n_mels)
        total = total + (a - b).abs().mean(dim=(-1, -2)) / np.log(10.0)
    return total / 2


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB of (..., S); shape (...).

    Means are removed first; silence against silence gives 0 dB."""
    estimate = (estimate - estimate.mean(-1, keepdim=True)).double()
    target = (target - target.mean(-1, keepdim=True)).double()
    eps = 1e-12
    scale = (estimate * target).sum(-1, keepdim=True) / (
        target.square().sum(-1, keepdim=True) + eps
    )
    signal = (scale * target).square().sum(-1)
    noise = (estimate - scale * target).square().sum(-1)
    return (10.0 * torch.log10((signal + eps) / (noise + eps))).float()
