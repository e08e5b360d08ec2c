"""sampling_head in Triton: all slots of a batch in one launch, then guidance in a second.

A program forms the logits of one slot's rows over a block of that slot's columns; it finds the
rows of the head by their ids, so several ranges cost no copy. Sums run in one fixed order over
the width. Where there is guidance the first kernel also leaves the maximum and the sum of
exponentials of every row and block, from which the second normalises. Knows ids and slots only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Compilation
from polyglyph.kernels.sampling_head import Group

FLOOR = tl.constexpr(-1e38)  # the logit of no column: finite, so that no inf - inf arises
LOG2_E = tl.constexpr(1.4426950408889634)
N_RANGES = 4
SMALL = 8192  # columns up to which narrow blocks fill the card
MIX = (
    1024  # columns of a program of the second kernel, and blocks whose statistics it reads at once
)
# architecture -> (bytes of an element, whether the slot is small) -> (columns, width of a step,
# stages), with 4 warps. From the resource report, not from timings: no GPU has run them.
_TILES: dict[int, dict[tuple[int, bool], tuple[int, int, int]]] = {
    80: {
        (2, True): (32, 128, 4), (2, False): (64, 128, 3),
        (4, True): (32, 32, 3), (4, False): (64, 32, 3),
    },
    90: {
        (2, True): (32, 128, 5), (2, False): (64, 128, 4),
        (4, True): (32, 32, 3), (4, False): (64, 32, 3),
    },
}  # fmt: skip


@triton.jit
def _dot(a, b, total, UPCAST: tl.constexpr):
    """total + a @ b in fp32. The interpreter is silently wrong for bf16: it upcasts first."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit(do_not_specialize=["n_blocks"])
def _logits(
    hidden_ptr,  # (R, D)
    weight_ptr,  # (V, D)
    order_ptr,  # (P,) int64: a row of hidden for each place; a group's places are neighbours
    groups_ptr,  # (groups, 12) int64: first place, places, offset in out, columns, 4 (start, width)
    out_ptr,  # fp32, (places, columns) of each group
    stats_ptr,  # (P, n_blocks, 2) fp32: log2-maximum and sum of exponentials, with STATS
    stride_h,
    stride_w,
    n_blocks,
    WIDTH: tl.constexpr,  # D
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STATS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    block = tl.program_id(0)
    group_ptr = groups_ptr + tl.program_id(1) * 12
    n_rows = tl.load(group_ptr + 1)
    n_columns = tl.load(group_ptr + 3)
    if (block * BLOCK_N < n_columns) & (tl.program_id(2) * BLOCK_M < n_rows):
        rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
        real, inside = rows < n_rows, columns < n_columns
        ids = tl.load(group_ptr + 4) + columns
        passed = tl.load(group_ptr + 5)
        for i in tl.static_range(1, 4):
            start = tl.load(group_ptr + 4 + 2 * i)
            ids = tl.where(columns >= passed, start + columns - passed, ids)
            passed += tl.load(group_ptr + 5 + 2 * i)
        places = tl.load(group_ptr) + rows
        sources = tl.load(order_ptr + places, mask=real, other=0)
        steps = tl.arange(0, BLOCK_D)
        hidden = hidden_ptr + sources[:, None] * stride_h + steps
        weight = weight_ptr + ids[:, None] * stride_w + steps
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, WIDTH, BLOCK_D):
            wide = steps < WIDTH - first
            h = tl.load(hidden + first, mask=real[:, None] & wide, other=0.0)
            w = tl.load(weight + first, mask=inside[:, None] & wide, other=0.0)
            total = _dot(h, tl.trans(w), total, UPCAST)
        out = tl.load(group_ptr + 2) + rows[:, None] * n_columns + columns
        tl.store(out_ptr + out, total, mask=real[:, None] & inside)
        if STATS:
            scores = tl.where(inside, total * LOG2_E, FLOOR)
            highest = tl.max(scores, 1)
            sums = tl.sum(tl.where(inside, tl.exp2(scores - highest[:, None]), 0.0), 1)
            stats = stats_ptr + (places * n_blocks + block) * 2
            tl.store(stats, highest, mask=real)
            tl.store(stats + 1, sums, mask=real)


@triton.jit
def _log2_sum(stats_ptr, used, MIX: tl.constexpr):
    """log2 of the sum of exponentials of one row, from those of its first `used` blocks."""
    highest = tl.full([], FLOOR, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, used, MIX):
        blocks = start + tl.arange(0, MIX)
        read = blocks < used
        maxima = tl.load(stats_ptr + 2 * blocks, mask=read, other=FLOOR)
        sums = tl.load(stats_ptr + 2 * blocks + 1, mask=read, other=0.0)
        higher = tl.maximum(highest, tl.max(maxima, 0))
        total = total * tl.exp2(highest - higher) + tl.sum(sums * tl.exp2(maxima - higher), 0)
        highest = higher
    return highest + tl.log2(total)


@triton.jit(do_not_specialize=["n_blocks"])
def _mix(
    out_ptr,  # the logits; a conditional row gets the mixture
    stats_ptr,  # (P, n_blocks, 2) fp32
    pairs_ptr,  # (pairs, 5) int64: both places, both offsets in out, columns
    guidance_ptr,  # (pairs,) fp32
    n_blocks,
    BLOCK_N: tl.constexpr,  # of the first kernel
    MIX: tl.constexpr,
):
    pair_ptr = pairs_ptr + tl.program_id(1) * 5
    n_columns = tl.load(pair_ptr + 4)
    if tl.program_id(0) * MIX < n_columns:
        used = (n_columns + BLOCK_N - 1) // BLOCK_N
        own = _log2_sum(stats_ptr + tl.load(pair_ptr) * n_blocks * 2, used, MIX) / LOG2_E
        other = _log2_sum(stats_ptr + tl.load(pair_ptr + 1) * n_blocks * 2, used, MIX) / LOG2_E
        columns = tl.program_id(0) * MIX + tl.arange(0, MIX)
        inside = columns < n_columns
        place = out_ptr + tl.load(pair_ptr + 2) + columns
        behind = out_ptr + tl.load(pair_ptr + 3) + columns
        conditional = tl.load(place, mask=inside, other=0.0) - own
        unconditional = tl.load(behind, mask=inside, other=0.0) - other
        guidance = tl.load(guidance_ptr + tl.program_id(1))
        mixed = unconditional + guidance * (conditional - unconditional)
        tl.store(place, mixed, mask=inside)


def sampling_head_triton(
    hidden: Tensor, weight: Tensor, groups: list[Group], n_rows: int
) -> list[Tensor]:
    """The logits (b, n) of each group, for checked arguments; views of one buffer."""
    plan = _plan(tuple(groups), n_rows, hidden.device)
    flat = _op(hidden.to(weight.dtype), weight, plan.numbers, plan.guidance, plan.sizes, plan.n_out)
    return [flat[begin : begin + n * m].view(n, m) for begin, n, m in plan.views]


@dataclass(frozen=True)
class Plan:
    """Which rows meet which columns, and where the logits go."""

    numbers: Tensor  # int64: order, groups and pairs of the kernels, joined
    guidance: Tensor  # (pairs,) fp32
    sizes: list[int]  # places, groups, most places and most columns of a group
    n_out: int
    views: list[tuple[int, int, int]]  # each group's place among the logits, rows, columns


@lru_cache(maxsize=64)  # most steps of a picture are alike: no copy to the device, no wait
def _plan(groups: tuple[Group, ...], n_rows: int, device: torch.device) -> Plan:
    order: list[int] = []
    table: list[list[int]] = []
    pairs: list[list[int]] = []
    guidance: list[float] = []
    views: list[tuple[int, int, int]] = []
    offset = 0
    for group in groups:
        first, n_columns, n = len(order), group.n_columns, len(group.rows)
        order += group.rows
        if group.guidance != 1.0:
            order += [row + n_rows for row in group.rows]
            guidance += [group.guidance] * n
            for i in range(n):
                own, other = offset + i * n_columns, offset + (n + i) * n_columns
                pairs.append([first + i, first + n + i, own, other, n_columns])
        spans = [(start, stop - start) for start, stop in group.ranges]
        if len(spans) > N_RANGES:
            raise ValueError(f"slot_table: a slot has {len(spans)} ranges, at most {N_RANGES}")
        spans += [(0, 0)] * (N_RANGES - len(spans))
        places = len(order) - first
        table.append([first, places, offset, n_columns, *chain(*spans)])
        views.append((offset, n, n_columns))
        offset += places * n_columns
    return Plan(
        numbers=torch.tensor([*order, *chain(*table, *pairs)], device=device),
        guidance=torch.tensor(guidance, device=device),
        sizes=[len(order), len(table), max(row[1] for row in table), max(row[3] for row in table)],
        n_out=offset,
        views=views,
    )


@torch.library.custom_op("polyglyph::sampling_head", mutates_args=())
@backend.on_its_device
def _op(
    hidden: Tensor, weight: Tensor, plan: Tensor, guidance: Tensor, sizes: list[int], n_out: int
) -> Tensor:
    """All logits (n_out,) fp32, those of unconditional rows too; the rest as in Plan."""
    n_places, n_groups, most_rows, most_columns = sizes
    order, table, pairs = plan.split([n_places, 12 * n_groups, 5 * len(guidance)])
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    tuned = _tuned(
        backend.architecture(hidden.device), weight.dtype.itemsize, most_rows, most_columns
    )
    n_blocks = triton.cdiv(most_columns, tuned["BLOCK_N"])
    out = torch.empty(n_out, dtype=torch.float32, device=hidden.device)
    stats = out  # not written without guidance
    if len(guidance):
        stats = torch.empty(n_places, n_blocks, 2, dtype=torch.float32, device=hidden.device)
    _logits[(n_blocks, n_groups, triton.cdiv(most_rows, tuned["BLOCK_M"]))](
        hidden, weight, order, table, out, stats, hidden.stride(0), weight.stride(0), n_blocks,
        WIDTH=hidden.shape[1], STATS=len(guidance) > 0, UPCAST=backend.interpreting(),
        enable_fp_fusion=True, **tuned,
    )  # fmt: skip
    if len(guidance):
        _mix[(triton.cdiv(most_columns, MIX), len(guidance))](
            out, stats, pairs, guidance, n_blocks, BLOCK_N=tuned["BLOCK_N"], MIX=MIX,
            num_warps=4, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return out


@_op.register_fake
def _(
    hidden: Tensor, weight: Tensor, plan: Tensor, guidance: Tensor, sizes: list[int], n_out: int
) -> Tensor:
    return hidden.new_empty(n_out, dtype=torch.float32)


def _tuned(architecture: int, itemsize: int, n_rows: int, n_columns: int) -> dict[str, Any]:
    block_m = max(16, min(64, triton.next_power_of_2(n_rows)))
    if itemsize == 4:  # products by FMA, all operands in registers: more rows spill
        block_m = 16
    block_n, block_d, stages = _TILES[architecture][itemsize, n_columns <= SMALL]
    return {
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d,
        "num_warps": 4, "num_stages": stages,
    }  # fmt: skip


# --- every shipped configuration ----------------------------------------------------------------

_NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _compilation(
    dtype: str, n_rows: int, n_columns: int, arch: int, stats: bool = True
) -> Compilation:
    tuned = _tuned(arch, _NAMES[dtype].itemsize, n_rows, n_columns)
    warps, stages = tuned.pop("num_warps"), tuned.pop("num_stages")
    constants = {"WIDTH": 4096, "STATS": stats, "UPCAST": False} | tuned
    signature = {"hidden_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}", "order_ptr": "*i64"}
    signature |= {"groups_ptr": "*i64", "out_ptr": "*fp32", "stats_ptr": "*fp32"}
    divisible = ("hidden_ptr", "weight_ptr", "out_ptr", "stats_ptr", "stride_h", "stride_w")
    signature |= dict.fromkeys(("stride_h", "stride_w", "n_blocks"), "i32")
    # Tiles of 16 and 32 rows are too low for Hopper's wgmma; memory is what they wait for.
    product = "HGMMA" if arch == 90 and tuned["BLOCK_M"] == 64 else "HMMA"
    return Compilation(
        f"sampling_head {dtype} {tuned['BLOCK_M']}x{tuned['BLOCK_N']}"
        f"{'' if stats else ' plain'} sm{arch}",
        _logits,
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        warps,
        stages,
        divisible=divisible,
        architectures=(arch,),
        opcodes={} if dtype == "fp32" else {arch: (product, "LDGSTS")},
    )


def _mix_compilation() -> Compilation:
    signature = {"out_ptr": "*fp32", "stats_ptr": "*fp32", "pairs_ptr": "*i64"}
    signature |= {"guidance_ptr": "*fp32", "n_blocks": "i32"}
    constants = {"BLOCK_N": 64, "MIX": MIX}
    return Compilation(
        "sampling_head mix", _mix, signature | dict.fromkeys(constants, "constexpr"), constants,
        4, 2, divisible=("out_ptr", "stats_ptr", "guidance_ptr"),
    )  # fmt: skip


def _compilations() -> list[Compilation]:
    made = []
    for arch in (90, 80):
        made += [_compilation("bf16", n, 32_768, arch) for n in (16, 32, 64)]
        made += [_compilation("bf16", n, 2048, arch) for n in (16, 64)]
        made += [_compilation("bf16", 16, 32_768, arch, stats=False)]
        made += [_compilation("fp16", 16, 32_768, arch)]
        made += [_compilation("fp32", 16, n, arch) for n in (32_768, 2048)]
    return [*made, _mix_compilation()]


COMPILATIONS = _compilations()
