"""SwiGLU (arXiv:2002.05202): silu(gate) * up, both halves of one matrix product's result.

Knows nothing of models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example


def swiglu(x: Tensor) -> Tensor:
    """x (..., 2F): gate, then up. Returns (..., F) in x's dtype. First order gradients only.

    The Triton form computes in fp32 and rounds once, torch's rounds silu(gate) too; fp64 stays
    with torch. Deterministic. x may be strided and may have no rows. ValueError for an odd width
    and an integer dtype.
    """
    if not x.ndim or x.shape[-1] % 2:
        raise ValueError(f"x must have an even width, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if x.dtype != torch.float64 and backend.pick("swiglu", x) == "triton":
        from polyglyph.kernels.swiglu_triton import swiglu_triton

        return swiglu_triton(x)
    return _Swiglu.apply(x)


class _Swiglu(torch.autograd.Function):
    # Recomputes instead of keeping silu(gate), and writes both gradients into one tensor:
    # a chunk of autograd's own keeps two and concatenates.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        out = torch.empty_like(x)
        grad_gate, grad_up = out.chunk(2, -1)
        torch.mul(silu(gate), grad, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return out


# --- what the generic tests and the benchmark run --------------------------------------------

_SHAPES = {
    "test": ((1, 2), (17, 2 * 127), (2, 3, 2 * 1029)),
    "bench": ((16_384, 2 * 11_008), (32_768, 2 * 2816)),
    "cpu": ((4096, 2 * 704),),
}


def examples(size: str, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Example]:
    """Calls at "test", "bench" or "cpu" size."""
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    for shape in _SHAPES[size]:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        n_bytes = 1.5 * x.numel() * x.element_size()
        name = "x".join(map(str, shape))
        found.append(Example(name, swiglu, {"x": x}, _plain, ("x",), n_bytes=n_bytes))
    return found


def _plain(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up
