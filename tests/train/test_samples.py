"""Samples of a codec run: originals above, or before, what came back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from polyglyph.media import Audio
from polyglyph.tokenizers.image import to_uint8
from polyglyph.train.samples import write_sample


def negative() -> Any:
    """A codec that turns the sign."""

    def encode(x: Tensor) -> Tensor:
        return x

    def decode(x: Tensor) -> Tensor:
        return -x

    return SimpleNamespace(
        net=SimpleNamespace(encode=encode, decode=decode),
        config=SimpleNamespace(sample_rate=8000),
    )


@pytest.mark.parametrize(("n", "shown"), [(3, 3), (11, 8)])
def test_pictures_stand_above_their_reconstructions(tmp_path: Path, n: int, shown: int) -> None:
    batch = torch.rand(n, 3, 5, 7) * 2 - 1
    path = write_sample(tmp_path / "step-00000010", negative(), batch)
    assert path == tmp_path / "step-00000010.png"
    found = np.asarray(PIL.Image.open(path))
    assert found.shape == (10, 7 * shown, 3)
    assert np.array_equal(found[:5, 7:14], to_uint8(batch[1:2])[0])
    assert np.array_equal(found[5:, 7:14], to_uint8(-batch[1:2])[0])


def test_clips_are_laid_out_frame_by_frame(tmp_path: Path) -> None:
    batch = torch.rand(2, 4, 3, 5, 7) * 2 - 1
    found = np.asarray(PIL.Image.open(write_sample(tmp_path / "a", negative(), batch)))
    assert found.shape == (10, 7 * 8, 3)
    assert np.array_equal(found[:5, 7 * 5 : 7 * 6], to_uint8(batch[1, 1:2])[0])


def test_sounds_are_heard_before_their_reconstructions(tmp_path: Path) -> None:
    batch = torch.rand(2, 1, 40) * 1.6 - 0.8
    path = write_sample(tmp_path / "a", negative(), batch)
    sound = Audio(path)
    assert path.suffix == ".wav" and sound.sample_rate == 8000
    due = torch.cat([batch[0], -batch[0], batch[1], -batch[1]], dim=-1).numpy()
    np.testing.assert_allclose(sound.samples, due, atol=1e-4)


def test_spectrograms_of_sounds_stand_above_those_of_their_reconstructions(
    tmp_path: Path,
) -> None:
    n = 8000
    tones = torch.stack([torch.sin(torch.arange(n) * w) for w in (0.2, 2.0)])  # 255, 2546 Hz
    quiet = SimpleNamespace(encode=lambda x: x, decode=lambda x: 0.001 * x)
    codec = SimpleNamespace(net=quiet, config=SimpleNamespace(sample_rate=8000))
    write_sample(tmp_path / "a", codec, tones[:, None])
    found = np.asarray(PIL.Image.open(tmp_path / "a.png")).astype(int)
    frames = n // 256 + 1
    assert found.shape == (160, 2 * frames)
    low, high = (found[:80, i * frames + frames // 2].argmax() for i in range(2))
    assert low > high, "low notes are at the bottom"
    assert np.array_equal(found[low, 5 : frames - 5] > 200, np.ones(frames - 10, bool))
    assert found[80:].max() < found[:80].max() - 100


def test_both_channels_of_a_stereo_sound_are_heard(tmp_path: Path) -> None:
    batch = torch.stack([torch.full((2, 40), 0.5), torch.full((2, 40), 0.25)], dim=1)
    batch[:, 1] *= -1
    sound = Audio(write_sample(tmp_path / "a", negative(), batch))
    assert sound.samples.shape == (2, 160)
    np.testing.assert_allclose(sound.samples[:, 60], [-0.5, 0.25], atol=1e-3)
    np.testing.assert_allclose(sound.samples[:, 100], [0.5, -0.25], atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 1, 40), (2, 3, 5, 7)])
def test_a_resumed_run_may_write_a_sample_again(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_sample(tmp_path / "a", negative(), torch.zeros(shape))
    path = write_sample(tmp_path / "a", negative(), torch.full(shape, 0.5))
    first = path.read_bytes()
    path = write_sample(tmp_path / "a", negative(), torch.full(shape, 0.5))
    assert path.read_bytes() == first
