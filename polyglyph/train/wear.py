"""The damage through which a steady codec keeps its codes (`loss.steady`).

A code whose cell is no wider than a rounding error is another code after every compression: without
this the image codec of `tiny` spent a code on each shade of the dark ground. A pure function of
(seed, step). Knows no modality.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def wear(batch: Tensor, noise: float, shift: float, seed: int, step: int) -> Tensor:
    """The batch (B, ..., C, H, W) or (B, C, S) in [-1, 1] with Gaussian noise and offsets.

    noise: the largest standard deviation, drawn per item; shift: the largest offset, drawn per item
    and channel. An eighth of the items stay clean.
    """
    # Mixed by numpy: torch's generator on a CPU reads only 32 bits of its seed.
    mixed = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    draws = torch.Generator().manual_seed(mixed)
    per_item = (len(batch), *(1,) * (batch.ndim - 1))
    deviation = noise * torch.rand(per_item, generator=draws)
    channels = batch.ndim - (3 if batch.ndim > 3 else 2)
    per_channel = [1] * batch.ndim
    per_channel[0], per_channel[channels] = batch.shape[0], batch.shape[channels]
    offset = shift * (2 * torch.rand(per_channel, generator=draws) - 1)
    worn = torch.rand(per_item, generator=draws) >= 1 / 8
    damage = deviation * torch.randn(batch.shape, generator=draws) + offset
    return batch + (damage * worn).to(batch)
