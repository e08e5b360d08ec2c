"""One id out of a slice of logits: temperature, top-k, top-p.

Pure functions over the columns of a slot; knows nothing of models, caches or grammars. Draws are
inverse-CDF from one uniform number per row, so that a row's ids don't depend on its batch."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from polyglyph.config import Config


class Sampling(Config):
    """How ids of a slot are drawn."""

    temperature: float = Field(1.0, ge=0)  # 0: the most likely id
    top_k: int = Field(0, ge=0)  # 0: all
    top_p: float = Field(1.0, gt=0, le=1)
    guidance: float = Field(1.0, ge=0)  # 1: none; above: away from the unconditional prompt


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What `sample` draws from: logits (b, n) fp32 -> (b, n) fp64, rows sum to 1.

    Temperature first, then top-k, then top-p (arXiv:1904.09751) on what is left; the most likely
    id always stays, ties at the edge go to the lower index.
    """
    assert sampling.temperature > 0
    p = (logits.double() / sampling.temperature).softmax(-1)
    keep_k = sampling.top_k if 0 < sampling.top_k < p.shape[-1] else p.shape[-1]
    if keep_k == p.shape[-1] and sampling.top_p == 1.0:
        return p
    ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
    ordered[:, keep_k:] = 0.0
    ordered = ordered / ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    # top_p 1 keeps all: rounding of the sum must not cut the tail.
    if sampling.top_p < 1.0:
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter_(-1, order, ordered)


def sample(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Columns (b,) int64 drawn from logits (b, n) with one uniform number in [0, 1) per row, (b,)
    fp64. Temperature 0 takes the largest logit, the lowest index of equal ones."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    cdf = probabilities(logits, sampling).cumsum(-1)
    total = cdf[:, -1:].contiguous()
    column = torch.searchsorted(cdf, uniforms.double().unsqueeze(1) * total, right=True)
    # Rounding may reach the total itself: then the last column with any probability.
    last = torch.searchsorted(cdf, total)
    return torch.minimum(column, last).squeeze(1)
