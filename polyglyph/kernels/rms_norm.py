"""Root-mean-square norm (arXiv:1910.07467): y = x / sqrt(mean(x^2) + eps) * weight.

Statistics and product in fp32; only the result is rounded, as in Gemma (Llama rounds before the
weight). Knows nothing of models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise the last axis. x (..., D), weight (D,); returns x's shape.

    The result has the autocast dtype where autocast is on (what reads it is a matrix product),
    else x's dtype. Deterministic; first order gradients only. ValueError for a wrong width.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be ({x.shape[-1]},), got {tuple(weight.shape)}")
    dtype = result_dtype(x)
    if not torch.is_grad_enabled():  # decoding: an autograd.Function adds a quarter to one row
        return _normalise(x, weight, eps)[0].to(dtype)
    return _RmsNorm.apply(x, weight, eps, dtype)


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the next matrix product will read x."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


class _RmsNorm(torch.autograd.Function):
    # Written out: torch's own takes 3 times as long forward and backward on a CPU (4096 x 256).

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, rstd = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        width = x.shape[-1]
        normed = (_wide(x) * rstd).reshape(-1, width)
        grad = grad.reshape(-1, width).to(normed.dtype)
        product = grad * normed
        grad_weight = product.sum(0)
        # mean over the width of grad * weight * normed: one matrix-vector product.
        inner = product.mv(weight.to(product.dtype)).div_(width).unsqueeze(1)
        grad_x = torch.mul(grad, weight, out=product)
        grad_x.sub_(normed.mul_(inner)).mul_(rstd.reshape(-1, 1))
        return grad_x.view(x.shape).to(x.dtype), grad_weight.to(weight.dtype), None, None


def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(y, 1 / root mean square (..., 1)), both in fp32 or fp64."""
    wide = _wide(x)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * rstd).mul_(weight), rstd


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
