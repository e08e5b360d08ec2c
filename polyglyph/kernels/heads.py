"""A fused projection split into queries, keys and values, with QK-norm and rotation on the way
(arXiv:2302.05442, arXiv:2104.09864).

Knows nothing of attention or documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyglyph.kernels.contract import Example
from polyglyph.kernels.rope import (
    at_positions,
    check_angles,
    rope_tables,
    runs_triton,
    swap,
    wide,
    widen,
)


def heads(
    qkv: Tensor,
    n_heads: int,
    n_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    positions: Tensor | None = None,
    sections: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, (N + 2 Nkv) K) -> q (B, N, T, K), k and v (B, Nkv, T, K), in qkv's dtype.

    q and k are normalised per head where weights (K,) are given (both or neither), then rotated;
    in fp32, rounded once. cos, sin, positions and sections as in `rope`. Deterministic, gradients
    too; first order only. ValueError for wrong shapes, dtypes and devices. One function because
    apart the steps take 1.26 times as long on a CPU (bf16).
    """
    if n_heads < 1 or n_kv_heads < 1:
        raise ValueError(f"n_heads and n_kv_heads must be positive, got {n_heads}, {n_kv_heads}")
    if qkv.ndim != 3 or qkv.shape[2] % (n_heads + 2 * n_kv_heads):
        raise ValueError(
            f"qkv must be (B, T, ({n_heads} + 2 * {n_kv_heads}) K), got {tuple(qkv.shape)}"
        )
    if (q_weight is None) != (k_weight is None):
        raise ValueError("give both q_weight and k_weight, or neither")
    width = qkv.shape[2] // (n_heads + 2 * n_kv_heads)
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None and (weight.shape != (width,) or weight.device != qkv.device):
            raise ValueError(
                f"{name} must be ({width},) on {qkv.device}, got {tuple(weight.shape)} "
                f"on {weight.device}"
            )
    check_angles((qkv.shape[0], qkv.shape[1], width), qkv, cos, sin, positions, sections)
    if runs_triton("heads", qkv, width):
        from polyglyph.kernels.heads_triton import heads_triton

        counts, weights = (n_heads, n_kv_heads), (q_weight, k_weight)
        return heads_triton(qkv, cos, sin, positions, sections, weights, counts, eps)
    cos, sin = widen(*at_positions(cos, sin, positions, sections), qkv.dtype)
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
            grad = _turn(wide(grads[i]).contiguous(), cos, -sin, None)  # (B, n, T, K)
            if weight is not None:
                x = wide(source[:, part]).contiguous() * rstd[:, part]
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
        cos, sin = cos * weight, sin * swap(weight)
    return (x * cos).addcmul_(swap(x), sin)


def _split(x: Tensor, n: int) -> Tensor:
    """(B, T, n K) -> (B, n, T, K), a view."""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


# --- what the generic tests and the benchmark run --------------------------------------------

# (B, T, N, Nkv, K)
_SHAPES = {
    "test": ((1, 1, 1, 1, 2), (2, 17, 3, 1, 6), (1, 129, 10, 2, 10)),
    "bench": ((4, 4096, 32, 8, 128), (16, 1024, 16, 4, 64)),
    "cpu": ((4, 1024, 4, 2, 64),),
}


def examples(size: str, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Example]:
    """Calls at "test", "bench" or "cpu" size: with norm, without it, and by three axes."""
    generator = torch.Generator(device).manual_seed(seed)
    draw: dict[str, Any] = {"generator": generator, "device": device}
    found = []
    for batch, length, n, n_kv, width in _SHAPES[size]:
        qkv = torch.randn(batch, length, (n + 2 * n_kv) * width, **draw).to(dtype)
        q_weight, k_weight = (1 + 0.1 * torch.randn(2, width, **draw)).to(dtype)
        cos, sin = rope_tables(length + 5, width, 10_000.0, device)
        norm = {"q_weight": q_weight, "k_weight": k_weight}
        steps = {"cos": cos[:length], "sin": sin[:length]}
        half = width // 2
        axes: dict[str, Any] = {
            "cos": cos,
            "sin": sin,
            "positions": torch.randint(length + 5, (3, length), **draw),
            "sections": (half - 2 * (half // 3), half // 3, half // 3),
        }
        forms = {" norm": steps | norm, "": steps, " norm axes": axes | norm}
        for form, inputs in forms.items():
            fixed = {"qkv": qkv, "n_heads": n, "n_kv_heads": n_kv}
            wanted = ("qkv", *norm) if "q_weight" in inputs else ("qkv",)
            n_bytes = 2.0 * qkv.numel() * qkv.element_size()
            name = f"{batch}x{length} {n}/{n_kv}x{width}{form}"
            found.append(Example(name, heads, fixed | inputs, _plain, wanted, n_bytes=n_bytes))
    return found


def _plain(
    qkv: Tensor,
    n_heads: int,
    n_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    positions: Tensor | None = None,
    sections: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The steps apart."""
    cos, sin = at_positions(cos, sin, positions, sections)
    cos, sin = (torch.cat([table, table], -1) for table in (cos, sin))
    parts = _split(qkv, n_heads + 2 * n_kv_heads).split((n_heads, n_kv_heads, n_kv_heads), 1)
    made = []
    for x, weight in zip(parts, (q_weight, k_weight), strict=False):
        if weight is not None:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
        left, right = x.chunk(2, -1)
        made.append(x * cos + torch.cat([-right, left], -1) * sin)
    return made[0], made[1], parts[2]
