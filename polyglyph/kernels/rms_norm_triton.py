"""rms_norm in Triton: forward with the residual add, backward with a two-stage sum for the weight.

One program holds whole rows. In the backward each program walks a fixed run of rows in order and
writes one partial sum of the weight's gradient; the partial sums are then added. No atomics, so
two runs give the same bits. Statistics and products in fp32. Knows nothing of models."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyglyph.kernels.backend import architecture, interpreting, on_its_device
from polyglyph.kernels.contract import Compilation

# Programs of the backward at most: four per multiprocessor of an H100; in the interpreter, where a
# program costs 5 ms, few, so that small inputs have several tiles a part and a last part with less.
N_PARTS = 3 if interpreting() else 528
# architecture -> widest row (rounded up to a power of two) -> (rows per tile, warps).
# From the resource report (registers, no spill), not from timings: no GPU has run them. A row of
# 16,384 spills in the backward with 16 warps and with 32.
_FORWARD = {
    80: {256: (8, 4), 1024: (4, 4), 4096: (1, 4), 8192: (1, 8)},
    90: {256: (8, 4), 1024: (4, 4), 4096: (1, 4), 8192: (1, 8)},
}
_BACKWARD = {
    80: {256: (8, 4), 1024: (2, 4), 4096: (1, 8), 8192: (1, 16)},
    90: {256: (8, 4), 1024: (2, 4), 4096: (1, 8), 8192: (1, 16)},
}


@triton.jit(do_not_specialize=["n_rows"])
def _forward(
    x_ptr,  # (R, W)
    residual_ptr,  # (R, W), read with HAS_RESIDUAL
    weight_ptr,  # (W,)
    y_ptr,  # (R, W)
    total_ptr,  # (R, W), written with HAS_RESIDUAL
    rstd_ptr,  # (R,) fp32
    n_rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + places, mask=inside, other=0.0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + places, total, mask=inside)
        x = total.to(tl.float32)  # the norm of what is stored, as the backward reads it
    rstd = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    y = x * rstd[:, None] * weight[None, :]
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(rstd_ptr + rows, rstd, mask=rows < n_rows)


@triton.jit(do_not_specialize=["n_rows", "tiles_per_part"])
def _backward(
    grad_ptr,  # (R, W), by y
    grad_total_ptr,  # (R, W), by the sum, read with HAS_RESIDUAL
    x_ptr,  # (R, W), what was normalised
    weight_ptr,
    rstd_ptr,
    grad_x_ptr,  # (R, W)
    part_ptr,  # (programs, W) fp32: sums for the weight
    n_rows,
    tiles_per_part,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    part = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    real = columns < WIDTH
    weight = tl.load(weight_ptr + columns, mask=real, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK], dtype=tl.float32)
    for tile in range(part * tiles_per_part, (part + 1) * tiles_per_part):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = (rows < n_rows)[:, None] & real[None, :]
        places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + places, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)
        normed = x * rstd[:, None]
        sums += tl.sum(grad * normed, 0)
        grad = grad * weight[None, :]
        inner = tl.sum(grad * normed, 1) / WIDTH
        grad_x = (grad - normed * inner[:, None]) * rstd[:, None]
        if HAS_RESIDUAL:
            grad_x += tl.load(grad_total_ptr + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + places, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
    tl.store(part_ptr + part.to(tl.int64) * WIDTH + columns, sums, mask=real)


def _tuned(table: dict[int, dict[int, tuple[int, int]]], width: int, arch: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    rows, warps = next(entry for widest, entry in table[arch].items() if block <= widest)
    return {"WIDTH": width, "BLOCK": block, "ROWS": rows, "num_warps": warps}


def _launch_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, x + residual or an empty tensor, rstd of each row)."""
    width = x.shape[-1]
    x = x.contiguous()
    n_rows = x.numel() // width
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    rstd = torch.empty(n_rows, dtype=torch.float32, device=x.device)
    total = x.new_empty(0)
    if residual is not None:
        wide = torch.promote_types(x.dtype, residual.dtype)
        total, residual = torch.empty_like(x, dtype=wide), residual.contiguous()
    if n_rows:
        tuned = _tuned(_FORWARD, width, architecture(x.device))
        _forward[(triton.cdiv(n_rows, tuned["ROWS"]),)](
            x,
            x if residual is None else residual,
            weight.contiguous(),
            y,
            y if residual is None else total,
            rstd,
            n_rows,
            eps,
            HAS_RESIDUAL=residual is not None,
            enable_fp_fusion=True,
            **tuned,
        )
    return y, total, rstd


@torch.library.custom_op("polyglyph::rms_norm", mutates_args=())
@on_its_device
def _norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    y, _, rstd = _launch_forward(x, None, weight, eps, dtype)
    return y, rstd


@torch.library.custom_op("polyglyph::add_rms_norm", mutates_args=())
@on_its_device
def _add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return _launch_forward(x, residual, weight, eps, dtype)


@torch.library.custom_op("polyglyph::rms_norm_backward", mutates_args=())
@on_its_device
def _norm_backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by x (in x's dtype) and by the weight (in its dtype)."""
    width, n_rows = x.shape[-1], rstd.numel()
    x, grad = x.contiguous(), grad.contiguous()
    grad_x = torch.empty_like(x)
    tuned = _tuned(_BACKWARD, width, architecture(x.device))
    n_tiles = triton.cdiv(n_rows, tuned["ROWS"])
    tiles_per_part = max(1, triton.cdiv(n_tiles, N_PARTS))
    n_parts = triton.cdiv(n_tiles, tiles_per_part)
    parts = torch.empty(n_parts, width, dtype=torch.float32, device=x.device)
    if n_parts:
        _backward[(n_parts,)](
            grad,
            grad if grad_total is None else grad_total.contiguous(),
            x,
            weight.contiguous(),
            rstd,
            grad_x,
            parts,
            n_rows,
            tiles_per_part,
            HAS_RESIDUAL=grad_total is not None,
            enable_fp_fusion=True,
            **tuned,
        )
    return grad_x, parts.sum(0).to(weight.dtype)


@_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = x.new_empty(x.shape[:-1], dtype=torch.float32).reshape(-1)
    return x.new_empty(x.shape, dtype=dtype), rows


@_add_norm.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    rows = x.new_empty(x.shape[:-1], dtype=torch.float32).reshape(-1)
    return x.new_empty(x.shape, dtype=dtype), total, rows


@_norm_backward.register_fake
def _(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _keep_sum(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight = inputs[:3]
    ctx.save_for_backward(output[1], weight, output[2])
    ctx.dtypes = x.dtype, residual.dtype


def _norm_grads(ctx: Any, grad: Tensor, _rstd: Any) -> tuple[Tensor | None, ...]:
    return *_norm_backward(grad, None, *ctx.saved_tensors), None, None


def _add_norm_grads(
    ctx: Any, grad: Tensor, grad_total: Tensor, _rstd: Any
) -> tuple[Tensor | None, ...]:
    grad_x, grad_weight = _norm_backward(grad, grad_total, *ctx.saved_tensors)
    for_x, for_residual = (grad_x.to(dtype) for dtype in ctx.dtypes)
    return for_x, for_residual, grad_weight, None, None


_norm.register_autograd(_norm_grads, setup_context=_keep)
_add_norm.register_autograd(_add_norm_grads, setup_context=_keep_sum)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`rms_norm` for checked arguments; dtype is the result's."""
    return _norm(x, weight, eps, dtype)[0]


def add_rms_norm_triton(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` for checked arguments; dtype is the norm's."""
    return _add_norm(x, residual, weight, eps, dtype)[:2]


def _compilations() -> list[Compilation]:
    same = _FORWARD[80] == _FORWARD[90] and _BACKWARD[80] == _BACKWARD[90]
    return [
        _compilation(architectures, width, kind, has_residual, backward)
        for architectures in ([(80, 90)] if same else [(80,), (90,)])
        for width in (4096, 128, 1024, 8192)
        for kind in (("bf16", "fp16", "fp32") if width == 4096 else ("bf16",))
        for has_residual in (False, True)
        for backward in (False, True)
    ]


def _compilation(
    architectures: tuple[int, ...], width: int, kind: str, has_residual: bool, backward: bool
) -> Compilation:
    constants = _tuned(_BACKWARD if backward else _FORWARD, width, architectures[0])
    warps = constants.pop("num_warps")
    constants |= {"HAS_RESIDUAL": has_residual}
    stream = "*fp32" if has_residual else f"*{kind}"  # the residual stream stays in fp32
    signature = {"weight_ptr": "*fp32", "rstd_ptr": "*fp32", "n_rows": "i32"}
    if backward:
        signature |= {"grad_ptr": f"*{kind}", "grad_total_ptr": stream, "x_ptr": stream}
        signature |= {"grad_x_ptr": stream, "part_ptr": "*fp32", "tiles_per_part": "i32"}
    else:
        signature |= {"x_ptr": f"*{kind}", "residual_ptr": stream, "y_ptr": f"*{kind}"}
        signature |= {"total_ptr": stream, "eps": "fp32"}
    kernel = _backward if backward else _forward
    name = f"rms_norm{kernel.__name__} w{width} {kind}{' residual' if has_residual else ''}"
    return Compilation(
        name=name if len(architectures) > 1 else f"{name} sm{architectures[0]}",
        kernel=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        num_warps=warps,
        num_stages=3,
        divisible=tuple(name for name in signature if name.endswith("_ptr")),
        architectures=architectures,
    )


COMPILATIONS = _compilations()
