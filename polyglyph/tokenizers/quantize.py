"""Vector quantizers: latents (B, N, D) ↔ codes (B, N, Q).

The form that is saved and that encodes is ours: a projection to `d_code`, plain `codebook`
tensors (Q, K, d_code), a projection back. While a codec is trained, a quantizer of
vector-quantize-pytorch learns the codebooks (EMA statistics, k-means start, dead-code restart)
in the same `d_code` space; `test_quantize` holds that both choose the same codes. The library is
slow to import and its state never enters a saved codec.

Papers: VQ-VAE (1711.00937), low-dimensional l2-normalised codes (ViT-VQGAN, 2110.04627),
residual quantization (SoundStream, 2107.03312), rotation trick (2410.06424).
Knows nothing of media, ids or training loops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from polyglyph.config import Config
from polyglyph.kernels.nearest_code import nearest_code


class QuantizerConfig(Config):
    """`[quantizer]` of a codec's configuration.

    kind: "vq" one codebook, both sides l2-normalised; "rvq" residual codebooks, Euclidean.
    commitment: weight of the commitment loss. decay: of the EMA statistics.
    threshold_ema_dead_code: codes whose EMA count falls below it are restarted.
    """

    kind: Literal["vq", "rvq"] = "vq"
    codebook_size: int = Field(1024, ge=2)
    n_codebooks: int = Field(1, ge=1)
    d_code: int = Field(8, ge=1)
    decay: float = Field(0.9, gt=0, lt=1)
    commitment: float = Field(0.25, ge=0)
    threshold_ema_dead_code: float = Field(1.0, ge=0)
    rotation_trick: bool = True
    kmeans_init: bool = True
    quantize_dropout: bool = False

    @model_validator(mode="after")
    def _vq_has_one_codebook(self) -> QuantizerConfig:
        if self.kind == "vq" and self.n_codebooks != 1:
            raise ValueError("kind 'vq' has one codebook; for more take kind 'rvq'")
        return self


@dataclass
class QuantizerOutput:
    quantized: Tensor  # (B, N, D)
    codes: Tensor  # (B, N, Q) int64
    loss: Tensor  # scalar, already weighted


@dataclass(frozen=True)
class CodebookUse:
    """How one codebook was used by a set of codes."""

    usage: float  # share of codes that occur at least once
    perplexity: float  # exp of the entropy of the code frequencies
    dead: float  # share of codes that never occur


class Quantizer(nn.Module):
    """Maps vectors of width D to Q codes each, and back.

    Shapes: forward (B, N, D) → QuantizerOutput; encode (B, N, D) → (B, N, Q);
    decode (B, N, Q' ≤ Q) → (B, N, D).
    """

    codebook: Tensor

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.project_in = nn.Linear(width, config.d_code)
        self.project_out = nn.Linear(config.d_code, width)
        shape = (config.n_codebooks, config.codebook_size, config.d_code)
        self.register_buffer("codebook", self._normed(torch.randn(shape) / math.sqrt(shape[-1])))
        self.learner: nn.Module | None = None

    def _normed(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.config.kind == "vq" else x

    def attach_learner(self, *, warm: bool = False) -> None:
        """Hand the codebooks to vector-quantize-pytorch, which trains them from here on.

        warm: begin from our codebooks (a codec that is trained further), not from k-means.
        """
        if self.learner is not None:
            return
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize

        c = self.config
        common = {
            "dim": c.d_code,
            "codebook_size": c.codebook_size,
            "decay": c.decay,
            "commitment_weight": c.commitment,
            "threshold_ema_dead_code": c.threshold_ema_dead_code,
            "rotation_trick": c.rotation_trick,
            "kmeans_init": c.kmeans_init,
        }
        if c.kind == "vq":
            self.learner = VectorQuantize(use_cosine_sim=True, **common)
        else:
            self.learner = ResidualVQ(
                num_quantizers=c.n_codebooks, quantize_dropout=c.quantize_dropout, **common
            )
        self.learner.to(self.codebook.device)
        if warm:
            self._hand_over()

    @torch.no_grad()
    def _hand_over(self) -> None:
        """Give the learner our codebooks, each code with the statistics of one vector."""
        layers = [self.learner] if self.config.kind == "vq" else list(self.learner.layers)  # type: ignore[union-attr, arg-type]
        for layer, book in zip(layers, self.codebook, strict=True):
            state = layer._codebook  # type: ignore[union-attr]
            state.embed.copy_(book[None])
            state.embed_avg.copy_(book[None])
            state.cluster_size.fill_(1.0)
            state.initted.fill_(True)

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the learner's codebooks into ours."""
        if self.learner is None:
            return
        learned = self.learner.codebook if self.config.kind == "vq" else self.learner.codebooks
        self.codebook.copy_(self._normed(learned.reshape(self.codebook.shape).float()))

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize in training (learner attached) or straight through with fixed codebooks."""
        # fp32 island: bf16 distances choose other codes (vector-quantize-pytorch#105).
        with torch.autocast(z.device.type, enabled=False):
            x = self.project_in(z.float())
            if self.learner is not None and self.training:
                quantized, codes, loss = self.learner(x)
                codes = codes.reshape(*x.shape[:2], -1)
                return QuantizerOutput(self.project_out(quantized), codes, loss.sum())
            codes = self._search(x, self.config.n_codebooks)
            quantized = self._lookup(codes)
            loss = F.mse_loss(self._normed(x), quantized) * self.config.commitment
            straight = x + (quantized - x).detach()
            return QuantizerOutput(self.project_out(straight), codes, loss)

    def _search(self, x: Tensor, n_codebooks: int) -> Tensor:
        metric = "cosine" if self.config.kind == "vq" else "euclidean"
        residual = x.reshape(-1, x.shape[-1])
        codes = []
        for book in self.codebook[:n_codebooks]:
            code = nearest_code(residual, book, metric=metric)
            codes.append(code)
            if self.config.kind == "rvq":
                residual = residual - book[code]
        return torch.stack(codes, dim=-1).reshape(*x.shape[:2], -1)

    def _lookup(self, codes: Tensor) -> Tensor:
        books = self.codebook[: codes.shape[-1]]
        return torch.stack([book[codes[..., q]] for q, book in enumerate(books)]).sum(0)

    @torch.no_grad()
    def encode(self, z: Tensor, n_codebooks: int | None = None) -> Tensor:
        """(B, N, D) → codes (B, N, Q) int64 by exact search over the plain codebooks."""
        return self._search(self.project_in(z.float()), n_codebooks or self.config.n_codebooks)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N, Q' ≤ Q) → (B, N, D)."""
        return self.project_out(self._lookup(codes))


def codebook_use(codes: Tensor, codebook_size: int) -> list[CodebookUse]:
    """Usage, perplexity and dead share of every codebook; codes (..., Q)."""
    uses = []
    for q in range(codes.shape[-1]):
        found = codes[..., q].reshape(-1)
        found = found[found >= 0]  # -1: left out of this step by quantize_dropout
        count = torch.bincount(found, minlength=codebook_size).double()
        p = count / count.sum().clamp(min=1)
        entropy = -(p[p > 0] * p[p > 0].log()).sum()
        usage = float((count > 0).double().mean())
        uses.append(CodebookUse(usage, float(entropy.exp()), 1.0 - usage))
    return uses
