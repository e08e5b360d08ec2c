"""rope in Triton: a program takes a tile of positions and a group of heads.

The tile's angles are read once for all its heads; a head's two halves are two tiles. The rotation
back, for gradients, is the same kernel with the sine negated. fp32 inside, one rounding; nothing is
summed, so it is deterministic. Knows nothing of attention or documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyglyph.kernels.backend import architecture, on_its_device
from polyglyph.kernels.contract import Compilation

# architecture -> (elements of a tile of one half, heads per program, warps).
# From the resource report, not from timings: no GPU has run them.
_TUNED = {80: (1024, 8, 4), 90: (1024, 8, 4)}


@triton.jit
def angles(
    cos_ptr,
    sin_ptr,
    positions_ptr,  # (A, B, T) or (A, T)
    b,
    steps,  # (BLOCK_T,)
    columns,  # (BLOCK_HALF,)
    inside,
    table_b,  # rows from one batch row's table to the next
    n_rows,  # of the table
    position_a,  # strides
    position_b,
    END_0: tl.constexpr,  # where the first axis' pairs end, and the second's
    END_1: tl.constexpr,
    HALF: tl.constexpr,
    N_AXES: tl.constexpr,
    BACK: tl.constexpr,
):
    """cos and sin of a tile; NaN for positions outside the table, which is never left."""
    if N_AXES == 0:
        rows = (b * table_b + steps).to(tl.int64)[:, None]
        known = inside
    else:
        axis = (columns >= END_0).to(tl.int64) + (columns >= END_1).to(tl.int64)
        places = axis[None, :] * position_a + b * position_b + steps[:, None]
        rows = tl.load(positions_ptr + places, mask=inside, other=0).to(tl.int64)
        known = inside & (rows >= 0) & (rows < n_rows)
    places = rows * HALF + columns[None, :]
    cos = tl.load(cos_ptr + places, mask=known, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + places, mask=known, other=0.0).to(tl.float32)
    cos = tl.where(inside & (known == 0), float("nan"), cos)
    if BACK:
        sin = -sin
    return cos, sin


@triton.jit(do_not_specialize=["n_heads", "length", "table_b", "n_rows"])
def _rotate(
    x_ptr,  # (B, N, T, K), strided
    y_ptr,  # (B, N, T, K)
    cos_ptr,
    sin_ptr,
    positions_ptr,
    stride_b,
    stride_n,
    stride_t,
    n_heads,
    length,
    table_b,
    n_rows,
    position_a,
    position_b,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HEADS: tl.constexpr,
    END_0: tl.constexpr,
    END_1: tl.constexpr,
    N_AXES: tl.constexpr,
    BACK: tl.constexpr,
):
    n_tiles = tl.cdiv(length, BLOCK_T)
    b = (tl.program_id(0) // n_tiles).to(tl.int64)
    steps = tl.program_id(0) % n_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_HALF)
    inside = (steps < length)[:, None] & (columns < HALF)[None, :]
    cos, sin = angles(
        cos_ptr, sin_ptr, positions_ptr, b, steps, columns, inside, table_b, n_rows,
        position_a, position_b, END_0, END_1, HALF, N_AXES, BACK,
    )  # fmt: skip
    first = tl.program_id(1) * HEADS
    rows = steps.to(tl.int64)[:, None]
    for head in range(first, tl.minimum(first + HEADS, n_heads)):
        source = x_ptr + b * stride_b + head * stride_n + rows * stride_t + columns[None, :]
        left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        target = y_ptr + ((b * n_heads + head) * length + rows) * (2 * HALF) + columns[None, :]
        y = left * cos - right * sin
        tl.store(target, y.to(y_ptr.dtype.element_ty), mask=inside)
        y = right * cos + left * sin
        tl.store(target + HALF, y.to(y_ptr.dtype.element_ty), mask=inside)


def tuned(width: int, device: torch.device) -> dict[str, int]:
    elements, heads, warps = _TUNED[architecture(device)]
    half = triton.next_power_of_2(width // 2)
    constants = {"HALF": width // 2, "BLOCK_HALF": half, "BLOCK_T": max(1, elements // half)}
    return constants | {"HEADS": heads, "num_warps": warps}


def placed(cos: Tensor, positions: Tensor | None, sections: Sequence[int]) -> dict[str, Any]:
    """The launch arguments that say where the angles of a batch row and step stand."""
    if positions is None:
        table_b = cos.shape[-2] if cos.ndim == 3 else 0
        numbers = {"table_b": table_b, "n_rows": cos.shape[-2], "position_a": 0, "position_b": 0}
        return numbers | {"END_0": 0, "END_1": 0, "N_AXES": 0}
    length = positions.shape[-1]
    by_axis = positions.numel() // max(1, len(sections))
    ends = [sum(sections[: i + 1]) if sections else cos.shape[-1] for i in range(2)]
    return {
        "table_b": 0,
        "n_rows": cos.shape[-2],
        "position_a": by_axis if sections else 0,
        "position_b": length if positions.ndim == (3 if sections else 2) else 0,
        "END_0": ends[0],
        "END_1": ends[1],
        "N_AXES": max(1, len(sections)),
    }


@torch.library.custom_op("polyglyph::rope", mutates_args=())
@on_its_device
def _rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    sections: Sequence[int],
    back: bool,
) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    batch, n_heads, length, width = x.shape
    y = x.new_empty(x.shape)
    if y.numel():
        cos, sin = cos.contiguous(), sin.contiguous()
        places = None if positions is None else positions.contiguous()
        sizes = tuned(width, x.device)
        n_tiles = triton.cdiv(length, sizes["BLOCK_T"])
        _rotate[(batch * n_tiles, triton.cdiv(n_heads, sizes["HEADS"]))](
            x, y, cos, sin, cos if places is None else places,
            *x.stride()[:3], n_heads, length, **placed(cos, places, sections),
            BACK=back, enable_fp_fusion=True, **sizes,
        )  # fmt: skip
    return y


@_rope.register_fake
def _(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    sections: Sequence[int],
    back: bool,
) -> Tensor:
    return x.new_empty(x.shape)


def _keep_angles(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.sections, ctx.back = inputs[4:]


def _rope_grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    turned = _rope(grad, *ctx.saved_tensors, ctx.sections, not ctx.back)
    return turned, None, None, None, None, None


_rope.register_autograd(_rope_grads, setup_context=_keep_angles)


def rope_triton(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, sections: Sequence[int] | None
) -> Tensor:
    """`rope` for checked arguments."""
    return _rope(x, cos, sin, positions, list(sections or ()), False)


def _compilation(kind: str, width: int, n_axes: int, back: bool) -> Compilation:
    constants = tuned(width, torch.device("cpu"))
    warps = constants.pop("num_warps")
    ends = (width // 8, width // 4 + width // 16) if n_axes else (0, 0)
    constants |= {"END_0": ends[0], "END_1": ends[1], "N_AXES": n_axes, "BACK": back}
    signature = dict.fromkeys(_rotate.arg_names, "i32")
    signature |= {"x_ptr": f"*{kind}", "y_ptr": f"*{kind}", "cos_ptr": "*fp32", "sin_ptr": "*fp32"}
    signature |= {"positions_ptr": "*i64" if n_axes else "*fp32"}
    return Compilation(
        name=f"rope w{width} {kind}{f' {n_axes} axes' if n_axes else ''}{' back' if back else ''}",
        kernel=_rotate,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        num_warps=warps,
        num_stages=3,
        divisible=tuple(n for n in signature if n.endswith("_ptr") or n.startswith("stride_")),
    )


assert _TUNED[80] == _TUNED[90], "COMPILATIONS take them for one"
COMPILATIONS = [
    _compilation(kind, width, n_axes, back)
    for kind, width in (("bf16", 128), ("fp16", 128), ("fp32", 128), ("bf16", 64), ("bf16", 256))
    for n_axes in ((0, 3) if (kind, width) == ("bf16", 128) else (0,))
    for back in (False, True)
]
