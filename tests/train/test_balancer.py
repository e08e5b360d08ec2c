"""EnCodec's balancer: what each loss gets of the gradient, whatever its scale."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from polyglyph.train.balancer import Balancer


def output(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A leaf (3, 2, 5) and a tensor made of it."""
    leaf = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return leaf, leaf * 1.0


def test_every_loss_gets_its_share_of_a_unit_norm_whatever_its_scale() -> None:
    a, b = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    due = sum(w / 4 * g / g.flatten(1).norm(dim=1).mean() for w, g in ((3.0, a), (1.0, b)))
    for scale in (1.0, 1e4, 1e-4):
        leaf, x = output()
        losses = {"one": scale * (x * a).sum(), "two": (x * b).sum()}
        Balancer().backward(losses, {"one": 3.0, "two": 1.0}, x)
        torch.testing.assert_close(leaf.grad, due, rtol=1e-4, atol=1e-6)


def test_the_norms_are_running_means_without_bias() -> None:
    a = torch.randn(3, 2, 5)
    balancer = Balancer(decay=0.5)
    for scale in (1.0, 3.0):
        leaf, x = output()
        balancer.backward({"one": scale * (x * a).sum()}, {"one": 2.0}, x)
    norm = float(a.flatten(1).norm(dim=1).mean())
    mean = (0.5 * norm + 3 * norm) / 1.5
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 3 * a / mean, rtol=1e-5, atol=1e-7)


def test_what_is_not_of_the_output_comes_as_it_stands_and_no_weight_means_no_pull() -> None:
    leaf, x = output()
    rest = 5 * leaf[0, 0, 0]
    losses = {"one": x.sum(), "none": x.square().sum()}
    Balancer().backward(losses, {"one": 1.0, "none": 0.0}, x, rest)
    assert leaf.grad is not None
    due = torch.full((3, 2, 5), 10**-0.5)
    due[0, 0, 0] += 5
    torch.testing.assert_close(leaf.grad, due)


def test_its_state_survives_json_to_the_last_bit() -> None:
    one, other = Balancer(), Balancer()
    for seed in range(3):
        _, x = output(seed)
        one.backward({"a": x.square().sum()}, {"a": 1.0}, x)
    other.load_numbers(json.loads(json.dumps(one.numbers())))
    grads = []
    for balancer in (one, other):
        leaf, x = output(9)
        balancer.backward({"a": x.square().sum()}, {"a": 1.0}, x)
        grads.append(leaf.grad)
    assert torch.equal(*grads) and one.sums["a"] == pytest.approx(other.sums["a"], abs=0)
