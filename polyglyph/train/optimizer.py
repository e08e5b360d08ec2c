"""AdamW and Muon, the learning-rate schedule, and optimizer state as plain tensors.

Training state is saved without pickle: tensors under flat names beside a JSON of numbers. Every
trainable parameter belongs to exactly one group, asserted. Knows nothing of losses or data.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyglyph.config import Config


class OptimizerConfig(Config):
    """`[optimizer]`. clip: largest global gradient norm, 0 for none.

    kind: AdamW for everything; or Muon (orthogonalised momentum, 2502.16982) for the weights of
    linear layers, its steps scaled to the root mean square of AdamW's so that both share `lr` and
    `weight_decay`, and AdamW for the rest. momentum: Muon's.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)
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


class Optimizer:
    """One or two torch optimizers over disjoint parameters, stepped as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """An optimizer of every trainable parameter; weight decay on matrices and kernels only."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    linear = {m.weight for m in module.modules() if isinstance(m, nn.Linear)}
    turned = [p for p in trainable if config.kind == "muon" and p in linear]
    decayed = [p for p in trainable if p.ndim >= 2 and not any(p is t for t in turned)]
    plain = [p for p in trainable if p.ndim < 2]
    assert len(turned) + len(decayed) + len(plain) == len(trainable)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    parts: list[torch.optim.Optimizer] = []
    if any(g["params"] for g in groups):
        adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        parts.append(adamw)
    if turned:
        muon = torch.optim.Muon(
            turned,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        parts.append(muon)
    return Optimizer(parts)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(module: nn.Module, limit: float) -> float:
    """Clips in place; returns the global norm before clipping."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit else math.inf)
    return float(norm)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of every parameter under `<part>.<index>.<name>`; rates are set again each step."""
    return {
        f"{n}.{i}.{key}": torch.as_tensor(value)
        for n, part in enumerate(optimizer.parts)
        for i, state in part.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizer.parts]
    for name, value in tensors.items():
        part, index, key = name.split(".", 2)
        states[int(part)].setdefault(int(index), {})[key] = value
    for part_, state in zip(optimizer.parts, states, strict=True):
        groups = part_.state_dict()["param_groups"]
        part_.load_state_dict({"state": state, "param_groups": groups})
