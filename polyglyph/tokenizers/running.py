"""A Euclidean codebook of running means that learns without the vectors × codes matrix.

The same idea as kind "ema" (VQ-VAE, arXiv:1711.00937), made for large codebooks on a CPU: the exact
search of `nearest_code`, sums by index, and no k-means at the start. All codes begin dead, and dead
codes begin anew at vectors of the batch, drawn by their squared distance to the codes there are
(k-means++; Arthur and Vassilvitskii, 2007): where much is alike, such as flat ground, it gets few
codes. Knows nothing of media, projections or training loops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.kernels.nearest_code import ema_sums, nearest_code
from polyglyph.tokenizers.quantize_codebooks import EmaScheme, n_processes, of_process_0

if TYPE_CHECKING:
    from polyglyph.tokenizers.quantize import QuantizerConfig


class RunningScheme(EmaScheme):
    """ "running": one Euclidean codebook, trained by ours."""

    def learner(self, codebook: Tensor) -> nn.Module:
        return RunningCodebook(codebook[0], self.config)

    def learned(self, learner: Any) -> Tensor | None:
        return learner.book()[None]

    def hand_over(self, learner: Any, codebook: Tensor) -> None:
        """Each code gets the statistics of one vector."""
        learner.sums.copy_(codebook[0])
        learner.counts.fill_(1.0)


class RunningCodebook(nn.Module):
    """forward: (B, N, D) → quantized (B, N, D) with the gradient passed straight through, codes
    (B, N), commitment loss.

    counts, sums: running means over steps of how many vectors each code got and of their sum. A
    code whose count falls below `threshold_ema_dead_code` begins anew, sum and count, as if it had
    been given its vector at twice that rate.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codebook: Tensor, config: QuantizerConfig) -> None:
        super().__init__()
        self.decay, self.commitment = config.decay, config.commitment
        self.threshold = config.threshold_ema_dead_code
        self.register_buffer("counts", torch.zeros(len(codebook)))
        self.register_buffer("sums", torch.zeros_like(codebook))

    def book(self) -> Tensor:
        """The codes (K, D)."""
        return self.sums / self.counts.clamp_min(1e-12)[:, None]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = x.detach().flatten(0, -2)
        if self.training:
            self._restart(vectors)
        book = self.book()
        codes = nearest_code(vectors, book)
        if self.training:
            self._update(vectors, codes)
        quantized = book[codes].view_as(x)
        loss = self.commitment * F.mse_loss(x, quantized)
        return x + (quantized - x).detach(), codes.view(x.shape[:-1]), loss

    @torch.no_grad()
    def _update(self, vectors: Tensor, codes: Tensor) -> None:
        found, sums = ema_sums(vectors, codes, len(self.counts))
        counts = found.to(self.counts)
        if n_processes() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)

    @torch.no_grad()
    def _restart(self, vectors: Tensor) -> None:
        """Vectors of process 0 for the dead codes of all."""
        least = max(self.threshold, 1e-6)
        dead = (self.counts < least).nonzero()[:, 0]
        if not len(dead):  # the same on all processes, as are the counts
            return
        alive = self.book()[self.counts >= least]
        weights = torch.ones(len(vectors), device=vectors.device)
        if len(alive):
            _, weights = nearest_code(vectors, alive, distances=True)
        # Some chance for all, and for what is not finite: the loop stops at the loss, not here.
        weights = weights.nan_to_num(0, 0, 0) + 1e-12
        n = torch.tensor(min(len(dead), len(vectors)), device=vectors.device)
        if n_processes() > 1:
            dist.all_reduce(n, dist.ReduceOp.MIN)
        chosen = vectors[torch.multinomial(weights, int(n))].clone()
        chosen, dead = of_process_0(chosen), dead[: int(n)]
        self.counts[dead] = 2 * least
        self.sums[dead] = 2 * least * chosen


__all__ = ["RunningCodebook", "RunningScheme"]
