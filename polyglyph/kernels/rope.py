"""Rotary position embedding (arXiv:2104.09864), halves rotated against each other as in Llama.

Knows nothing of attention or documents; positions come as tables of cosines and sines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rope_tables(
    length: int, d_head: int, theta: float, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (length, d_head / 2) fp32. Angles are formed in fp64: position times
    frequency in fp32 is off by 1e-3 at position 10,000."""
    if d_head % 2:
        raise ValueError(f"d_head must be even, got {d_head}")
    exponent = torch.arange(0, d_head, 2, dtype=torch.float64, device=device) / d_head
    positions = torch.arange(length, dtype=torch.float64, device=device)
    angles = torch.outer(positions, theta**-exponent)
    return angles.cos().float(), angles.sin().float()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, T, N, K) by its positions' cos and sin, (T, K/2) or (B, T, K/2).

    Computed in fp32, returned in x's dtype: (a, b) -> (a cos - b sin, b cos + a sin) with a, b the
    two halves of the last axis. ValueError for shapes that don't match.
    """
    half = x.shape[-1] // 2
    if x.ndim != 4 or x.shape[-1] % 2 or cos.shape[-2:] != (x.shape[1], half):
        raise ValueError(
            f"expected x (B, T, N, K) and cos (T, K/2) or (B, T, K/2), "
            f"got {tuple(x.shape)} and {tuple(cos.shape)}"
        )
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return _Rope.apply(x, cos, sin) if torch.is_grad_enabled() else _rotate(x, cos, sin, 1.0)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1.0), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    a, b = wide.chunk(2, -1)
    out = torch.empty(wide.shape, dtype=wide.dtype, device=x.device)
    first, second = out.chunk(2, -1)
    torch.mul(a, cos, out=first)
    first.addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=second)
    second.addcmul_(a, sin, value=sign)
    return out.to(x.dtype)
