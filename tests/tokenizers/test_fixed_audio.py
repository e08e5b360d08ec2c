"""Fixed residual codebooks: exact search, the first ones alone, and no NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyglyph.errors import PolyglyphError
from polyglyph.tokenizers.fixed_audio import FixedResidual, as_steps


def residual() -> FixedResidual:
    net = FixedResidual(3, 7, 4)
    torch.nn.init.normal_(net.codebook, generator=torch.Generator().manual_seed(0))
    return net


def test_each_codebook_is_searched_for_what_the_ones_before_left() -> None:
    net, z = residual(), torch.randn(2, 5, 4)
    kept = z.clone()
    codes = net.encode(z, 3)
    left = z.clone()
    for q in range(3):
        due = torch.cdist(left, net.codebook[q].expand(2, -1, -1)).argmin(-1)
        assert torch.equal(codes[:, q], due)
        left -= net.codebook[q][due]
    torch.testing.assert_close(z - net.decode(codes), left, rtol=1e-5, atol=1e-5)
    assert torch.equal(z, kept) and torch.equal(net.encode(z, 1), codes[:, :1])


def test_latents_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(PolyglyphError, match="NaN"):
        residual().encode(torch.full((1, 2, 4), float("inf")), 1)


def test_steps_of_a_sound_lie_together() -> None:
    wave = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert as_steps(wave).tolist() == [[[0, 3], [1, 4], [2, 5]]]
