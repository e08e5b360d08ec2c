"""Spectral views: our filterbank and distances against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polyglyph.config import build
from polyglyph.errors import ConfigError
from polyglyph.tokenizers.spectral import (
    N_MELS,
    AudioLossConfig,
    SpectralLoss,
    log_mel,
    mel_distance,
    mel_filters,
    si_sdr,
    stft_magnitudes,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("n_mels", "n_fft", "rate", "f_min", "f_max"),
    [(80, 1024, 16_000, 0.0, None), (40, 512, 22_050, 50.0, 7_600.0), (7, 130, 9_001, 0.0, None)],
)
def test_mel_filters_equal_those_of_transformers(n_mels, n_fft, rate, f_min, f_max) -> None:
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=n_mels,
        min_frequency=f_min,
        max_frequency=rate / 2 if f_max is None else f_max,
        sampling_rate=rate,
        norm=None,
        mel_scale="htk",
    )
    assert np.abs(mel_filters(n_mels, n_fft, rate, f_min, f_max) - theirs).max() < 1e-6


@pytest.mark.parametrize("n_fft", sorted(N_MELS))
def test_no_band_of_the_loss_is_empty(n_fft: int) -> None:
    assert (mel_filters(N_MELS[n_fft], n_fft, 16_000).max(0) > 0).all()


def test_magnitudes_equal_those_of_numpy() -> None:
    x = noise(1000).numpy()
    n_fft, hop = 256, 64
    padded = np.pad(x, n_fft // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    starts = range(0, len(padded) - n_fft + 1, hop)
    frames = np.stack([np.abs(np.fft.rfft(padded[s : s + n_fft] * window)) for s in starts], 1)
    ours = stft_magnitudes(torch.from_numpy(x), n_fft, hop).numpy()
    assert np.allclose(ours, frames * 2 / window.sum(), atol=1e-5)


@pytest.mark.parametrize("n_fft", [128, 512, 2048])
def test_a_sinusoid_of_amplitude_one_peaks_at_one(n_fft: int) -> None:
    t = torch.arange(8000) / 16_000
    peak = stft_magnitudes(torch.sin(2 * math.pi * 1000.0 * t), n_fft).max()
    assert abs(float(peak) - 1) < 0.02


def test_log_mel_of_a_tone_peaks_in_the_band_that_holds_it() -> None:
    t = torch.arange(16_000) / 16_000
    mel = log_mel(torch.sin(2 * math.pi * 700.0 * t), 16_000, 1024, n_mels=40)
    band = int(mel.mean(-1).argmax())
    filters = mel_filters(40, 1024, 16_000)
    assert filters[round(700 * 1024 / 16_000), band] == filters[round(700 * 1024 / 16_000)].max()


@pytest.mark.parametrize("n_samples", [1, 63, 1001])
def test_losses_are_zero_on_equals_finite_on_silence_and_have_gradients(n_samples: int) -> None:
    loss = SpectralLoss(16_000, (256, 64))
    x = noise(2, 1, n_samples)
    same = loss(x, x)
    assert float(same.mel) == 0.0 and float(same.stft) < 1e-6
    silent = torch.zeros_like(x).requires_grad_()
    for target in (x, torch.zeros_like(x)):
        distance = loss(silent, target)
        (distance.mel + distance.stft).backward()
        assert torch.isfinite(silent.grad).all() and bool(torch.isfinite(distance.mel))


def test_losses_grow_with_the_error() -> None:
    loss, x = SpectralLoss(16_000, (512, 128)), noise(3, 4000)
    near, far = loss(x + 0.1 * noise(3, 4000, seed=1), x), loss(noise(3, 4000, seed=1) * 3, x)
    assert float(near.mel) < float(far.mel) and float(near.stft) < float(far.stft)
    assert float(mel_distance(x, x, 16_000).max()) == 0.0


def test_si_sdr_is_the_ratio_that_was_mixed_and_ignores_scale() -> None:
    target = torch.sin(torch.arange(16_000) * 0.1)[None].double()
    error = torch.cos(torch.arange(16_000) * 0.1)[None].double()  # orthogonal to the target
    for ratio_db in (-5.0, 0.0, 20.0):
        mixed = target + 10 ** (-ratio_db / 20) * error
        assert abs(float(si_sdr(7.3 * mixed, target)) - ratio_db) < 0.05
    assert float(si_sdr(torch.zeros(1, 100), torch.zeros(1, 100))) == 0.0


def test_the_weights_of_old_codecs_are_dumped_as_they_were() -> None:
    assert set(AudioLossConfig().model_dump()) == {
        "mel", "stft", "waveform", "windows", "adversarial", "discriminator_start",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="semantic needs teacher, the folder of a HuBERT"):
        build(AudioLossConfig, {"semantic": 1.0}, "[loss]")
    for windows in ([], [8]):
        with pytest.raises(ConfigError, match="discriminator_windows are at least one, of 16"):
            build(AudioLossConfig, {"discriminator_windows": windows}, "[loss]")
