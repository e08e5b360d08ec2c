"""Wear: bounded, repeatable, per item and channel."""

from __future__ import annotations

import pytest
import torch

from polyglyph.train.wear import wear


@pytest.mark.parametrize(
    ("shape", "channels"), [((64, 3, 5, 7), 1), ((64, 2, 3, 5, 7), 2), ((64, 2, 35), 1)]
)
def test_offsets_are_one_value_per_item_and_channel_within_the_limit(shape, channels):
    x = torch.zeros(shape)
    y = wear(x, 0.0, 0.1, 3, 5)
    rest = tuple(i for i in range(1, x.ndim) if i != channels)
    values = y.amax(rest)
    assert torch.equal(values, y.amin(rest)) and values.abs().max() <= 0.1
    clean = (values == 0).all(1).float().mean()
    assert 0 < clean < 0.3
    touched = values[(values != 0).any(1)]
    assert len(touched.unique()) == touched.numel()


def test_noise_differs_in_strength_from_item_to_item_and_repeats_with_seed_and_step():
    x = torch.rand(32, 3, 16, 16)
    y = wear(x, 0.05, 0.0, 1, 2)
    strengths = (y - x).flatten(1).std(1)
    assert strengths.max() < 0.06 and strengths.max() > 2 * strengths[strengths > 0].min()
    assert torch.equal(y, wear(x, 0.05, 0.0, 1, 2))
    assert not torch.equal(y, wear(x, 0.05, 0.0, 1, 3))
    assert not torch.equal(y, wear(x, 0.05, 0.0, 2, 2))
    assert torch.equal(x, wear(x, 0.0, 0.0, 1, 2))
