"""The random generators that training draws from, as tensors of its saved state."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the CPU's generator and, on a GPU, of the device's."""
    states = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng_cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Inverse of `random_state`; a run that began on a CPU has no state for a GPU."""
    torch.set_rng_state(states["rng"].cpu().to(torch.uint8))
    if device.type == "cuda" and "rng_cuda" in states:
        torch.cuda.set_rng_state(states["rng_cuda"].cpu().to(torch.uint8), device)
