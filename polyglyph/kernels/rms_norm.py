"""Root-mean-square norm (arXiv:1910.07467): y = x / sqrt(mean(x^2) + eps) * weight.

Statistics and product in fp32; only the result is rounded, as in Gemma (Llama rounds before the
weight). Knows nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example

_TRITON_WIDTH = 8192  # the widest row of the Triton form; wider ones take the torch form


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise the last axis. x (..., D), weight (D,); returns x's shape.

    The result has the autocast dtype where autocast is on (what reads it is a matrix product),
    else x's dtype. Deterministic, gradients too: the weight's is summed in two stages of fixed
    order. First order gradients only. x may be strided (it is copied then, off the CPU) and may
    have no rows. ValueError for a wrong width, an integer dtype, and tensors on two devices.
    """
    _check(x, weight)
    dtype = result_dtype(x)
    if _runs_triton(x):
        from polyglyph.kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps, dtype)
    if not torch.is_grad_enabled():  # decoding: an autograd.Function adds a quarter to one row
        return _normalise(x, weight, eps)[0].to(dtype)
    return _RmsNorm.apply(x, weight, eps, dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual): the sum is written once and not read again.

    x and residual (..., D) of one shape; the sum has their promoted dtype, and what is normalised
    is the rounded sum. Dtypes, promises and errors otherwise as in `rms_norm`.
    """
    _check(x, weight)
    if residual.shape != x.shape:
        raise ValueError(f"residual must be {tuple(x.shape)}, got {tuple(residual.shape)}")
    if residual.device != x.device or not residual.is_floating_point():
        raise ValueError(
            f"residual must be floating point on {x.device}, got {residual.dtype} "
            f"on {residual.device}"
        )
    if residual.dtype != torch.float64 and _runs_triton(x):
        from polyglyph.kernels.rms_norm_triton import add_rms_norm_triton

        wide = torch.promote_types(x.dtype, residual.dtype)
        autocast = torch.is_autocast_enabled(x.device.type)
        return add_rms_norm_triton(x, residual, weight, eps, result_dtype(x) if autocast else wide)
    total = x + residual
    dtype = result_dtype(total)
    if not torch.is_grad_enabled():
        return _normalise(total, weight, eps)[0].to(dtype), total
    return _RmsNorm.apply(total, weight, eps, dtype), total


def _runs_triton(x: Tensor) -> bool:
    """fp64, of which the Triton form knows nothing, and very wide rows stay with torch."""
    fits = x.dtype != torch.float64 and x.shape[-1] <= _TRITON_WIDTH
    return fits and backend.pick("rms_norm", x) == "triton"


def _check(x: Tensor, weight: Tensor) -> None:
    if not x.ndim or not x.shape[-1]:
        raise ValueError(f"x must have a last axis to normalise, got {tuple(x.shape)}")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be ({x.shape[-1]},), got {tuple(weight.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, x on {x.device}")


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


# --- what the generic tests and the benchmark run --------------------------------------------

_SHAPES = {
    "test": ((1, 17), (127, 33), (3, 5, 129)),
    "bench": ((16_384, 4096), (32_768, 1024), (16_384, 8192)),
    "cpu": ((4096, 1024),),
}


def examples(size: str, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Example]:
    """Calls of both functions at "test", "bench" or "cpu" size."""
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    for shape in _SHAPES[size]:
        draw = {"generator": generator, "device": device, "dtype": torch.float32}
        x, residual = (torch.randn(shape, **draw).to(dtype) for _ in range(2))
        weight = (1 + 0.1 * torch.randn(shape[-1:], **draw)).to(dtype)
        inputs: Mapping[str, Any] = {"x": x, "weight": weight}
        name = "x".join(map(str, shape))
        n_bytes = x.numel() * x.element_size()
        found += [
            Example(name, rms_norm, inputs, _plain, ("x", "weight"), n_bytes=2.0 * n_bytes),
            Example(
                f"{name} residual",
                add_rms_norm,
                {**inputs, "residual": residual},
                _plain_sum,
                ("x", "weight", "residual"),
                n_bytes=4.0 * n_bytes,
            ),
        ]
    return found


def _plain(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _plain_sum(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    return _plain(x + residual, weight), x + residual
