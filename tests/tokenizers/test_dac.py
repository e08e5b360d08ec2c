"""DAC's quantizer: residuals are taken on the whole latent, codes compared by direction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polyglyph.errors import PolyglyphError
from polyglyph.tokenizers.dac import DacConfig, DacQuantizer


def quantizer() -> DacQuantizer:
    torch.manual_seed(0)
    net = DacQuantizer(DacConfig(n_codebooks=3, codebook_size=9, d_latent=6, d_code=2))
    for tensor in (*net.parameters(), net.codebook):
        torch.nn.init.normal_(tensor)
    return net


@torch.no_grad()
def test_each_codebook_takes_the_nearest_direction_of_what_is_left() -> None:
    net, z = quantizer(), torch.randn(2, 5, 6)
    codes = net.encode(z, 3)
    left = z.clone()
    for q in range(3):
        low = left @ net.in_weight[q].t() + net.in_bias[q]
        scores = F.normalize(low, dim=-1) @ F.normalize(net.codebook[q], dim=-1).t()
        assert torch.equal(codes[:, q], scores.argmax(-1))
        left -= net.codebook[q][codes[:, q]] @ net.out_weight[q].t() + net.out_bias[q]
    torch.testing.assert_close(z - net.decode(codes), left, rtol=1e-4, atol=1e-4)
    assert torch.equal(net.encode(z, 2), codes[:, :2])


def test_latents_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(PolyglyphError, match="NaN"):
        quantizer().encode(torch.full((1, 2, 6), float("nan")), 1)
