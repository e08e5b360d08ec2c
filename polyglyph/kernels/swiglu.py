"""SwiGLU (arXiv:2002.05202): silu(gate) * up, both halves of one matrix product's result.

Knows nothing of models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


def swiglu(x: Tensor) -> Tensor:
    """x (..., 2F): gate, then up. Returns (..., F) in x's dtype. First order gradients only."""
    if x.shape[-1] % 2:
        raise ValueError(f"x must have an even width, got {x.shape[-1]}")
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
