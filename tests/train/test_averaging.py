"""The running mean of weights against its formula; swapping it in and out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyglyph.train.averaging import WeightAverage


def test_the_mean_follows_its_formula_with_a_short_memory_at_first() -> None:
    net = nn.Linear(2, 3)
    average = WeightAverage(net, 0.25)
    due = net.weight.detach().clone()
    for n in range(4):
        with torch.no_grad():
            net.weight.add_(1.0)
        average.update(net)
        decay = min(0.25, (1 + n) / (10 + n))
        due = decay * due + (1 - decay) * net.weight.detach()
    torch.testing.assert_close(average.means["weight"], due)


def test_what_is_swapped_in_is_swapped_out_again_also_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    net[1].requires_grad_(False)
    average = WeightAverage(net, 0.5)
    with torch.no_grad():
        net[0].weight.mul_(3)
    own, mean = net[0].weight.detach().clone(), average.means["0.weight"].clone()
    frozen = net[1].weight
    with average.swapped_in(net):
        assert torch.equal(net[0].weight, mean) and net[1].weight is frozen
    with pytest.raises(RuntimeError), average.swapped_in(net):
        raise RuntimeError
    assert torch.equal(net[0].weight, own) and torch.equal(average.means["0.weight"], mean)
    assert set(average.means) == {"0.weight", "0.bias"}


def test_a_loaded_average_goes_on_as_the_saved_one() -> None:
    net = nn.Linear(2, 2)
    one, other = WeightAverage(net, 0.9), WeightAverage(nn.Linear(2, 2), 0.9)
    one.update(net)
    other.load({k: v.clone() for k, v in one.tensors().items()}, one.n_updates)
    with torch.no_grad():
        net.weight.add_(1)
    one.update(net)
    other.update(net)
    assert all(torch.equal(one.means[k], other.means[k]) for k in one.means)
