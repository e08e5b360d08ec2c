"""EnCodec's gradient balancer (2210.13438, section 3.4).

Every loss of a codec's output pulls at that output with a gradient; the balancer brings each to
its share w / Σw of a unit norm, whatever the loss's own scale, so that weights say how much a loss
moves the codec and not how large its values are. Knows nothing of codecs: losses, weights and the
tensor that the losses are of.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_EPS = 1e-12


class Balancer:
    """Running means of the gradients' norms per item, and the backward pass that uses them."""

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def backward(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        output: Tensor,
        rest: Tensor | None = None,
    ) -> None:
        """Backward of `losses` of `output` (B, ...), balanced, and of `rest` as it stands.

        weights: of every loss in `losses`, at least one above 0."""
        total = sum(weights[name] for name in losses)
        assert total > 0
        pull = torch.zeros_like(output)
        for name, loss in losses.items():
            if not weights[name]:
                continue
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
            size = self._mean_norm(name, float(gradient.flatten(1).norm(dim=1).mean()))
            pull += gradient * (weights[name] / total / (size + _EPS))
        if rest is None or not rest.requires_grad:
            torch.autograd.backward([output], [pull])
        else:
            torch.autograd.backward([output, rest], [pull, torch.ones_like(rest)])

    def _mean_norm(self, name: str, norm: float) -> float:
        """The running mean of a norm with `norm` taken in, unbiased from the first step on."""
        self.sums[name] = self.sums.get(name, 0.0) * self.decay + norm
        self.counts[name] = self.counts.get(name, 0.0) * self.decay + 1.0
        return self.sums[name] / self.counts[name]

    def numbers(self) -> dict[str, dict[str, float]]:
        """The state as plain JSON data."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_numbers(self, numbers: Mapping[str, Mapping[str, float]]) -> None:
        self.sums, self.counts = dict(numbers["sums"]), dict(numbers["counts"])
