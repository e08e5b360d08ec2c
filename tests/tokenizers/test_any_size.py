"""Media far larger than the training ones: what they cost stays in proportion to their size."""

from __future__ import annotations

import pytest
import torch

from polyglyph.tokenizers import blocks
from polyglyph.tokenizers.blocks import SpatialAttention


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
