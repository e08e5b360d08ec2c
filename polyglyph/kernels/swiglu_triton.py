"""swiglu in Triton: forward, and a backward that recomputes silu(gate) instead of keeping it.

A program takes a run of columns of one row, so one read of gate and up gives everything. fp32
inside, one rounding. No sums across programs: deterministic. Knows nothing of models."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyglyph.kernels.backend import architecture, on_its_device
from polyglyph.kernels.contract import Compilation

# architecture -> (columns per program, warps): 16 bytes of bf16 a thread and access.
# From the resource report, not from timings: no GPU has run them.
_TUNED = {80: (1024, 4), 90: (1024, 4)}


@triton.jit
def _forward(x_ptr, y_ptr, WIDTH, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(x_ptr + row * 2 * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * WIDTH + WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * WIDTH + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(grad_ptr, x_ptr, out_ptr, WIDTH, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gates = row * 2 * WIDTH + columns
    gate = tl.load(x_ptr + gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + gates + WIDTH, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    by_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    by_up = grad * gate * sigmoid
    tl.store(out_ptr + gates, by_gate.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + gates + WIDTH, by_up.to(out_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("polyglyph::swiglu", mutates_args=())
@on_its_device
def _swiglu(x: Tensor) -> Tensor:
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    _launch(_forward, (x, y), y)
    return y


@torch.library.custom_op("polyglyph::swiglu_backward", mutates_args=())
@on_its_device
def _swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    grad, x = grad.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    _launch(_backward, (grad, x, out), grad)
    return out


def _launch(kernel: Any, tensors: tuple[Tensor, ...], half: Tensor) -> None:
    """Over the rows and columns of `half` (..., F)."""
    if not half.numel():
        return
    width = half.shape[-1]
    block, warps = _TUNED[architecture(half.device)]
    grid = (half.numel() // width, triton.cdiv(width, block))
    kernel[grid](*tensors, width, BLOCK=block, num_warps=warps, enable_fp_fusion=True)


@_swiglu.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@_swiglu_backward.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grads(ctx: Any, grad: Tensor) -> Tensor:
    return _swiglu_backward(grad, *ctx.saved_tensors)


_swiglu.register_autograd(_grads, setup_context=_keep)


def swiglu_triton(x: Tensor) -> Tensor:
    """`swiglu` for a checked argument."""
    return _swiglu(x)


def _compilation(kernel: Any, kind: str) -> Compilation:
    assert _TUNED[80] == _TUNED[90]
    block, warps = _TUNED[90]
    signature = dict.fromkeys(kernel.arg_names, f"*{kind}")
    return Compilation(
        name=f"swiglu{kernel.__name__} {kind}",
        kernel=kernel,
        signature=signature | {"WIDTH": "i32", "BLOCK": "constexpr"},
        constants={"BLOCK": block},
        num_warps=warps,
        num_stages=3,
        divisible=tuple(name for name in signature if name != "BLOCK"),
    )


COMPILATIONS = [
    _compilation(kernel, kind)
    for kind in ("bf16", "fp16", "fp32")
    for kernel in (_forward, _backward)
]
