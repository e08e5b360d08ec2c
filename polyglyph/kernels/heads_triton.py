"""heads in Triton: QK-norm and rotation in one pass over a fused projection.

A program takes a tile of positions and a group of queries, keys or values. The backward norms
again instead of keeping statistics; weights get their gradients as partial sums, a row per
program, that are added afterwards in fixed order: no atomics. fp32 inside, one rounding. Knows
nothing of attention or documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyglyph.kernels.backend import on_its_device
from polyglyph.kernels.contract import Compilation
from polyglyph.kernels.rope_triton import angles, placed, tuned


@triton.jit
def _normed_turn(
    qkv_ptr,
    out_ptr,  # (B, heads of this kind, T, K)
    weight_ptr,
    cos,
    sin,
    b,
    rows,  # (BLOCK_T, 1) int64
    columns,
    inside,
    length,
    group,
    eps,
    FIRST: tl.constexpr,  # the kind's first head in qkv
    COUNT: tl.constexpr,
    ALL: tl.constexpr,  # heads of qkv
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    real = columns < HALF
    if HAS_NORM:
        weight_l = tl.load(weight_ptr + columns, mask=real, other=0.0).to(tl.float32)[None, :]
        weight_r = tl.load(weight_ptr + HALF + columns, mask=real, other=0.0).to(tl.float32)
        weight_r = weight_r[None, :]
    for head in range(group * HEADS, tl.minimum(group * HEADS + HEADS, COUNT)):
        at = (b * length + rows) * (2 * HALF * ALL) + (FIRST + head) * (2 * HALF)
        source = qkv_ptr + at + columns[None, :]
        left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            rstd = tl.rsqrt(tl.sum(left * left + right * right, 1) / (2 * HALF) + eps)
            left = left * rstd[:, None] * weight_l
            right = right * rstd[:, None] * weight_r
        target = out_ptr + ((b * COUNT + head) * length + rows) * (2 * HALF) + columns[None, :]
        y = left * cos - right * sin
        tl.store(target, y.to(out_ptr.dtype.element_ty), mask=inside)
        y = right * cos + left * sin
        tl.store(target + HALF, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _copy_heads(
    source_ptr, target_ptr, b, rows, columns, inside, length, group,
    FIRST: tl.constexpr, COUNT: tl.constexpr, ALL: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The values: from qkv to (B, Nkv, T, K), or their gradient the other way."""
    for head in range(group * HEADS, tl.minimum(group * HEADS + HEADS, COUNT)):
        fused = (b * length + rows) * (2 * HALF * ALL) + (FIRST + head) * (2 * HALF)
        apart = ((b * COUNT + head) * length + rows) * (2 * HALF)
        if BACK:
            source, target = source_ptr + apart, target_ptr + fused
        else:
            source, target = source_ptr + fused, target_ptr + apart
        source += columns[None, :]
        target += columns[None, :]
        tl.store(target, tl.load(source, mask=inside, other=0.0), mask=inside)
        tl.store(target + HALF, tl.load(source + HALF, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["length", "table_b", "n_rows"])
def _heads_forward(
    qkv_ptr,  # (B, T, (N + 2 Nkv) K)
    q_ptr,
    k_ptr,
    v_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    length,
    table_b,
    n_rows,
    position_a,
    position_b,
    eps,
    N: tl.constexpr,
    N_KV: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HEADS: tl.constexpr,
    END_0: tl.constexpr,
    END_1: tl.constexpr,
    N_AXES: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    n_tiles = tl.cdiv(length, BLOCK_T)
    b = (tl.program_id(0) // n_tiles).to(tl.int64)
    steps = tl.program_id(0) % n_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_HALF)
    inside = (steps < length)[:, None] & (columns < HALF)[None, :]
    rows = steps.to(tl.int64)[:, None]
    Q_GROUPS: tl.constexpr = (N + HEADS - 1) // HEADS
    KV_GROUPS: tl.constexpr = (N_KV + HEADS - 1) // HEADS
    ALL: tl.constexpr = N + 2 * N_KV
    group = tl.program_id(1)
    if group < Q_GROUPS + KV_GROUPS:
        cos, sin = angles(
            cos_ptr, sin_ptr, positions_ptr, b, steps, columns, inside, table_b, n_rows,
            position_a, position_b, END_0, END_1, HALF, N_AXES, False,
        )  # fmt: skip
        if group < Q_GROUPS:
            _normed_turn(
                qkv_ptr, q_ptr, q_weight_ptr, cos, sin, b, rows, columns, inside, length,
                group, eps, 0, N, ALL, HALF, HEADS, HAS_NORM,
            )  # fmt: skip
        else:
            _normed_turn(
                qkv_ptr, k_ptr, k_weight_ptr, cos, sin, b, rows, columns, inside, length,
                group - Q_GROUPS, eps, N, N_KV, ALL, HALF, HEADS, HAS_NORM,
            )  # fmt: skip
    else:
        _copy_heads(
            qkv_ptr, v_ptr, b, rows, columns, inside, length, group - Q_GROUPS - KV_GROUPS,
            N + N_KV, N_KV, ALL, HALF, HEADS, False,
        )  # fmt: skip


@triton.jit
def _turn_back(
    grad_ptr,  # (B, heads of this kind, T, K)
    qkv_ptr,
    grad_qkv_ptr,
    weight_ptr,
    part_ptr,  # this program's row of partial sums, (K,)
    cos,
    sin,  # negated
    b,
    rows,
    columns,
    inside,
    length,
    group,
    eps,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    ALL: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    real = columns < HALF
    if HAS_NORM:
        weight_l = tl.load(weight_ptr + columns, mask=real, other=0.0).to(tl.float32)[None, :]
        weight_r = tl.load(weight_ptr + HALF + columns, mask=real, other=0.0).to(tl.float32)
        weight_r = weight_r[None, :]
        sums_l = tl.zeros([BLOCK_HALF], dtype=tl.float32)
        sums_r = tl.zeros([BLOCK_HALF], dtype=tl.float32)
    for head in range(group * HEADS, tl.minimum(group * HEADS + HEADS, COUNT)):
        source = grad_ptr + ((b * COUNT + head) * length + rows) * (2 * HALF) + columns[None, :]
        grad_l = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        grad_r = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        turned = grad_l * cos - grad_r * sin
        grad_r = grad_r * cos + grad_l * sin
        grad_l = turned
        at = (b * length + rows) * (2 * HALF * ALL) + (FIRST + head) * (2 * HALF)
        at += columns[None, :]
        if HAS_NORM:
            left = tl.load(qkv_ptr + at, mask=inside, other=0.0).to(tl.float32)
            right = tl.load(qkv_ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
            rstd = tl.rsqrt(tl.sum(left * left + right * right, 1) / (2 * HALF) + eps)[:, None]
            left *= rstd
            right *= rstd
            sums_l += tl.sum(grad_l * left, 0)
            sums_r += tl.sum(grad_r * right, 0)
            grad_l *= weight_l
            grad_r *= weight_r
            inner = tl.sum(grad_l * left + grad_r * right, 1)[:, None] / (2 * HALF)
            grad_l = (grad_l - left * inner) * rstd
            grad_r = (grad_r - right * inner) * rstd
        target = grad_qkv_ptr + at
        tl.store(target, grad_l.to(grad_qkv_ptr.dtype.element_ty), mask=inside)
        tl.store(target + HALF, grad_r.to(grad_qkv_ptr.dtype.element_ty), mask=inside)
    if HAS_NORM:
        tl.store(part_ptr + columns, sums_l, mask=real)
        tl.store(part_ptr + HALF + columns, sums_r, mask=real)


@triton.jit(do_not_specialize=["length", "table_b", "n_rows"])
def _heads_backward(
    grad_q_ptr,
    grad_k_ptr,
    grad_v_ptr,
    qkv_ptr,
    grad_qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    q_part_ptr,  # (tiles x groups of queries, K) fp32
    k_part_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    length,
    table_b,
    n_rows,
    position_a,
    position_b,
    eps,
    N: tl.constexpr,
    N_KV: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HEADS: tl.constexpr,
    END_0: tl.constexpr,
    END_1: tl.constexpr,
    N_AXES: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    tile = tl.program_id(0)
    n_tiles = tl.cdiv(length, BLOCK_T)
    b = (tile // n_tiles).to(tl.int64)
    steps = tile % n_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_HALF)
    inside = (steps < length)[:, None] & (columns < HALF)[None, :]
    rows = steps.to(tl.int64)[:, None]
    Q_GROUPS: tl.constexpr = (N + HEADS - 1) // HEADS
    KV_GROUPS: tl.constexpr = (N_KV + HEADS - 1) // HEADS
    ALL: tl.constexpr = N + 2 * N_KV
    group = tl.program_id(1)
    if group < Q_GROUPS + KV_GROUPS:
        cos, sin = angles(
            cos_ptr, sin_ptr, positions_ptr, b, steps, columns, inside, table_b, n_rows,
            position_a, position_b, END_0, END_1, HALF, N_AXES, True,
        )  # fmt: skip
        if group < Q_GROUPS:
            part = q_part_ptr + (tile * Q_GROUPS + group).to(tl.int64) * (2 * HALF)
            _turn_back(
                grad_q_ptr, qkv_ptr, grad_qkv_ptr, q_weight_ptr, part, cos, sin, b, rows, columns,
                inside, length, group, eps, 0, N, ALL, HALF, BLOCK_HALF, HEADS, HAS_NORM,
            )  # fmt: skip
        else:
            group -= Q_GROUPS
            part = k_part_ptr + (tile * KV_GROUPS + group).to(tl.int64) * (2 * HALF)
            _turn_back(
                grad_k_ptr, qkv_ptr, grad_qkv_ptr, k_weight_ptr, part, cos, sin, b, rows, columns,
                inside, length, group, eps, N, N_KV, ALL, HALF, BLOCK_HALF, HEADS, HAS_NORM,
            )  # fmt: skip
    else:
        _copy_heads(
            grad_v_ptr, grad_qkv_ptr, b, rows, columns, inside, length,
            group - Q_GROUPS - KV_GROUPS, N + N_KV, N_KV, ALL, HALF, HEADS, True,
        )  # fmt: skip


@torch.library.custom_op("polyglyph::heads", mutates_args=())
@on_its_device
def _heads(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    sections: Sequence[int],
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    qkv = qkv.contiguous()
    batch, length, _ = qkv.shape
    width = qkv.shape[2] // (n_heads + 2 * n_kv_heads)
    outs = [qkv.new_empty(batch, n, length, width) for n in (n_heads, n_kv_heads, n_kv_heads)]
    if qkv.numel():
        has_norm = q_weight is not None
        weights = [qkv if w is None else w.contiguous() for w in (q_weight, k_weight)]
        grid, arguments = _heads_launch(qkv, cos, sin, positions, sections, n_heads, n_kv_heads)
        _heads_forward[grid](
            qkv, *outs, *weights, eps=eps, HAS_NORM=has_norm, enable_fp_fusion=True, **arguments
        )
    return outs[0], outs[1], outs[2]


def _heads_launch(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    sections: Sequence[int],
    n_heads: int,
    n_kv_heads: int,
) -> tuple[tuple[int, int], dict[str, Any]]:
    """(grid, arguments that both directions share)"""
    batch, length, total = qkv.shape
    sizes = tuned(total // (n_heads + 2 * n_kv_heads), qkv.device)
    groups = [triton.cdiv(n, sizes["HEADS"]) for n in (n_heads, n_kv_heads, n_kv_heads)]
    cos, sin = cos.contiguous(), sin.contiguous()
    places = None if positions is None else positions.contiguous()
    pointers = {"cos_ptr": cos, "sin_ptr": sin, "positions_ptr": cos if places is None else places}
    numbers = {"length": length, "N": n_heads, "N_KV": n_kv_heads}
    grid = (batch * triton.cdiv(length, sizes["BLOCK_T"]), sum(groups))
    return grid, pointers | numbers | placed(cos, places, sections) | sizes


@torch.library.custom_op("polyglyph::heads_backward", mutates_args=())
@on_its_device
def _heads_backward_op(
    grads: Sequence[Tensor],
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    sections: Sequence[int],
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by qkv and by both weights (empty where there are none)."""
    qkv = qkv.contiguous()
    width = qkv.shape[2] // (n_heads + 2 * n_kv_heads)
    grad_qkv = torch.empty_like(qkv)
    grid, arguments = _heads_launch(qkv, cos, sin, positions, sections, n_heads, n_kv_heads)
    if q_weight is None or k_weight is None:
        weights, parts = [qkv, qkv], [qkv.new_empty(0), qkv.new_empty(0)]
    else:
        weights = [q_weight.contiguous(), k_weight.contiguous()]
        groups = [triton.cdiv(n, arguments["HEADS"]) for n in (n_heads, n_kv_heads)]
        made = {"dtype": torch.float32, "device": qkv.device}
        parts = [torch.empty(grid[0] * n, width, **made) for n in groups]
    if qkv.numel():
        _heads_backward[grid](
            *(grad.contiguous() for grad in grads), qkv, grad_qkv, *weights, *parts, eps=eps,
            HAS_NORM=q_weight is not None, enable_fp_fusion=True, **arguments,
        )  # fmt: skip
    if q_weight is None or k_weight is None:
        return grad_qkv, parts[0], parts[1]
    by_q, by_k = (part.sum(0).to(w.dtype) for part, w in zip(parts, weights, strict=True))
    return grad_qkv, by_q, by_k


@_heads.register_fake
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    sections: Sequence[int],
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, total = qkv.shape
    width = total // (n_heads + 2 * n_kv_heads)
    q = qkv.new_empty(batch, n_heads, length, width)
    k, v = (qkv.new_empty(batch, n_kv_heads, length, width) for _ in range(2))
    return q, k, v


@_heads_backward_op.register_fake
def _(
    grads: Sequence[Tensor],
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    sections: Sequence[int],
    n_heads: int,
    n_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    by_q, by_k = (
        qkv.new_empty(0) if w is None else w.new_empty(w.shape) for w in (q_weight, k_weight)
    )
    return qkv.new_empty(qkv.shape), by_q, by_k


def _keep_heads(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.numbers = inputs[6:]


def _heads_grads(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    by_qkv, by_q, by_k = _heads_backward_op(list(grads), *ctx.saved_tensors, *ctx.numbers)
    has_norm = ctx.saved_tensors[4] is not None
    weights = (by_q, by_k) if has_norm else (None, None)
    return by_qkv, None, None, None, *weights, None, None, None, None


_heads.register_autograd(_heads_grads, setup_context=_keep_heads)


def heads_triton(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    sections: Sequence[int] | None,
    weights: tuple[Tensor | None, Tensor | None],
    counts: tuple[int, int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`heads` for checked arguments."""
    return _heads(qkv, cos, sin, positions, *weights, list(sections or ()), *counts, eps)


def _compilation(kind: str, width: int, has_norm: bool, kernel: Any) -> Compilation:
    constants = tuned(width, torch.device("cpu"))
    warps = constants.pop("num_warps")
    constants |= {"N": 32, "N_KV": 8, "END_0": 0, "END_1": 0, "N_AXES": 0, "HAS_NORM": has_norm}
    signature = dict.fromkeys(kernel.arg_names, "i32") | {"eps": "fp32"}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            is_wide = "weight" in name or "part" in name or "sin" in name or "cos" in name
            signature[name] = "*fp32" if is_wide or "positions" in name else f"*{kind}"
    norm = "" if has_norm else " without norm"
    return Compilation(
        name=f"heads{kernel.__name__.removeprefix('_heads')} w{width} {kind}{norm}",
        kernel=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        num_warps=warps,
        num_stages=3,
        divisible=tuple(name for name in signature if name.endswith("_ptr")),
    )


COMPILATIONS = [
    _compilation(kind, width, has_norm, kernel)
    for kind, width in (("bf16", 128), ("fp16", 128), ("fp32", 128), ("bf16", 64), ("bf16", 256))
    for has_norm in ((True, False) if (kind, width) == ("bf16", 128) else (True,))
    for kernel in (_heads_forward, _heads_backward)
]
