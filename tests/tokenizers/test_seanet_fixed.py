"""SEANet of fixed weights: pieces of a sound, and what a stream needs of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from polyglyph.tokenizers import seanet_fixed
from polyglyph.tokenizers.seanet_fixed import SeanetDecoder, SeanetEncoder, SeanetShape, pieces

SHAPE = SeanetShape(width=4, d_latent=3, ratios=(3, 2), n_units=2)


def test_pieces_make_up_the_whole_and_the_last_is_never_short() -> None:
    for n in (1, 9, 10, 19, 20, 57):
        found = pieces(n, 10)
        assert found[0][0] == 0 and found[-1][1] == n
        assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
        assert len(found) == 1 or 10 <= found[-1][1] - found[-1][0] < 20


@torch.no_grad()
def test_pieces_of_a_sound_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    nets = SeanetEncoder(SHAPE), SeanetDecoder(SHAPE)
    for net in nets:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 40 * 6 + 5, 1)
    z = nets[0](x)
    y = nets[1](z)
    assert z.shape == (1, 41, 3) and y.shape == (1, 41 * 6, 1)
    monkeypatch.setattr(seanet_fixed, "_PIECE", 1)
    torch.testing.assert_close(nets[0](x), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nets[1](z), y, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("n_lstm", [0, 1])
def test_windows_of_a_net_that_looks_both_ways_are_the_whole(mode: str, n_lstm: int) -> None:
    torch.manual_seed(0)
    shape = SeanetShape(
        width=4, d_latent=3, ratios=(3, 2), n_units=2, n_lstm=n_lstm, causal=False, mode=mode
    )
    nets = SeanetEncoder(shape), SeanetDecoder(shape)
    for net in nets:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    for n in (1, 40 * 6 + 5, 90 * 6):
        x = torch.randn(1, n, 1)
        z = nets[0](x)
        for net, whole, due in ((nets[0], x, z), (nets[1], z, nets[1](z))):
            push, made = net.windows(7), []
            for part in whole.split(50, dim=1):
                made += list(push(part, False))
            assert n < 50 or made
            made += list(push(whole[:, :0], True))
            torch.testing.assert_close(torch.cat(made, dim=1), due, rtol=1e-5, atol=1e-5)
