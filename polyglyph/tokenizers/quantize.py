"""Vector quantizers under one contract: latents (B, N, D) ↔ codes (B, N, Q).

The form that is saved and that encodes is ours: a projection to the codes' space, plain `codebook`
tensors (Q, K, d_code) or none, a projection back. While a codec is trained, a learner stands
between the projections (of vector-quantize-pytorch, but for IBQ); `test_quantize` holds that both
choose the same codes. The library is slow to import and its state never enters a saved codec.

The kinds are schemes: with a codebook in quantize_codebooks, without one in quantize_free.
Papers stand there; rotation trick: 2410.06424. Knows nothing of media, ids or training loops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from polyglyph.config import Config
from polyglyph.errors import InputError, PolyglyphError
from polyglyph.tokenizers.quantize_codebooks import (
    CosineScheme,
    EmaScheme,
    GroupedScheme,
    IndexScheme,
    ResidualScheme,
    Scheme,
    SimScheme,
)
from polyglyph.tokenizers.quantize_free import FiniteScheme, ResidualFiniteScheme, SignScheme
from polyglyph.tokenizers.running import RunningScheme

Kind = Literal[
    "vq", "ema", "running", "rvq", "grouped", "fsq", "rfsq", "lfq", "bsq", "simvq", "ibq"
]
SCHEMES: dict[str, type[Scheme]] = {
    "vq": CosineScheme,
    "ema": EmaScheme,
    "rvq": ResidualScheme,
    "grouped": GroupedScheme,
    "fsq": FiniteScheme,
    "rfsq": ResidualFiniteScheme,
    "lfq": SignScheme,
    "bsq": SignScheme,
    "simvq": SimScheme,
    "ibq": IndexScheme,
    "running": RunningScheme,
}
_LEVELS = ("fsq", "rfsq")
_SIGNS = ("lfq", "bsq")
_SPLIT = ("fsq", "lfq", "bsq")  # several codebooks divide the vector among them
_DROPOUT = ("rvq", "grouped", "rfsq")


class QuantizerConfig(Config):
    """`[quantizer]` of a codec's configuration.

    kind: with a codebook "vq" (one, both sides l2-normalised), "ema" (one, Euclidean), "running"
    (the same, trained by ours, for many codes on a CPU), "rvq" (residual), "grouped" (n_groups
    parts of the vector, n_codebooks / n_groups residual codebooks each), "simvq", "ibq"; without
    one "fsq", "rfsq" (residual), "lfq", "bsq".
    codebook_size, d_code: of one codebook. Where levels (fsq, rfsq) or bits (lfq, bsq: 2^d_code)
    fix them they may be left out. n_codebooks: of fsq, lfq and bsq they divide the vector.
    commitment: weight of the commitment loss (of the codebook's in ibq, where 0.25 is the paper's).
    entropy_weight: of the entropy loss of lfq, bsq and ibq. decay: of the EMA statistics.
    threshold_ema_dead_code: codes whose EMA count falls below it are restarted; 0: never.
    restart: at which vectors of the batch, "random" ones or "far" from every code: where most of a
    batch is alike (the ground of a picture), random ones cut its cell into shades.
    rotation_trick: of the kinds that the library trains with a codebook; kmeans_init: of those
    with EMA; quantize_dropout: train with a random number of the residual codebooks, in
    dropout_share of the steps ("rvq", "grouped").
    """

    kind: Kind = "vq"
    codebook_size: int = Field(1024, ge=2)
    n_codebooks: int = Field(1, ge=1)
    d_code: int = Field(8, ge=1)
    decay: float = Field(0.9, gt=0, lt=1)
    commitment: float = Field(0.25, ge=0)
    threshold_ema_dead_code: float = Field(1.0, ge=0)
    rotation_trick: bool = True
    kmeans_init: bool = True
    quantize_dropout: bool = False
    # Left out of a dump at their defaults: codecs saved before these fields keep their fingerprint.
    levels: tuple[int, ...] = Field((), exclude_if=lambda levels: levels == ())
    n_groups: int = Field(1, ge=1, exclude_if=lambda n: n == 1)
    entropy_weight: float = Field(0.1, ge=0, exclude_if=lambda weight: weight == 0.1)
    dropout_share: float = Field(1.0, gt=0, le=1, exclude_if=lambda share: share == 1.0)
    restart: Literal["random", "far"] = Field("random", exclude_if=lambda way: way == "random")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """Sizes that follow from others and were left out."""
        if not isinstance(data, Mapping):
            return data
        data, kind, levels = dict(data), data.get("kind"), data.get("levels")
        listed = isinstance(levels, list | tuple) and all(isinstance(n, int) for n in levels)
        if kind in _LEVELS and listed:
            data.setdefault("codebook_size", math.prod(levels))
            data.setdefault("d_code", len(levels))
        if kind in _SIGNS:
            size, bits = data.get("codebook_size"), data.get("d_code")
            if size is None and isinstance(bits, int) and 1 <= bits <= 24:
                data["codebook_size"] = 2**bits
            elif bits is None and isinstance(size := data.get("codebook_size", 1024), int):
                data["d_code"] = max(1, size.bit_length() - 1)
        return data

    @model_validator(mode="after")
    def _fits_its_kind(self) -> QuantizerConfig:
        kind = self.kind
        if kind in ("vq", "ema", "running", "simvq", "ibq") and self.n_codebooks != 1:
            raise ValueError(f"kind '{kind}' has one codebook; for more take kind 'rvq'")
        if self.n_groups != 1 and kind != "grouped":
            raise ValueError(f"n_groups is of kind 'grouped'; kind '{kind}' takes none")
        if self.n_codebooks % self.n_groups:
            raise ValueError(
                f"n_codebooks is a multiple of n_groups ({self.n_groups}), got {self.n_codebooks}"
            )
        if self.quantize_dropout and kind not in _DROPOUT:
            raise ValueError(f"quantize_dropout is of kinds {', '.join(_DROPOUT)}; got '{kind}'")
        self._check_levels()
        if self.restart == "far" and kind == "ibq":  # of 16 codes, half dead, it revived 14
            raise ValueError('kind "ibq" searches by inner product, where nothing is far')
        if kind in _SIGNS and self.codebook_size != 2**self.d_code:
            raise ValueError(
                f"kind '{kind}' has 2^d_code codes, a power of two; got d_code {self.d_code} and "
                f"codebook_size {self.codebook_size}, leave one of them out"
            )
        return self

    def _check_levels(self) -> None:
        least = 3 if self.kind == "fsq" else 2
        if self.kind not in _LEVELS:
            if self.levels:
                raise ValueError(f"levels are of kinds fsq and rfsq; kind '{self.kind}' has none")
            return
        if not self.levels or min(self.levels) < least:
            raise ValueError(
                f"kind '{self.kind}' takes levels of at least {least}, such as [8, 5, 5, 5]; "
                f"got {list(self.levels)}"
            )
        if (self.codebook_size, self.d_code) != (math.prod(self.levels), len(self.levels)):
            raise ValueError(
                f"levels {list(self.levels)} make codebook_size {math.prod(self.levels)} and "
                f"d_code {len(self.levels)}, got {self.codebook_size} and {self.d_code}; leave "
                "both out"
            )

    @property
    def groups(self) -> int:
        """Parts that the vector is divided into, each with codebooks of its own."""
        return self.n_codebooks if self.kind in _SPLIT else self.n_groups


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
    decode (B, N, Q' ≤ Q) → (B, N, D). `codebook` (Q, K, d_code) is there for every kind; it is
    saved where it was learned.
    """

    codebook: Tensor

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.scheme = SCHEMES[config.kind](config)
        self.project_in = nn.Linear(width, self.scheme.width)
        self.project_out = nn.Linear(self.scheme.width, width)
        self.register_buffer("codebook", self.scheme.start(), persistent=self.scheme.saved)
        self.learner: nn.Module | None = None

    def start_plain(self) -> None:
        """Begin with the first coordinates of a latent as they are; for trunks that begin as
        transforms, coarse coefficients first."""
        for projection in (self.project_in, self.project_out):
            nn.init.eye_(projection.weight)
            nn.init.zeros_(projection.bias)

    def attach_learner(self, *, warm: bool = False) -> None:
        """Hand the codebooks to a learner, which trains them from here on.

        warm: begin from our codebooks (a codec that is trained further), not from k-means.
        """
        if self.learner is not None:
            return
        self.learner = self.scheme.learner(self.codebook).to(self.codebook.device)
        if warm:
            with torch.no_grad():
                self.scheme.hand_over(self.learner, self.codebook)

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the learner's codebooks into ours."""
        learned = None if self.learner is None else self.scheme.learned(self.learner)
        if learned is not None:
            self.codebook.copy_(self.scheme.normed(learned.float()))

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize in training (learner attached) or straight through with fixed codebooks.

        Codes of -1 were left out of this step by quantize_dropout. NaN in z comes out as NaN."""
        # fp32 island: bf16 distances choose other codes (vector-quantize-pytorch#105).
        with torch.autocast(z.device.type, enabled=False):
            x = self.project_in(z.float())
            if self.learner is not None and self.training:
                quantized, codes, loss = self.scheme.learn(self.learner, x)
                return QuantizerOutput(self.project_out(quantized), codes, loss)
            codes = self._search(x, self.config.n_codebooks)
            quantized = self.scheme.lookup(codes, self.codebook)
            target = self.scheme.normed(x)
            loss = F.mse_loss(target, quantized) * self.scheme.commitment
            straight = target + (quantized - target).detach()
            return QuantizerOutput(self.project_out(straight), codes, loss)

    def distance(self, z: Tensor, due: Tensor) -> Tensor:
        """Of latents z (B, N, D) from those due, where codes are searched, relative to the due
        ones' size. Its gradient is that of z alone."""
        with torch.autocast(z.device.type, enabled=False):
            x = self.scheme.normed(self.project_in(z.float()))
            target = self.scheme.normed(self.project_in(due.float())).detach()
            return (x - target).square().mean() / target.square().mean().clamp_min(1e-12)

    def _search(self, x: Tensor, n_codebooks: int) -> Tensor:
        codes = self.scheme.search(x.flatten(0, -2), self.codebook, n_codebooks)
        return codes.reshape(*x.shape[:-1], n_codebooks)

    @torch.no_grad()
    def encode(self, z: Tensor, n_codebooks: int | None = None) -> Tensor:
        """(B, N, D) → codes (B, N, Q) int64 by exact search; the first n_codebooks of them.

        Raises InputError for n_codebooks outside 1 … Q, PolyglyphError for NaN in z."""
        most = self.config.n_codebooks
        n = most if n_codebooks is None else n_codebooks
        if not 1 <= n <= most:
            raise InputError(
                f"this codec has {most} codebooks; n_codebooks is 1 to {most}, got {n}"
            )
        with torch.autocast(z.device.type, enabled=False):
            x = self.project_in(z.float())
        if not torch.isfinite(x).all():
            raise PolyglyphError(
                "the encoder's latents hold NaN or infinite values; check the input and the "
                "codec's weights (a run that diverged leaves such ones)"
            )
        return self._search(x, n)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N, Q' ≤ Q) → (B, N, D); fewer codebooks give the sum of those."""
        return self.project_out(self.scheme.lookup(codes, self.codebook))


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


def collapsed(codes: Tensor, codebook_size: int) -> list[bool]:
    """Of every codebook, codes (..., Q): has it collapsed, by under 10 % use or a perplexity of 4?

    Judged against what so many codes could have used, and against what a small codebook can reach;
    a codebook that quantize_dropout left out is not judged."""
    verdicts = []
    for q, use in enumerate(codebook_use(codes, codebook_size)):
        reach = min(codebook_size, int((codes[..., q] >= 0).sum()))
        little = use.usage * codebook_size < 0.10 * reach or use.perplexity < min(4, reach / 2)
        verdicts.append(bool(reach) and little)
    return verdicts
