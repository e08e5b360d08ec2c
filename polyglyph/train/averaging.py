"""A running mean of a net's parameters, which encodes and decodes better than the last step's.

Kept beside the net that trains, swapped in where a codec is checked or exported. Buffers (EMA
codebooks are running means already) are the net's own. Knows nothing of codecs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The mean of the trainable parameters of `net`, with weight `decay` on what was before.

    At first the decay is (1 + n) / (10 + n) after n updates, if that is less: a net's first steps
    would otherwise stay in the mean for long."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        assert 0 < decay < 1
        self.decay = decay
        self.n_updates = 0
        self.means = {k: p.detach().clone() for k, p in _trainable(net)}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the parameters as they are after a step."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        for name, parameter in _trainable(net):
            self.means[name].lerp_(parameter.detach(), 1 - decay)
        self.n_updates += 1

    @contextmanager
    def swapped_in(self, net: nn.Module) -> Iterator[None]:
        """The net has the means as its parameters inside the block, its own again after it."""
        self._swap(net)
        try:
            yield
        finally:
            self._swap(net)

    @torch.no_grad()
    def _swap(self, net: nn.Module) -> None:
        for name, parameter in _trainable(net):
            mean = self.means[name]
            own = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(own)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.means)

    def load(self, tensors: dict[str, Tensor], n_updates: int) -> None:
        """Inverse of `tensors` and `n_updates`."""
        assert tensors.keys() == self.means.keys()
        for name, value in tensors.items():
            self.means[name].copy_(value)
        self.n_updates = n_updates


def _trainable(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(k, p) for k, p in net.named_parameters() if p.requires_grad]
