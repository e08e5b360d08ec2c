"""AdamW, the learning-rate schedule, and optimizer state as plain tensors.

Training state is saved without pickle: tensors under flat names beside a JSON of numbers. Every
trainable parameter belongs to exactly one group, asserted. Knows nothing of losses or data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from polyglyph.config import Config


class OptimizerConfig(Config):
    """`[optimizer]`: AdamW. clip: largest global gradient norm, 0 for none."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0)


class ScheduleConfig(Config):
    """`[schedule]`: linear warm-up, then a cosine down to `floor` times the peak."""

    warmup: int = Field(100, ge=0)
    floor: float = Field(0.0, ge=0, le=1)


def learning_rate(
    step: int, n_steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> float:
    """The rate of step 0 … n_steps - 1."""
    if step < schedule.warmup:
        return optimizer.lr * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, n_steps - schedule.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optimizer.lr * (schedule.floor + (1 - schedule.floor) * cosine)


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over every trainable parameter; weight decay on matrices and kernels only."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    plain = [p for p in trainable if p.ndim < 2]
    assert len(decayed) + len(plain) == len(trainable)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(module: nn.Module, limit: float) -> float:
    """Clips in place; returns the global norm before clipping."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit else math.inf)
    return float(norm)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter under `<index>.<name>`; rates are set again each step."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, s in state.items() for k, v in s.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
