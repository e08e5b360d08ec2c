"""The convolutional trunks: sizes, norms, causality in time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from polyglyph.tokenizers.blocks import (
    CausalConv3d,
    Decoder2d,
    Downsample,
    Encoder2d,
    FrameNorm,
    LocalEncoder2d,
    Middle,
    PositionNorm,
    ResidualBlock,
    SpatialAttention,
    TemporalDown,
    TemporalResidual,
    TemporalUp,
    Upsample,
    group_norm,
)


def shaken(block: nn.Module) -> nn.Module:
    """No weight left at the zero it starts from."""
    for p in block.parameters():
        nn.init.normal_(p, std=0.4)
    return block.eval()


@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (5, 1), (8, 2), (12, 3), (32, 8), (96, 24), (160, 32)]
)
def test_groups_hold_four_channels_or_more(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@torch.no_grad()
@pytest.mark.parametrize(
    ("multipliers", "patch", "stride"), [((1,), 2, 2), ((1, 2), 1, 2), ((1, 2), 3, 6)]
)
def test_the_stride_is_the_patch_times_two_per_level(
    multipliers: tuple[int, ...], patch: int, stride: int
) -> None:
    encoder = Encoder2d(8, multipliers, 1, False, patch=patch)
    decoder = Decoder2d(8, multipliers, 1, False, patch=patch)
    assert encoder.stride == stride and encoder.width == decoder.width == 8 * multipliers[-1]
    z = encoder(torch.randn(2, 3, 3 * stride, 5 * stride))
    assert z.shape == (2, encoder.width, 3, 5)
    assert decoder(z).shape == (2, 3, 3 * stride, 5 * stride)


@torch.no_grad()
def test_downsampling_pads_at_the_right_and_bottom_only() -> None:
    block = Downsample(3)
    x = torch.randn(1, 3, 6, 4)
    y = block(x)
    padded = torch.zeros(1, 3, 7, 5)
    padded[..., :6, :4] = x
    for i in range(3):
        for j in range(2):
            cut = padded[0, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            due = (block.conv.weight * cut).sum((1, 2, 3)) + block.conv.bias
            torch.testing.assert_close(y[0, :, i, j], due, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_upsampling_convolves_repeated_pixels() -> None:
    block = Upsample(3)
    x = torch.randn(1, 3, 3, 5)
    due = block.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(block(x), due)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (23, 18)])
def test_four_small_convolutions_upsample_as_one_large_one(height: int, width: int) -> None:
    torch.manual_seed(0)
    block = shaken(Upsample(5))
    x = torch.randn(2, 5, height, width)
    due = block.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(block(x), due, rtol=1e-5, atol=1e-5)
    with torch.enable_grad():  # training convolves the repeated pixels
        assert torch.equal(block(x), due)


def test_what_runs_in_place_without_gradients_gives_the_same() -> None:
    torch.manual_seed(0)
    for block in (ResidualBlock(8, 8), ResidualBlock(8, 12), Middle(8, True)):
        x = torch.randn(2, 8, 3, 5)
        kept = x.clone()
        due = block(x).detach()
        with torch.no_grad():
            torch.testing.assert_close(block(x), due)
        assert torch.equal(x, kept)


@torch.no_grad()
def test_a_residual_block_without_its_last_weights_is_the_shortcut() -> None:
    for d_out in (8, 12):
        block = ResidualBlock(8, d_out)
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        x = torch.randn(2, 8, 3, 5)
        assert torch.equal(block(x), block.shortcut(x))
        assert (d_out == 8) == torch.equal(block(x), x)


@torch.no_grad()
def test_spatial_attention_is_softmax_over_the_grid_scaled_by_the_root_of_the_width() -> None:
    block = shaken(SpatialAttention(8))
    x = torch.randn(2, 8, 3, 5)
    q, k, v = (t.flatten(2) for t in block.qkv(block.norm(x)).chunk(3, dim=1))  # (B, C, HW)
    weights = (q.transpose(1, 2) @ k / math.sqrt(8)).softmax(-1)
    due = x + block.out((v @ weights.transpose(1, 2)).reshape(x.shape))
    torch.testing.assert_close(block(x), due, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_frame_is_normed_by_itself() -> None:
    norm = shaken(FrameNorm(8))
    x = torch.randn(2, 8, 5, 3, 4) * torch.arange(1, 6).reshape(1, 1, 5, 1, 1)
    due = torch.stack([norm.norm(x[:, :, f]) for f in range(5)], dim=2)
    torch.testing.assert_close(norm(x), due)


TEMPORAL: list[tuple[nn.Module, float]] = [  # block, frames out over frames in
    (CausalConv3d(8, 8, (3, 3, 3)), 1),
    (TemporalResidual(8), 1),
    (TemporalDown(8), 0.5),
    (TemporalUp(8), 2),
]


@torch.no_grad()
@pytest.mark.parametrize(("block", "rate"), TEMPORAL, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("frame", [2, 4, 6])
def test_a_later_frame_changes_no_earlier_output(block: nn.Module, rate: float, frame: int) -> None:
    shaken(block)
    x = torch.randn(1, 8, 8, 3, 5)
    changed = x.clone()
    changed[:, :, frame:] += 1
    a, b = block(x), block(changed)
    before = int(frame * rate)
    assert a.shape[2] == 8 * rate
    assert torch.equal(a[:, :, :before], b[:, :, :before])
    assert not torch.isclose(a[:, :, before:], b[:, :, before:]).all(dim=1).all()


@torch.no_grad()
@pytest.mark.parametrize(("block", "rate"), TEMPORAL, ids=lambda v: type(v).__name__)
def test_first_frames_are_the_same_however_long_the_clip(block: nn.Module, rate: float) -> None:
    shaken(block)
    x = torch.randn(1, 8, 8, 3, 5)
    short = block(x[:, :, :2])
    torch.testing.assert_close(short, block(x)[:, :, : int(2 * rate)])


@torch.no_grad()
def test_a_temporal_residual_starts_as_the_identity() -> None:
    x = torch.randn(2, 8, 5, 3, 4)
    assert torch.equal(TemporalResidual(8)(x), x)


@torch.no_grad()
def test_temporal_up_makes_two_frames_of_each_by_two_sets_of_weights() -> None:
    block = shaken(TemporalUp(4))
    conv = block.conv.conv
    x = torch.randn(1, 4, 3, 2, 2)
    y = block(x)
    previous = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)

    def half(which: int) -> Tensor:
        rows = slice(4 * which, 4 * which + 4)
        old, new = conv.weight[rows, :, 0, 0, 0], conv.weight[rows, :, 1, 0, 0]
        mixed = torch.einsum("oc,bcfhw->bofhw", old, previous)
        mixed += torch.einsum("oc,bcfhw->bofhw", new, x)
        return mixed + conv.bias[rows].reshape(1, 4, 1, 1, 1)

    torch.testing.assert_close(y[:, :, 0::2], half(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[:, :, 1::2], half(1), rtol=1e-4, atol=1e-5)


def test_a_local_latent_is_that_of_its_own_pixels_alone():
    torch.manual_seed(0)
    encoder = LocalEncoder2d(8, (1, 2, 3), 2, patch=2).eval()
    assert encoder.stride == 8
    x = torch.randn(2, 3, 24, 40)
    z = encoder(x)
    for i in range(3):
        for j in range(5):
            alone = encoder(x[:, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8])
            torch.testing.assert_close(z[:, :, i : i + 1, j : j + 1], alone, rtol=1e-4, atol=1e-5)
    assert (z[:, :, 0, 0] - z[:, :, 0, 1]).abs().max() > 1e-2


def test_local_blocks_in_time_see_their_own_frames_alone():
    torch.manual_seed(0)
    stack = shaken(
        nn.Sequential(
            TemporalDown(6, local=True),
            TemporalResidual(6, local=True),
            TemporalDown(6, local=True),
            TemporalResidual(6, local=True),
        )
    )
    x = torch.randn(1, 6, 12, 2, 3)
    z = stack(x)
    for i in range(3):
        torch.testing.assert_close(z[:, :, i : i + 1], stack(x[:, :, 4 * i : 4 * i + 4]))


def test_position_norm_crosses_no_position_and_takes_clips():
    norm = PositionNorm(5)
    x = torch.randn(2, 5, 3, 4, 6)
    y = norm(x)
    assert torch.allclose(y[:, :, 1], norm(x[:, :, 1]))
    assert torch.allclose(y.square().mean(1), torch.ones(2, 3, 4, 6), atol=1e-4)
