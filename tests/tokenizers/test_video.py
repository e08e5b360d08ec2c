"""The video codec with untrained weights: causality, sizes, batches, its start from a picture's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyglyph.errors import ConfigError, FormatError, InputError
from polyglyph.media import Video
from polyglyph.tokenizers import video as module
from polyglyph.tokenizers.base import CodeGrid, SpanSpec, VideoMeta
from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig
from polyglyph.tokenizers.video import VideoCodec, VideoCodecConfig, VideoTokenizer

SMALL: dict[str, Any] = {
    "base": 8,
    "multipliers": (1, 2),
    "patch": 2,
    "quantizer": {"codebook_size": 16, "d_code": 4},
}


def codec(**options: Any) -> VideoCodec:
    """No weight at the zero it starts from: every path through time is open."""
    torch.manual_seed(2)
    net = VideoCodec(VideoCodecConfig(**{**SMALL, **options})).eval()
    for part in (net.temporal_encoder, net.temporal_decoder):
        for p in part.parameters():
            nn.init.normal_(p, std=0.3)
    return net


@pytest.fixture
def tokenizer() -> VideoTokenizer:
    return VideoTokenizer(codec(), "mark")


def clip(n_frames: int, h: int = 8, w: int = 12, seed: int = 0, fps: float = 8.0) -> Video:
    rng = np.random.default_rng((seed, n_frames))
    return Video(rng.integers(0, 256, (n_frames, h, w, 3)).astype(np.uint8), fps)


def test_the_codec_says_what_its_codes_are(tokenizer: VideoTokenizer) -> None:
    assert tokenizer.spec == SpanSpec("video", "video", 16, 1, 3)
    assert tokenizer.stride == (4, 4, 4)
    assert tokenizer.default_meta((2, 3, 5)) == VideoMeta(8, 12, 20, 8.0)


@pytest.mark.parametrize(("f", "h", "w"), [(5, 61, 35), (1, 8, 8), (4, 4, 4), (8, 9, 4), (3, 1, 1)])
def test_any_length_and_size_comes_back_as_it_was(
    tokenizer: VideoTokenizer, f: int, h: int, w: int
) -> None:
    grid = tokenizer.encode(clip(f, h, w, fps=12.5))
    assert grid.shape == (-(-f // 4), -(-h // 4), -(-w // 4))
    assert grid.meta == VideoMeta(f, h, w, 12.5)
    result = tokenizer.decode(grid)
    assert result.frames.shape == (f, h, w, 3) and result.fps == 12.5
    assert result.frames.dtype == np.uint8


@torch.no_grad()
@pytest.mark.parametrize("frame", [4, 7, 8, 11])
def test_a_later_frame_changes_no_earlier_code(frame: int) -> None:
    net = codec()
    x = torch.rand(1, 12, 3, 8, 12) * 2 - 1
    changed = x.clone()
    changed[:, frame:] = -changed[:, frame:]
    group = frame // 4
    a, b = net.latents(x), net.latents(changed)
    assert torch.equal(a[:, :, :group], b[:, :, :group])
    assert torch.equal(net.encode(x)[:, :, :group], net.encode(changed)[:, :, :group])
    for later in range(group, 3):
        assert not torch.allclose(a[:, :, later], b[:, :, later]), "the change is seen at all"


@torch.no_grad()
@pytest.mark.parametrize("group", [1, 2])
def test_a_later_code_changes_no_earlier_frame(group: int) -> None:
    net = codec()
    codes = torch.randint(16, (1, 1, 3, 2, 3))
    changed = codes.clone()
    changed[:, :, group:] = (changed[:, :, group:] + 5) % 16
    a, b = net.decode(codes), net.decode(changed)
    assert torch.equal(a[:, : 4 * group], b[:, : 4 * group])
    assert not torch.allclose(a[:, 4 * group :], b[:, 4 * group :])


def test_a_longer_clip_begins_with_the_codes_of_the_shorter(tokenizer: VideoTokenizer) -> None:
    frames = clip(12).frames
    whole = tokenizer.encode(Video(frames, 8.0))
    part = tokenizer.encode(Video(frames[:8], 8.0))
    assert np.array_equal(part.codes, whole.codes[:, :2])


def test_padding_repeats_the_last_frame(tokenizer: VideoTokenizer) -> None:
    short = clip(5)
    long = Video(np.concatenate([short.frames, short.frames[-1:].repeat(3, 0)]), 8.0)
    assert np.array_equal(tokenizer.encode(short).codes, tokenizer.encode(long).codes)
    assert tokenizer.padded(long.frames[:, :7]).shape == (8, 3, 8, 12)
    with pytest.raises(InputError, match="at least one frame"):
        tokenizer.padded(long.frames[:0])


def test_a_batch_of_any_lengths_equals_one_by_one_in_order(
    tokenizer: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip(f, seed=i, fps=5.0 + i) for i, f in enumerate((5, 1, 5, 8, 5))]
    due = [tokenizer.encode(c) for c in clips]
    assert tokenizer.encode_batch(clips) == due
    monkeypatch.setattr(module, "_PIXELS_PER_BATCH", 200)  # two frames at a time
    assert tokenizer.encode_batch(clips) == due
    assert tokenizer.encode_batch([]) == []


@torch.no_grad()
def test_frames_kept_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    net = codec()
    z = torch.randn(2, 16, 2, 2, 3)
    whole = net.frames(z)
    keep = torch.tensor([[6, 0, 1], [7, 7, 2]])
    due = torch.stack([whole[0, keep[0]], whole[1, keep[1]]])
    torch.testing.assert_close(net.frames(z, keep), due)
    monkeypatch.setattr(module, "_PIXELS_PER_BATCH", 200)
    torch.testing.assert_close(net.frames(z), whole)


def test_training_decodes_a_few_frames_and_moves_every_weight() -> None:
    net = codec(frames_in_loss=3)
    batch = net.batch_tensor(np.stack([clip(8, seed=i).frames for i in range(2)]))
    assert batch.shape == (2, 8, 3, 8, 12)
    step = net.training_losses(batch)
    assert step.reconstruction.shape == (6, 3, 8, 12)
    codes = step.codes.reshape(2, 2, 2, 3, 1).permute(0, 4, 1, 2, 3)
    assert torch.equal(codes, net.encode(batch))
    torch.stack(list(step.losses.values())).sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert net.training_losses(batch[:, :4]).reconstruction.shape[0] == 6
    assert codec(frames_in_loss=9).training_losses(batch).reconstruction.shape[0] == 16


@torch.no_grad()
def test_it_starts_from_the_trunk_of_an_image_codec() -> None:
    image = ImageCodec(ImageCodecConfig(**SMALL)).eval()
    net = codec()
    net.init_from(image)
    frames = torch.rand(1, 4, 3, 8, 12) * 2 - 1
    assert torch.equal(net.encoder(frames[0]), image.encoder(frames[0]))
    z = torch.randn(1, 16, 2, 3)
    assert torch.equal(net.decoder(z), image.decoder(z))
    with pytest.raises(ConfigError, match=r"has multipliers = \(1,\), this codec \(1, 2\)"):
        net.init_from(ImageCodec(ImageCodecConfig(**{**SMALL, "multipliers": (1,)})))


def test_a_saved_codec_gives_the_same_codes_and_refuses_those_of_another(
    tokenizer: VideoTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "c")
    loaded = VideoTokenizer.load(tmp_path / "c")
    assert loaded.encode(clip(5)).same_codes(tokenizer.encode(clip(5)))
    assert loaded.config == tokenizer.config
    with pytest.raises(FormatError, match="codes were made by codec mark"):
        loaded.decode(tokenizer.encode(clip(5)))


def test_codes_are_not_cropped_to_more_than_they_hold(tokenizer: VideoTokenizer) -> None:
    codes = np.zeros((1, 1, 2, 3), np.int32)
    for sizes in ((5, 8, 12), (4, 9, 12), (4, 8, 13), (0, 8, 12), (4, 0, 12), (4, 8, 0)):
        with pytest.raises(InputError, match="can't be cropped to their meta"):
            tokenizer.decode(CodeGrid("video", codes, VideoMeta(*sizes, fps=8.0)))


@pytest.mark.gpu
def test_a_codec_on_a_gpu_takes_media_and_gives_them_back(tokenizer: VideoTokenizer) -> None:
    due = tokenizer.encode(clip(5))
    other = VideoTokenizer(codec().cuda(), "mark")
    assert (other.encode(clip(5)).codes == due.codes).mean() > 0.9
    assert other.decode(due).frames.shape == (5, 8, 12, 3)
