"""Metrics against other implementations and against what they must be by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polyglyph.errors import InputError
from polyglyph.eval.metrics import (
    PSNR_CAP_DB,
    bits,
    bootstrap,
    clip_ssim,
    codebook_use,
    difference_psnr,
    mel_distance,
    psnr,
    si_sdr,
    ssim,
)
from polyglyph.tokenizers.base import CodeGrid, SpanSpec


def pixels(seed: int, shape: tuple[int, ...] = (23, 31, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_psnr_of_bytes_does_not_wrap_around() -> None:
    black, grey = np.zeros((5, 7, 3), np.uint8), np.full((5, 7, 3), 200, np.uint8)
    due = 20 * math.log10(255 / 200)
    assert psnr(black, grey) == pytest.approx(due) == psnr(grey, black)


def test_equal_pixels_have_the_finite_psnr_of_the_cap() -> None:
    a = pixels(0)
    assert psnr(a, a) == PSNR_CAP_DB
    assert difference_psnr(a[None], a[None]) == PSNR_CAP_DB


def test_ssim_equals_scikit_images_with_a_gaussian_window() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = pixels(0)
    b = np.clip(a.astype(int) + np.random.default_rng(1).normal(0, 40, a.shape), 0, 255)
    b = b.astype(np.uint8)
    due = metrics.structural_similarity(
        a,
        b,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert ssim(a, b) == pytest.approx(due, abs=1e-6)
    assert ssim(a, a) == pytest.approx(1.0)


def test_ssim_takes_pictures_smaller_than_its_window() -> None:
    a = pixels(2, (3, 9, 3))
    assert ssim(a, a) == pytest.approx(1.0) and ssim(a, 255 - a) < 0.9


def test_clip_metrics_see_a_flicker_that_every_frame_hides() -> None:
    a = np.full((4, 16, 16, 3), 100, np.uint8)
    steady, flicker = a + 4, a + np.array([4, 0, 4, 0], np.uint8)[:, None, None, None]
    assert psnr(a, flicker) > psnr(a, steady)
    assert difference_psnr(a, flicker) < difference_psnr(a, steady) == PSNR_CAP_DB
    assert clip_ssim(a, a) == pytest.approx(1.0)


def test_si_sdr_ignores_scale_and_falls_by_20_db_per_tenfold_noise() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 4001)).astype(np.float32)
    noise = rng.normal(size=x.shape).astype(np.float32)
    clean, dirty = si_sdr(x + 0.01 * noise, x), si_sdr(x + 0.1 * noise, x)
    assert clean - dirty == pytest.approx(20, abs=0.5)
    assert si_sdr(3 * (x + 0.1 * noise), x) == pytest.approx(dirty, abs=1e-3)


def test_mel_distance_is_zero_for_equals_and_one_for_a_tenth_of_the_amplitude() -> None:
    t = np.arange(8000) / 16000
    x = sum(np.sin(2 * np.pi * f * t) for f in range(40, 8000, 40)).astype(np.float32)[None]
    assert mel_distance(x, x, 16000) == 0
    assert mel_distance(0.1 * x, x, 16000) == pytest.approx(1.0, abs=0.1)


def test_metrics_refuse_two_shapes() -> None:
    with pytest.raises(InputError, match="one shape"):
        psnr(pixels(0), pixels(0)[1:])


def test_bits_are_codes_times_log2_of_the_codebook() -> None:
    spec = SpanSpec("audio", "audio", 256, 4, 1)
    assert bits(CodeGrid("audio", np.zeros((4, 25), np.int32)), spec) == 4 * 25 * 8


def test_codebook_use_counts_each_codebook_apart() -> None:
    spec = SpanSpec("audio", "audio", 8, 2, 1)
    codes = np.stack([np.arange(8), np.zeros(8)]).astype(np.int32)
    even, stuck = codebook_use([CodeGrid("audio", codes)], spec)
    assert even.usage == 1 and even.perplexity == pytest.approx(8) and even.dead == 0
    assert stuck.usage == 1 / 8 and stuck.perplexity == pytest.approx(1) and stuck.dead == 7 / 8


def test_codebook_use_leaves_out_what_a_grid_of_fewer_codebooks_has_not() -> None:
    spec = SpanSpec("audio", "audio", 8, 3, 1)
    codes = np.stack([np.arange(8), np.zeros(8)]).astype(np.int32)
    few, more = CodeGrid("audio", codes[:1]), CodeGrid("audio", codes)
    assert len(codebook_use([few], spec)) == 1
    both = codebook_use([few, more], spec)
    assert [use.usage for use in both] == [1, 1 / 8] and both[1].perplexity == pytest.approx(1)


def test_bootstrap_interval_holds_the_mean_and_narrows_with_n() -> None:
    rng = np.random.default_rng(4)
    few, many = (bootstrap(rng.random(n) < 0.7, seed=1) for n in (20, 2000))
    for found in (few, many):
        assert found.low <= found.mean <= found.high
    assert many.high - many.low < (few.high - few.low) / 4
    # The normal approximation of a share: 1.96 standard errors to either side.
    error = 1.96 * math.sqrt(many.mean * (1 - many.mean) / many.n)
    assert many.high - many.mean == pytest.approx(error, rel=0.2)


def test_bootstrap_is_a_pure_function_and_needs_a_value() -> None:
    assert bootstrap([0.0, 1.0, 1.0], seed=2) == bootstrap([0.0, 1.0, 1.0], seed=2)
    assert bootstrap([1.0] * 5) == bootstrap([1.0] * 5, seed=9)
    with pytest.raises(InputError, match="at least one"):
        bootstrap([])
