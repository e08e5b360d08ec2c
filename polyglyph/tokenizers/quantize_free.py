"""Quantizers without a learned codebook: a code is read off the vector's coordinates.

FSQ rounds every coordinate to one of a few levels, residual FSQ does so again with what was left at
a finer scale, LFQ takes the signs, BSQ the signs on the unit sphere. Codes are numbered as in
vector-quantize-pytorch, whose classes train the projections around them: FSQ's lowest digit is the
first coordinate, LFQ's highest bit is. The codebook (Q, K, d_code) is implied by the configuration;
it is kept for looking codes up, and never saved.

Papers: FSQ (2309.15505), its symmetric levels (2411.19842), LFQ (MAGVIT-v2, 2310.05737), BSQ
(2406.07548). Knows nothing of media, ids, projections or training loops.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.tokenizers.quantize_codebooks import Scheme, mean_of_processes, n_processes

if TYPE_CHECKING:
    from polyglyph.tokenizers.quantize import QuantizerConfig

# FSQ's bound is a little wider than its outermost levels, so that rounding reaches them.
_MARGIN = 1e-3


class FreeScheme(Scheme):
    """A scheme whose codebook follows from its configuration."""

    saved = False

    @abstractmethod
    def grid(self) -> Tensor:
        """What the codes 0 … K - 1 stand for, (K, d_code)."""

    def start(self) -> Tensor:
        return self.grid()[None].repeat(self.config.n_codebooks, 1, 1)


class LevelScheme(FreeScheme):
    """A code is a number whose digits are the levels of the coordinates, the first one lowest."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.commitment = 0.0  # there is nothing to commit to

    def levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.levels, dtype=like.dtype, device=like.device)

    def basis(self, like: Tensor) -> Tensor:
        """What a step of each coordinate adds to the code, int64 (d_code,)."""
        return torch.tensor([1, *self.config.levels[:-1]], device=like.device).cumprod(0)

    def digits(self) -> Tensor:
        """Of the codes 0 … K - 1: the level of every coordinate, int64 (K, d_code)."""
        codes = torch.arange(self.config.codebook_size)[:, None]
        return (codes // self.basis(codes)) % self.levels(codes)


class FiniteScheme(LevelScheme):
    """ "fsq": each coordinate to one of its levels."""

    def grid(self) -> Tensor:
        half = torch.tensor(self.config.levels) // 2
        return (self.digits() - half) / half

    def _bounded(self, x: Tensor) -> Tensor:
        """(…, d_code) to levels -L//2 … (L - 1)//2, not yet rounded."""
        levels = self.levels(x)
        half = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def normed(self, x: Tensor) -> Tensor:
        bounded = self._bounded(x.unflatten(-1, (self.groups, -1)))
        return (bounded / (self.levels(x) // 2)).flatten(-2)

    def search(self, x: Tensor, codebook: Tensor, n_codebooks: int) -> Tensor:
        level = self._bounded(x.unflatten(-1, (self.groups, -1))[:, :n_codebooks]).round()
        return ((level + self.levels(x) // 2).long() * self.basis(x)).sum(-1)

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import FSQ

        c = self.config
        return FSQ(list(c.levels), num_codebooks=c.n_codebooks)


class ResidualFiniteScheme(LevelScheme):
    """ "rfsq": symmetric levels; codebook q sees what is left at the scale levels^-q."""

    def grid(self) -> Tensor:
        return self.digits() * (2.0 / (torch.tensor(self.config.levels) - 1)) - 1

    def start(self) -> Tensor:
        levels = torch.tensor(self.config.levels).float()
        scales = [levels**-q for q in range(self.config.n_codebooks)]
        return torch.stack([self.grid() * scale for scale in scales])

    def normed(self, x: Tensor) -> Tensor:
        edge = 1 + 1 / (self.levels(x) - 1)
        return (x / edge).tanh() * edge

    def search(self, x: Tensor, codebook: Tensor, n_codebooks: int) -> Tensor:
        left, steps, basis = self.normed(x), self.levels(x) - 1, self.basis(x)
        codes = []
        for q in range(n_codebooks):
            scaled = (left / self.levels(x) ** -q).clamp(-1, 1)
            level = (steps * (scaled + 1) / 2 + 0.5).floor().long()
            codes.append((level * basis).sum(-1))
            left = left - codebook[q][codes[-1]]
        return torch.stack(codes, dim=-1)

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import ResidualFSQ

        c = self.config
        return ResidualFSQ(
            levels=list(c.levels),
            num_quantizers=c.n_codebooks,
            quantize_dropout=c.quantize_dropout,
        )


class SignScheme(FreeScheme):
    """ "lfq": the sign of each coordinate; "bsq": the same with both sides on the unit sphere."""

    def _on_sphere(self, x: Tensor) -> Tensor:
        """(…, d_code), of unit length for "bsq"."""
        return F.normalize(x, dim=-1) if self.config.kind == "bsq" else x

    def _weights(self, like: Tensor) -> Tensor:
        return 2 ** torch.arange(self.config.d_code - 1, -1, -1, device=like.device)

    def grid(self) -> Tensor:
        codes = torch.arange(self.config.codebook_size)[:, None]
        bits = (codes & self._weights(codes)) != 0
        return self._on_sphere(bits.float() * 2 - 1)

    def normed(self, x: Tensor) -> Tensor:
        return self._on_sphere(x.unflatten(-1, (self.groups, -1))).flatten(-2)

    def search(self, x: Tensor, codebook: Tensor, n_codebooks: int) -> Tensor:
        bits = x.unflatten(-1, (self.groups, -1))[:, :n_codebooks] > 0
        return (bits * self._weights(x)).sum(-1)

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import LFQ

        c = self.config
        return LFQ(
            dim=self.width,
            codebook_size=c.codebook_size,
            num_codebooks=c.n_codebooks,
            spherical=c.kind == "bsq",
            commitment_loss_weight=c.commitment,
            entropy_loss_weight=c.entropy_weight,
        )

    def learn(self, learner: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The entropy of the codes' mean frequencies is that of all processes together."""
        if n_processes() == 1:
            return super().learn(learner, x)
        from vector_quantize_pytorch import lookup_free_quantization as library

        # The library's own adds the processes up in a copy, drops it, and divides what it has by
        # their number (1.32): of two processes, each would see half of its own frequencies.
        before = library.maybe_distributed_mean
        library.maybe_distributed_mean = mean_of_processes
        try:
            return super().learn(learner, x)
        finally:
            library.maybe_distributed_mean = before
