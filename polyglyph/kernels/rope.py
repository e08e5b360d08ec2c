"""Rotary position embedding (arXiv:2104.09864), halves rotated against each other as in Llama.

`rope` is the plain function; `heads` splits the result of a fused projection into queries, keys
and values, with QK-norm (arXiv:2302.05442) and rotation on the way. Positions come as tables of
cosines and sines; knows nothing of attention or documents."""

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
    """Rotate x (B, N, T, K) by its positions' cos and sin, (T, K/2) or (B, T, K/2).

    Computed in fp32 (fp64 for fp64), returned in x's dtype: (a, b) -> (a cos - b sin,
    b cos + a sin) with a, b the two halves of the last axis. ValueError for wrong shapes.
    """
    _check(x.shape[2], x.shape[-1], cos)
    cos, sin = _widen(cos, sin, x.dtype)
    return torch.addcmul(_wide(x) * cos, _swap(_wide(x)), sin).to(x.dtype)


def heads(
    qkv: Tensor,
    n_heads: int,
    n_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, (N + 2 Nkv) K) -> q (B, N, T, K), k and v (B, Nkv, T, K), in qkv's dtype.

    q and k are normalised per head where weights (K,) are given (both or neither), then rotated;
    in fp32, rounded once. cos, sin as in `rope`. First order gradients. ValueError for wrong
    shapes. One function because apart the steps take 1.26 times as long on a CPU (bf16).
    """
    if qkv.ndim != 3 or qkv.shape[2] % (n_heads + 2 * n_kv_heads):
        raise ValueError(
            f"qkv must be (B, T, ({n_heads} + 2 * {n_kv_heads}) K), got {tuple(qkv.shape)}"
        )
    if (q_weight is None) != (k_weight is None):
        raise ValueError("give both q_weight and k_weight, or neither")
    _check(qkv.shape[1], qkv.shape[2] // (n_heads + 2 * n_kv_heads), cos)
    cos, sin = _widen(cos, sin, qkv.dtype)
    arguments = (qkv, (n_heads, n_kv_heads), cos, sin, q_weight, k_weight, eps)
    return _Heads.apply(*arguments) if torch.is_grad_enabled() else _Heads.forward(None, *arguments)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        counts: tuple[int, int],
        cos: Tensor,
        sin: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, n_kv = counts
        split = _split(qkv, n + 2 * n_kv)
        x = split[:, : n + n_kv].to(cos.dtype, copy=True, memory_format=torch.contiguous_format)
        rstd = None
        if q_weight is not None:
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            x.mul_(rstd)
        parts = zip(x.split((n, n_kv), 1), (q_weight, k_weight), strict=True)
        q, k = (_turn(part, cos, sin, weight).to(qkv.dtype) for part, weight in parts)
        if ctx is not None:
            ctx.save_for_backward(qkv, cos, sin, q_weight, k_weight, rstd)
            ctx.counts = counts
        return q, k, split[:, n + n_kv :].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, q_weight, k_weight, rstd = ctx.saved_tensors
        n, n_kv = ctx.counts
        out = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        split, source = _split(out, n + 2 * n_kv), _split(qkv, n + 2 * n_kv)
        split[:, n + n_kv :] = grads[2]
        weight_grads: list[Tensor | None] = [None, None]
        for i, (part, weight) in enumerate(
            ((slice(0, n), q_weight), (slice(n, n + n_kv), k_weight))
        ):
            # The rotation back is the rotation by -angle.
            grad = _turn(_wide(grads[i]).contiguous(), cos, -sin, None)  # (B, n, T, K)
            if weight is not None:
                x = _wide(source[:, part]).contiguous() * rstd[:, part]
                grad, weight_grads[i] = _norm_backward(grad, x, weight, rstd[:, part])
            split[:, part] = grad
        return out, None, None, None, *weight_grads, None


def _norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x * weight, x normalised, by the vector before the norm and by the weight."""
    width = x.shape[-1]
    product = (grad * x).reshape(-1, width)
    grad_weight = product.sum(0).to(weight.dtype)
    inner = product.mv(weight.to(product.dtype)).div_(width).view(rstd.shape)
    return (grad * weight).sub_(x.mul_(inner)).mul_(rstd), grad_weight


def _turn(x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None) -> Tensor:
    """Rotate x * weight. The weight goes into the tables, which are N times smaller."""
    if weight is not None:
        cos, sin = cos * weight, sin * _swap(weight)
    return (x * cos).addcmul_(_swap(x), sin)


def _swap(x: Tensor) -> Tensor:
    """The two halves of the last axis exchanged."""
    return x.roll(x.shape[-1] // 2, -1)


def _split(x: Tensor, n: int) -> Tensor:
    """(B, T, n K) -> (B, n, T, K), a view."""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def _widen(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tables over the whole head, the sign in the sine: (T, K) or (B, 1, T, K)."""
    tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = (table.to(wide) for table in tables)
    return (cos, sin) if cos.ndim == 2 else (cos.unsqueeze(1), sin.unsqueeze(1))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(length: int, width: int, cos: Tensor) -> None:
    if width % 2 or cos.shape[-2:] != (length, width // 2):
        raise ValueError(
            f"expected cos and sin (T, K/2) or (B, T, K/2) for T = {length}, K = {width}, "
            f"got {tuple(cos.shape)}"
        )
