"""The schedule, the groups, and optimizer state through plain tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from polyglyph.train.optimizer import (
    Optimizer,
    OptimizerConfig,
    ScheduleConfig,
    clip_gradients,
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    set_rate,
)


def net() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(15, 4))


def work(module: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        set_rate(optimizer, 1e-2 / (1 + step))
        x = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        module(x).square().mean().backward()
        optimizer.step()


def test_the_rate_warms_up_in_a_line_peaks_and_falls_to_the_floor() -> None:
    optimizer, schedule = OptimizerConfig(lr=2e-3), ScheduleConfig(warmup=10, floor=0.1)

    def rate(step: int) -> float:
        return learning_rate(step, 110, optimizer, schedule)

    assert [rate(s) for s in (0, 4, 9)] == pytest.approx([2e-4, 1e-3, 2e-3])
    assert rate(10) == pytest.approx(2e-3)
    assert rate(60) == pytest.approx(2e-3 * (0.1 + 0.9 / 2))  # half of the cosine
    assert rate(110) == rate(10_000) == pytest.approx(2e-4)
    last = 2e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
    assert rate(109) == pytest.approx(last)
    falling = [rate(s) for s in range(10, 110)]
    assert falling == sorted(falling, reverse=True)


def test_a_run_may_be_without_warm_up_or_shorter_than_it() -> None:
    optimizer = OptimizerConfig(lr=1.0)
    assert learning_rate(0, 5, optimizer, ScheduleConfig(warmup=0)) == 1
    assert learning_rate(0, 1, optimizer, ScheduleConfig(warmup=0)) == 1
    short = [learning_rate(s, 3, optimizer, ScheduleConfig(warmup=4)) for s in range(3)]
    assert short == [0.25, 0.5, 0.75]


def test_every_trainable_parameter_is_in_one_group_and_matrices_alone_decay() -> None:
    module = net()
    module[0].bias.requires_grad_(False)
    optimizer = make_optimizer(module, OptimizerConfig(weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    listed = [id(p) for g in optimizer.param_groups for p in g["params"]]
    due = {id(p): 0.1 if p.ndim > 1 else 0.0 for p in module.parameters() if p.requires_grad}
    assert decay == due and len(listed) == len(due) == 5


def test_a_module_without_matrices_makes_one_group() -> None:
    optimizer = make_optimizer(nn.GroupNorm(1, 3), OptimizerConfig())
    assert len(optimizer.param_groups) == 1


def test_a_step_is_that_of_adamw_by_hand() -> None:
    config = OptimizerConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5)
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(2.0)
        module.bias.fill_(3.0)
    optimizer = make_optimizer(module, config)
    m = v = 0.0
    weight, bias = 2.0, 3.0
    for step in (1, 2):
        optimizer.zero_grad()
        (0.5 * (module.weight.sum() + module.bias.sum())).backward()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * 0.5, 0.9 * v + 0.1 * 0.25
        move = 0.1 * (m / (1 - 0.8**step)) / (math.sqrt(v / (1 - 0.9**step)) + 1e-6)
        weight, bias = weight * (1 - 0.1 * 0.5) - move, bias - move
    assert float(module.weight.detach()) == pytest.approx(weight, rel=1e-5)
    assert float(module.bias.detach()) == pytest.approx(bias, rel=1e-5)


def test_muon_turns_linear_weights_by_an_orthogonal_step_and_leaves_the_rest_to_adamw() -> None:
    config = OptimizerConfig(kind="muon", lr=1e-2, weight_decay=0.5)
    module, twin = net(), net()
    optimizer, adamw = (
        make_optimizer(module, config),
        make_optimizer(twin, OptimizerConfig(lr=1e-2, weight_decay=0.5)),
    )
    before = module[3].weight.detach().clone()
    gradient = torch.randn(4, 15, generator=torch.Generator().manual_seed(1))
    for one, stepped in ((module, optimizer), (twin, adamw)):
        one(
            torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(2))
        ).square().mean().backward()
        one[3].weight.grad = gradient.clone()
        stepped.step()
    for name, value in module.named_parameters():
        same = torch.equal(value, dict(twin.named_parameters())[name])
        assert same != (name == "3.weight"), name
    moved = (before * (1 - 1e-2 * 0.5) - module[3].weight.detach()) / (1e-2 * 0.2 * math.sqrt(15))
    u, _, vt = torch.linalg.svd(gradient, full_matrices=False)
    # The library's five Newton-Schulz steps leave singular values between 0.7 and 1.2.
    assert float(torch.linalg.svdvals(moved).min()) > 0.6
    assert float(torch.linalg.svdvals(moved).max()) < 1.3
    assert float((moved * (u @ vt)).sum() / (moved.norm() * (u @ vt).norm())) > 0.97


@pytest.mark.parametrize(("kind", "n_tensors"), [("adamw", 6 * 3), ("muon", 5 * 3 + 1)])
def test_state_through_tensors_continues_bit_for_bit(kind: str, n_tensors: int) -> None:
    config = OptimizerConfig.model_validate({"kind": kind, "weight_decay": 0.1})
    whole, cut = net(), net()
    optimizer = make_optimizer(whole, config)
    work(whole, optimizer, range(6))
    first = make_optimizer(cut, config)
    work(cut, first, range(3))
    saved = {k: v.clone() for k, v in optimizer_tensors(first).items()}
    assert all(isinstance(v, torch.Tensor) for v in saved.values()) and len(saved) == n_tensors
    fresh = net()
    fresh.load_state_dict(cut.state_dict())
    second = make_optimizer(fresh, config)
    load_optimizer(second, saved)
    work(fresh, second, range(3, 6))
    assert all(map(torch.equal, fresh.parameters(), whole.parameters()))
    forgetful = make_optimizer(cut, config)
    load_optimizer(forgetful, {})  # of a run that has done no step
    assert optimizer_tensors(forgetful) == {}
    work(cut, forgetful, range(3, 6))
    assert not all(map(torch.equal, cut.parameters(), whole.parameters()))


def test_gradients_are_clipped_to_the_global_norm_and_the_norm_before_is_told() -> None:
    module = nn.Linear(2, 1)
    for limit, due in ((1.0, 1.0), (10.0, 5.0), (0.0, 5.0)):
        module.weight.grad, module.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
        assert clip_gradients(module, limit) == pytest.approx(5.0)
        grads = torch.cat([module.weight.grad.flatten(), module.bias.grad])
        assert float(grads.norm()) == pytest.approx(due, rel=1e-5)
    module.weight.grad = torch.tensor([[math.nan, 0.0]])
    assert math.isnan(clip_gradients(module, 1.0))
