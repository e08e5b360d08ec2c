"""The audio trunk: causality, exact frames, folding of the weight norm."""

from __future__ import annotations

import pytest
import torch

from polyglyph.tokenizers.seanet import (
    Analysis,
    CausalConv,
    CausalConvTranspose,
    Decoder,
    Encoder,
    Synthesis,
    fold_weight_norm,
    folded_state,
    is_folded,
)

SHAPE = {"widths": (6, 9, 10), "strides": (3, 5, 2), "n_units": (1, 2, 0), "d_latent": 7, "taps": 2}


def nets() -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    return Encoder(**SHAPE, act="elu").eval(), Decoder(**SHAPE, act="snake").eval()


@torch.no_grad()
def test_frames_are_samples_over_strides_both_ways() -> None:
    encoder, decoder = nets()
    z = encoder(torch.randn(2, 1, 30 * 4))
    assert z.shape == (2, 7, 4) and decoder(z).shape == (2, 1, 30 * 4)


@torch.no_grad()
@pytest.mark.parametrize("frame", [0, 2, 5])
def test_a_later_sample_never_changes_an_earlier_frame(frame: int) -> None:
    encoder, decoder = nets()
    x = torch.randn(1, 1, 30 * 6)
    changed = x.clone()
    changed[..., 30 * frame :] += 1
    a, b = encoder(x), encoder(changed)
    assert torch.equal(a[..., :frame], b[..., :frame]) and not torch.equal(a, b)
    assert torch.equal(decoder(a)[..., : 30 * frame], decoder(b)[..., : 30 * frame])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1,) * 9, (4, 5), (2, 1, 6)])
def test_chunks_that_hand_their_state_on_equal_the_whole(sizes: tuple[int, ...]) -> None:
    encoder, decoder = nets()
    x, z = torch.randn(2, 1, 30 * 9), torch.randn(2, 7, 9)
    past, later = {}, {}
    a = torch.cat([encoder(part, past) for part in x.split([30 * n for n in sizes], -1)], -1)
    b = torch.cat([decoder(part, later) for part in z.split(sizes, -1)], -1)
    torch.testing.assert_close(a, encoder(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(b, decoder(z), rtol=0, atol=1e-5)
    cut = torch.cat([encoder(part) for part in x.split([30 * n for n in sizes], -1)], -1)
    assert not torch.allclose(cut, a), "the past matters"


@torch.no_grad()
def test_stereo_of_two_channels_is_not_mixed_by_the_ends() -> None:
    torch.manual_seed(0)
    ends = [Analysis(4, 3, 2, n_channels=2), Synthesis(4, 3, 2, n_channels=2)]
    x = torch.randn(1, 2, 12)
    weight, bias = ends[0].conv.conv.weight, ends[0].conv.conv.bias  # (4, 2 · 3, 2)
    taps = torch.cat([torch.zeros(1, 2, 3), x], -1).unfold(-1, 6, 3)[0]  # (2, steps, 6)
    filters = weight.unflatten(1, (2, 3)).permute(0, 1, 3, 2).flatten(2)  # (4, 2, 6)
    due = torch.einsum("dck,csk->ds", filters, taps) + bias[:, None]
    torch.testing.assert_close(ends[0](x)[0], due)
    assert ends[1](ends[0](x)).shape == x.shape


@torch.no_grad()
def test_padding_at_the_end_and_batching_change_nothing() -> None:
    encoder, decoder = nets()
    x = torch.randn(3, 1, 30 * 5)
    x[1, :, 60:] = 0
    whole = encoder(x)
    assert torch.allclose(whole[1:2, :, :2], encoder(x[1:2, :, :60]), atol=1e-5)
    assert torch.allclose(decoder(whole)[2:], decoder(whole[2:]), atol=1e-5)


@torch.no_grad()
def test_folding_the_weight_norm_keeps_outputs_and_the_original() -> None:
    trained, fresh = nets(), nets()
    for net, folded, x in zip(
        trained, fresh, (torch.randn(1, 1, 60), torch.randn(1, 7, 2)), strict=True
    ):
        for parameter in net.parameters():
            parameter.mul_(1.1).add_(0.01)
        fold_weight_norm(folded)
        folded.load_state_dict(folded_state(net))
        assert is_folded(folded) and not is_folded(net)
        assert torch.allclose(folded(x), net(x), atol=1e-5)
        assert not any("parametrizations" in key for key in folded.state_dict())


@torch.no_grad()
def test_causal_convolutions_equal_sums_written_out() -> None:
    torch.manual_seed(1)
    x = torch.randn(1, 2, 12)
    down, up = CausalConv(2, 3, 4, stride=2), CausalConvTranspose(2, 3, 4, stride=2)
    weight, bias = down.conv.weight, down.conv.bias
    past = torch.cat([torch.zeros(1, 2, 2), x], dim=-1)
    for i, y in enumerate(down(x)[0].T):
        window = past[0, :, 2 * i : 2 * i + 4]
        assert torch.allclose(y, (weight * window).sum((1, 2)) + bias, atol=1e-5)
    weight, bias = up.conv.weight, up.conv.bias  # (in, out, kernel)
    expected = bias[:, None].repeat(1, 24 + 2)
    for i in range(12):
        expected[:, 2 * i : 2 * i + 4] += (x[0, :, i, None, None] * weight).sum(0)
    assert torch.allclose(up(x)[0], expected[:, :24], atol=1e-5)


@torch.no_grad()
def test_the_signal_keeps_its_level_through_a_fresh_net() -> None:
    encoder, decoder = nets()
    x = torch.randn(4, 1, 600)
    z = encoder(x)
    assert 0.2 < float(z.std()) < 3 and 0.05 < float(decoder(z / z.std()).std()) < 3
