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
