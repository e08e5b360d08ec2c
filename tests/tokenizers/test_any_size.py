"""Media far larger than the training ones: what they cost stays in proportion to their size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyglyph.media import Video
from polyglyph.tokenizers import blocks, video
from polyglyph.tokenizers.blocks import SpatialAttention
from polyglyph.tokenizers.quantize import QuantizerConfig
from polyglyph.tokenizers.video import VideoCodec, VideoCodecConfig, VideoTokenizer


def test_a_grid_beyond_the_window_attends_within_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    block = SpatialAttention(8)
    x = torch.randn(2, 8, 5, 7)
    whole = block(x)
    sizes = []
    attend = blocks._attend
    monkeypatch.setattr(blocks, "_attend", lambda t: sizes.append(t.shape[2:]) or attend(t))
    assert torch.equal(block(x), whole) and sizes == [(5, 7)]
    monkeypatch.setattr(blocks, "_WINDOW", 4)
    other = x.clone()
    other[..., 4:] = other[..., 4:].flip(-1)  # the same values: the same norm
    sizes.clear()
    cut, changed = block(x), block(other)
    assert sizes == 2 * [(4, 4), (4, 3), (1, 4), (1, 3)]
    torch.testing.assert_close(cut[..., :4], changed[..., :4])
    assert not torch.allclose(cut, whole)


@pytest.mark.parametrize("n_halvings", [1, 2, 3])
def test_a_clip_in_windows_is_the_clip_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, n_halvings: int
) -> None:
    torch.manual_seed(n_halvings)
    config = VideoCodecConfig(
        base=8,
        multipliers=(1, 2),
        attention=False,
        n_temporal_levels=n_halvings,
        quantizer=QuantizerConfig(codebook_size=13, d_code=4),
    )
    net = VideoCodec(config)
    for parameter in net.parameters():  # the temporal blocks start as the identity
        parameter.data += 0.15 * torch.randn_like(parameter)
    tokenizer = VideoTokenizer(net)
    n_groups = 15
    frames = np.random.default_rng(0).integers(0, 256, (n_groups * net.stride_t - 1, 6, 5, 3))
    clip = Video(frames.astype(np.uint8), 8.0)
    whole = tokenizer.encode(clip)
    shown = tokenizer.decode(whole)
    lengths = []
    encode_next = net.encode_next
    monkeypatch.setattr(
        net, "encode_next", lambda x, past: lengths.append(x.shape[1]) or encode_next(x, past)
    )
    monkeypatch.setattr(video, "_PIXELS_PER_BATCH", 2 * net.stride_t * 8 * 8)
    assert tokenizer.encode(clip) == whole and len(np.unique(whole.codes)) > 3
    assert len(lengths) > 1 and max(lengths) < len(frames)
    again = tokenizer.decode(whole)
    assert abs(again.frames.astype(int) - shown.frames).max() <= 1  # a rounding
    monkeypatch.setattr(video, "_PAST", 2)  # too little: the past does matter
    assert tokenizer.encode(clip) != whole
    assert abs(tokenizer.decode(whole).frames.astype(int) - shown.frames).max() > 1
