"""Linear head and cross-entropy in Triton, sliced by slot: launches, operators, configurations.

Forward: one program per (row block, part of its slice) keeps a running maximum and sum in base 2;
a second kernel joins the parts in their order and forms the target's logit. Backward: logits are
formed anew, tile by tile; dlogits go to a bounded buffer, from which one kernel sums dhidden by row
block and another dweight by tile. That is four products where dense training has three, the least
of an exact recomputation (Cut Cross-Entropy, arXiv:2411.09009, forms logits twice: five). No
atomics, all sums in a fixed order, fp32 accumulators. Knows sorted rows and id ranges only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Compilation
from polyglyph.kernels.cross_entropy_blocks import (
    WIDTH,
    as_groups,
    backward_passes,
    forward_work,
)
from polyglyph.kernels.cross_entropy_tiles_triton import dhidden, dlogits, dweight, forward, join

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Elements of the dlogits buffer: 256 MiB in bf16, of which 16,384 rows take 8,192 ids at a time.
BUFFER_ELEMENTS = 1 << 27
SPLIT = 16  # tiles of one part of a row's sum: 4,096 ids with tiles of 256
# architecture -> bytes of an element -> (BLOCK_M rows, BLOCK_N ids, BLOCK_D columns of dhidden and
# of dweight, BLOCK_K of every product's inner axis, warps, stages). From the resource report
# (no spill, shared memory), not from timings: no GPU has run them.
_TUNED = {
    80: {2: (128, 128, 128, 128, 32, 8, 4), 4: (64, 64, 32, 64, 16, 4, 2)},
    90: {2: (128, 256, 256, 128, 64, 8, 3), 4: (64, 64, 32, 64, 16, 4, 3)},
}
# bf16 and fp16 of a D that isn't a multiple of 64: larger tiles would spill beside their masks.
_RAGGED = (64, 64, 64, 64, 32, 4, 2)
_JOIN_ROWS, _JOIN_WIDTH = 16, 128

# --- launches -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Blocks:
    m: int  # rows
    n: int  # ids
    d_hidden: int  # columns of dhidden
    d_weight: int  # columns of dweight
    k: int  # of every product's inner axis
    even: bool  # whether D is a multiple of d_hidden, d_weight and k
    options: dict[str, int]

    @property
    def logits(self) -> tuple[int, int, int, bool, bool]:
        return self.m, self.n, self.k, self.even, backend.interpreting()


def _tuned(dtype: torch.dtype, width: int, architecture: int) -> _Blocks:
    row = _TUNED[architecture][dtype.itemsize]
    if width % 64 and dtype.itemsize == 2:
        row = _RAGGED
    m, n, d_hidden, d_weight, k, warps, stages = row
    if dtype.itemsize == 2 and width % max(d_hidden, d_weight):  # a multiple of 64, or ragged
        d_hidden = d_weight = 64
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return _Blocks(m, n, d_hidden, d_weight, k, width % 64 == 0, options)


def _on(device: torch.device, *tables: Any) -> list[Tensor]:
    # What numpy stacks may lie column by column in memory.
    return [torch.from_numpy(np.ascontiguousarray(table)).to(device) for table in tables]


def _ranges(groups: Sequence[int], device: torch.device) -> Tensor:
    flat = torch.tensor(list(groups), dtype=torch.int32).view(-1, WIDTH)
    return flat[:, 2:].contiguous().to(device)


def _head(weight: Tensor, dtype: torch.dtype) -> Tensor:
    head = weight.to(dtype)
    return head if head.stride(1) == 1 else head.contiguous()


@torch.library.custom_op("polyglyph::cross_entropy", mutates_args=())
@backend.on_its_device
def _lse_and_picked(
    hidden: Tensor, weight: Tensor, targets: Tensor, groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    n, width = hidden.shape
    lse, picked = (hidden.new_empty(n, dtype=torch.float32) for _ in range(2))
    if n == 0:
        return lse, picked
    device, head = hidden.device, _head(weight, hidden.dtype)
    blocks = _tuned(hidden.dtype, width, backend.architecture(device))
    work = forward_work(groups, len(weight), blocks.m, blocks.n, SPLIT)
    jobs, parts = _on(device, work.jobs, work.parts)
    n_parts = int(work.parts.max())
    top, total = (hidden.new_empty(n_parts, n, dtype=torch.float32) for _ in range(2))
    sizes = (width, len(weight), head.stride(0))
    forward[(len(jobs),)](
        hidden, head, jobs, _ranges(groups, device), top, total, n, *sizes,
        *blocks.logits, **blocks.options,
    )  # fmt: skip
    join[(triton.cdiv(n, _JOIN_ROWS),)](
        hidden, head, targets, parts, top, total, lse, picked, n, n_parts, width, head.stride(0),
        _JOIN_ROWS, _JOIN_WIDTH, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return lse, picked


@torch.library.custom_op("polyglyph::cross_entropy_backward", mutates_args=())
@backend.on_its_device
def _backward(
    grad_lse: Tensor,
    grad_picked: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    groups: Sequence[int],
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden (n, D) and weight (V, D), or empty ones where they aren't needed."""
    n, width = hidden.shape
    device, dtype = hidden.device, hidden.dtype
    grad_hidden = lse.new_zeros((n, width) if needs_hidden else 0)
    grad_weight = weight.new_zeros(weight.shape if needs_weight else 0)
    if n == 0 or not (needs_hidden or needs_weight):
        return grad_hidden.to(dtype), grad_weight
    grad_lse, grad_picked, scale = _scaled(grad_lse, grad_picked, dtype)
    blocks = _tuned(dtype, width, backend.architecture(device))
    head, ranges = _head(weight, dtype), _ranges(groups, device)
    passes = backward_passes(groups, len(weight), blocks.m, blocks.n, BUFFER_ELEMENTS)
    buffer = hidden.new_empty(max(one.n_elements for one in passes))
    sizes = (width, len(weight), head.stride(0))
    rest = (blocks.k, blocks.even, backend.interpreting())
    for one in passes:
        logit_jobs, hidden_jobs, hidden_panels, weight_jobs, weight_panels = _on(
            device, one.logit_jobs, one.hidden_jobs, one.hidden_panels,
            one.weight_jobs, one.weight_panels,
        )  # fmt: skip
        dlogits[(len(logit_jobs),)](
            hidden, head, targets, lse, grad_lse, grad_picked, logit_jobs, ranges, buffer, *sizes,
            *blocks.logits, **blocks.options,
        )  # fmt: skip
        if needs_hidden:
            dhidden[(triton.cdiv(width, blocks.d_hidden), len(hidden_jobs))](
                buffer, head, hidden_jobs, hidden_panels, grad_hidden, *sizes,
                blocks.m, blocks.d_hidden, *rest, **blocks.options,
            )  # fmt: skip
        if needs_weight:
            dweight[(triton.cdiv(width, blocks.d_weight), len(weight_jobs))](
                buffer, hidden, weight_jobs, weight_panels, grad_weight, scale,
                width, len(weight), blocks.n, blocks.d_weight, *rest, **blocks.options,
            )  # fmt: skip
    return grad_hidden.mul_(scale).to(dtype), grad_weight


def _scaled(
    grad_lse: Tensor, grad_picked: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Both gradients, and what undoes their scale, (1,). In fp16 a mean over many rows would make
    dlogits vanish (below 6e-8): the largest is brought near 2^12, by a power of two."""
    pair = torch.stack([grad_lse, grad_picked]).float()
    scale = pair.new_ones(1)
    if dtype == torch.float16:
        exponent = torch.frexp(pair.abs().amax()).exponent.clamp(-100, 100)
        scale = torch.ldexp(scale, exponent - 12)
    pair = pair / scale
    return pair[0], pair[1], scale


@_lse_and_picked.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    n = hidden.shape[0]
    return hidden.new_empty(n, dtype=torch.float32), hidden.new_empty(n, dtype=torch.float32)


@_backward.register_fake
def _(
    grad_lse: Tensor, grad_picked: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor,
    lse: Tensor, groups: Sequence[int], needs_hidden: bool, needs_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return (
        hidden.new_empty(hidden.shape if needs_hidden else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, targets, ctx.groups = inputs
    ctx.save_for_backward(hidden, weight, targets, output[0])


def _gradients(ctx: Any, grad_lse: Tensor, grad_picked: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    found = _backward(grad_lse, grad_picked, *ctx.saved_tensors, ctx.groups, *needs)
    return *(grad if need else None for grad, need in zip(found, needs, strict=True)), None, None


_lse_and_picked.register_autograd(_gradients, setup_context=_keep)


def cross_entropy_triton(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    groups: Sequence[tuple[int, int, Sequence[tuple[int, int]]]],
) -> tuple[Tensor, Tensor]:
    """(log of the sum of exp, the target's logit), fp32 (n,), differentiable, of sorted rows.

    hidden (n, D) in the dtype of the products, one of DTYPES; weight (V, D) in any; targets (n,)
    int64 ids; groups: begin, end and id ranges of every slice, which cover all rows in order.
    dweight comes in weight's dtype from fp32 sums."""
    if hidden.dtype not in DTYPES:
        raise ValueError(f"hidden must be bf16, fp16 or fp32 for Triton, got {hidden.dtype}")
    return _lse_and_picked(hidden.contiguous(), weight, targets, as_groups(groups))


# --- the shipped configurations -----------------------------------------------------------------


_FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_POINTERS = {
    "jobs_ptr": "*i64", "panels_ptr": "*i64", "targets_ptr": "*i64", "ranges_ptr": "*i32",
    "parts_ptr": "*i32", "grad_hidden_ptr": "*fp32", "grad_weight_ptr": "*fp32",
    "hidden_ptr": "", "weight_ptr": "", "buffer_ptr": "",
}  # fmt: skip


def _compilations() -> list[Compilation]:
    """A width for each set of blocks: a multiple of 256, of 64, of neither."""
    products = (forward, dlogits, dhidden, dweight)
    return [
        _compilation(kernel, kind, width, architecture)
        for architecture in (90, 80)
        for kind, width, kernels in (
            ("bf16", 4096, (*products, join)),
            ("bf16", 576, (dhidden, dweight)),
            ("bf16", 33, (*products, join)),
            ("fp16", 4096, (*products, join)),
            ("fp32", 4096, (*products, join)),
            ("fp32", 33, products),
        )
        for kernel in kernels
    ]


def _compilation(kernel: Any, kind: str, width: int, architecture: int) -> Compilation:
    blocks = _tuned(_FLOATS[kind], width, architecture)
    constants: dict[str, Any] = {
        "BLOCK_M": blocks.m, "BLOCK_N": blocks.n, "BLOCK_K": blocks.k,
        "BLOCK_D": blocks.d_weight if kernel is dweight else blocks.d_hidden,
        "EVEN": blocks.even, "INTERPRET": False, "ROWS": _JOIN_ROWS, "COLUMNS": _JOIN_WIDTH,
    }  # fmt: skip
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = _POINTERS.get(name, "*fp32") or f"*{kind}"
        else:
            signature[name] = "i32"
    multiples = [name for name in ("width", "stride_w") if width % 16 == 0 and name in signature]
    options = dict(num_warps=4, num_stages=3) if kernel is join else blocks.options
    has_dots = kernel is not join and kind != "fp32" and width % 64 == 0
    return Compilation(
        name=f"cross_entropy_{kernel.__name__} {kind} D{width} sm{architecture}",
        kernel=kernel,
        signature=signature,
        constants={name: value for name, value in constants.items() if name in signature},
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        divisible=(*(name for name in signature if name.endswith("_ptr")), *multiples),
        architectures=(architecture,),
        opcodes={80: ("HMMA",), 90: ("HGMMA",)} if has_dots else {},
    )


COMPILATIONS = _compilations()
