"""Every recipe of losses learns one batch by heart: pictures to 30 dB, sounds to 10 dB SI-SDR."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polyglyph.config import build
from polyglyph.tokenizers.spectral import si_sdr
from polyglyph.train.codec_loop import CodecRun, CodecTraining

IMAGE: dict[str, Any] = {
    "codec": {"modality": "image", "base": 16, "multipliers": [1, 2], "attention": False},
    "quantizer": {"codebook_size": 128, "d_code": 8, "threshold_ema_dead_code": 0.3},
    "optimizer": {"lr": 4e-3, "weight_decay": 0.0},
}
AUDIO: dict[str, Any] = {
    "codec": {
        "modality": "audio",
        "strides": [8, 8],
        "widths": [24, 32],
        "encoder_units": [1, 1],
        "decoder_units": [1, 1],
        "d_latent": 32,
        "taps": 3,
    },
    "quantizer": {
        "kind": "rvq",
        "codebook_size": 64,
        "n_codebooks": 3,
        "d_code": 16,
        "threshold_ema_dead_code": 0.3,
    },
    "optimizer": {"lr": 4e-3, "weight_decay": 0.0, "betas": [0.8, 0.99], "clip": 5.0},
    "data": {"mixture": {"tones": 1}},
}
STFTD = {"discriminator_width": 8, "discriminator_windows": [128]}


def learned(recipe: dict[str, Any], loss: dict[str, Any], n_steps: int, cut: Any) -> Tensor:
    """(batch, what it decodes to) stacked, after n_steps on the same batch."""
    run = {"kind": "codec", "steps": n_steps, "dtype": "fp32", "threads": 1}
    sections = {**recipe, "run": run, "loss": loss, "schedule": {"warmup": 10, "floor": 0.02}}
    sections["data"] = {**sections.get("data", {}), "batch_size": 2}
    training = CodecTraining(build(CodecRun, sections, "the test"))
    batch = cut(training.tensor_batch(0)).contiguous()
    training.tensor_batch = lambda step: batch  # type: ignore[method-assign]
    for _ in range(n_steps):
        training.advance()
    with training.exported() as tokenizer:
        net = tokenizer.net
        return torch.stack([batch, net.decode(net.encode(batch))])


def psnr(batch: Tensor, decoded: Tensor) -> float:
    return 10 * math.log10(4 / float((batch - decoded).square().mean()))  # of a range of 2


def corner(batch: Tensor) -> Tensor:
    return batch[..., :32, :32]


def quarter(batch: Tensor) -> Tensor:
    return batch[..., 4096:8192]


def test_pixel_losses_learn_two_pictures_to_30_db() -> None:
    assert psnr(*learned(IMAGE, {"structure": 0.0}, 220, corner)) >= 30


def test_spectral_losses_learn_two_sounds_to_10_db() -> None:
    loss = {"mel": 1.0, "stft": 0.3, "waveform": 6.0, "windows": [256, 64]}
    assert float(si_sdr(*learned(AUDIO, loss, 200, quarter).flip(0)).min()) >= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "n_steps"),
    [
        ({"structure": 1.0}, 350),
        ({"perceptual": 0.3, "perceptual_net": "random"}, 350),
        ({"adversarial": 0.1, "discriminator_width": 8, "discriminator_start": 100}, 500),
        (
            {"adversarial": 0.02, "discriminator_width": 8, "adaptive_weight": False, "lecam": 0.1,
             "feature_matching": 0.1},
            500,
        ),
        ({"l2": 4.0, "adversarial": 0.05, "discriminator_width": 8, "balancer": True}, 500),
    ],
    ids=["structure", "perceptual", "adaptive", "lecam", "balanced"],
)  # fmt: skip
def test_every_recipe_of_pictures_learns_them_to_30_db(loss: dict[str, Any], n_steps: int) -> None:
    assert psnr(*learned(IMAGE, loss, n_steps, corner)) >= 30


@pytest.mark.slow
def test_a_clip_is_learned_to_30_db() -> None:
    video = {**IMAGE, "codec": {**IMAGE["codec"], "modality": "video", "n_temporal_levels": 1}}
    assert psnr(*learned(video, {"structure": 0.0}, 500, lambda b: b[:1, :4, :, :24, :24])) >= 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        {"adversarial": 1.0, **STFTD, "waveform": 6.0, "windows": [256, 64]},
        {"adversarial": 0.5, **STFTD, "feature_matching": 0.5, "adaptive_weight": False,
         "waveform": 6.0, "windows": [256, 64]},
        {"l1": 2.0, "waveform": 6.0, "stft": 0.0, "mel": 0.5, "windows": [256, 64],
         "adversarial": 0.3, "feature_matching": 0.3, "balancer": True, **STFTD},
    ],
    ids=["adaptive", "matching", "encodec"],
)  # fmt: skip
def test_every_recipe_of_sounds_learns_them_to_10_db(loss: dict[str, Any]) -> None:
    assert float(si_sdr(*learned(AUDIO, loss, 300, quarter).flip(0)).min()) >= 10
