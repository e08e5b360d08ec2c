"""The kernels of cross_entropy in Triton: tiles of logits, and what is summed over them.

Rows are sorted by slice; every program reads what it works on from a table of jobs. Knows neither
launches nor how jobs are made."""

from __future__ import annotations

import triton
import triton.language as tl

# Not specialised: what changes from step to step. The others (width, stride_w) are, since only a
# known multiple of 16 is loaded in vectors.
_VARYING = ["n_rows", "vocabulary_size", "n_parts"]


@triton.jit
def _dot(a, b, total, INTERPRET: tl.constexpr):
    if INTERPRET:  # which multiplies the bits of bf16 as integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _legal(ids, ranges_ptr):
    """Whether ids lie in one of four ranges."""
    found = (ids >= tl.load(ranges_ptr)) & (ids < tl.load(ranges_ptr + 1))
    for one in tl.static_range(1, 4):
        start = tl.load(ranges_ptr + 2 * one)
        stop = tl.load(ranges_ptr + 2 * one + 1)
        found = found | ((ids >= start) & (ids < stop))
    return found


@triton.jit
def _logits(
    hidden_ptr, weight_ptr, begin, end, tile, width, stride_w, vocabulary_size,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) fp32 of the rows from `begin` and the ids of `tile`; the last row and the
    last id stand for those behind them. One 64-bit base a tile: 64-bit offsets would spill."""
    columns = tl.arange(0, BLOCK_K)
    rows = tl.minimum(tl.arange(0, BLOCK_M), end - begin - 1)
    ids = tl.minimum(tl.arange(0, BLOCK_N), vocabulary_size - tile * BLOCK_N - 1)
    a_at = rows[:, None] * width + columns[None, :]
    b_at = ids[None, :] * stride_w + columns[:, None]
    a_ptr = hidden_ptr + begin.to(tl.int64) * width
    b_ptr = weight_ptr + tile.to(tl.int64) * (BLOCK_N * stride_w)
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        if EVEN:
            a = tl.load(a_ptr + a_at)
            b = tl.load(b_ptr + b_at)
        else:
            inside = columns < width - start
            a = tl.load(a_ptr + a_at, mask=inside[None, :], other=0.0)
            b = tl.load(b_ptr + b_at, mask=inside[:, None], other=0.0)
        total = _dot(a, b, total, INTERPRET)
        a_ptr += BLOCK_K
        b_ptr += BLOCK_K
    return total


@triton.jit(do_not_specialize=_VARYING)
def forward(
    hidden_ptr,  # (n, D), sorted
    weight_ptr,  # (V, D)
    jobs_ptr,  # (programs, 6) int64
    ranges_ptr,  # (slices, 8) int32
    top_ptr,  # (parts, n) fp32: maximum of a part, times log2(e)
    sum_ptr,  # (parts, n) fp32: sum of 2^(logit - maximum)
    n_rows,
    width,
    vocabulary_size,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    job = jobs_ptr + tl.program_id(0) * 6
    begin = tl.load(job).to(tl.int32)
    end = tl.load(job + 1).to(tl.int32)
    slice_ptr = ranges_ptr + tl.load(job + 2) * 8
    rows = begin + tl.arange(0, BLOCK_M)
    tile = tl.load(job + 3).to(tl.int32)
    top = tl.full([BLOCK_M], -1e38, dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for _ in range(tl.load(job + 4).to(tl.int32) - tile):
        ids = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        logits = _logits(
            hidden_ptr, weight_ptr, begin, end, tile, width, stride_w, vocabulary_size,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN, INTERPRET,
        )  # fmt: skip
        logits = tl.where(_legal(ids, slice_ptr)[None, :], logits * 1.4426950408889634, -1e38)
        higher = tl.maximum(top, tl.max(logits, 1))
        powers = tl.exp2(logits - higher[:, None])  # 0 for what is not legal
        total = total * tl.exp2(top - higher) + tl.sum(powers, 1)
        top = higher
        tile += 1
    place = tl.load(job + 5) * n_rows + rows
    tl.store(top_ptr + place, top, mask=rows < end)
    tl.store(sum_ptr + place, total, mask=rows < end)


@triton.jit(do_not_specialize=_VARYING)
def join(
    hidden_ptr,
    weight_ptr,
    targets_ptr,  # (n,) int64
    parts_ptr,  # (n,) int32: how many parts a row has
    top_ptr,
    sum_ptr,
    lse_ptr,  # (n,) fp32, natural
    picked_ptr,  # (n,) fp32: the target's logit
    n_rows,
    n_parts,  # of the row with the most
    width,
    stride_w,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = rows < n_rows
    own = tl.load(parts_ptr + rows, mask=real, other=0)
    top = tl.full([ROWS], -1e38, dtype=tl.float32)
    total = tl.full([ROWS], 0.0, dtype=tl.float32)
    top_at = top_ptr + rows
    sum_at = sum_ptr + rows
    for part in range(n_parts):
        there = part < own
        new = tl.load(top_at, mask=there, other=-1e38)
        higher = tl.maximum(top, new)
        powers = tl.load(sum_at, mask=there, other=0.0) * tl.exp2(new - higher)
        total = total * tl.exp2(top - higher) + powers
        top = higher
        top_at += n_rows
        sum_at += n_rows
    lse = (top + tl.log2(tl.where(real, total, 1.0))) * 0.6931471805599453
    tl.store(lse_ptr + rows, lse, mask=real)

    targets = tl.load(targets_ptr + rows, mask=real, other=0)
    columns = tl.arange(0, COLUMNS)
    a_ptr = hidden_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :]
    b_ptr = weight_ptr + targets[:, None] * stride_w + columns[None, :]
    products = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        inside = real[:, None] & (columns < width - start)[None, :]
        a = tl.load(a_ptr + start, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + start, mask=inside, other=0.0).to(tl.float32)
        products += a * b
    tl.store(picked_ptr + rows, tl.sum(products, 1), mask=real)


@triton.jit(do_not_specialize=_VARYING)
def dlogits(
    hidden_ptr,
    weight_ptr,
    targets_ptr,
    lse_ptr,
    grad_lse_ptr,  # (n,) fp32
    grad_picked_ptr,  # (n,) fp32
    jobs_ptr,  # (programs, 6) int64
    ranges_ptr,
    buffer_ptr,  # panels of dlogits, in hidden's dtype
    width,
    vocabulary_size,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    job = jobs_ptr + tl.program_id(0) * 6
    begin = tl.load(job).to(tl.int32)
    end = tl.load(job + 1).to(tl.int32)
    tile = tl.load(job + 3).to(tl.int32)
    logits = _logits(
        hidden_ptr, weight_ptr, begin, end, tile, width, stride_w, vocabulary_size,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN, INTERPRET,
    )  # fmt: skip
    ids = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_M)
    rows = begin + lanes
    real = rows < end
    lse = tl.load(lse_ptr + rows, mask=real, other=1e38)  # so that p is 0 behind the last row
    grad_lse = tl.load(grad_lse_ptr + rows, mask=real, other=0.0)
    targets = tl.load(targets_ptr + rows, mask=real, other=-1).to(tl.int32)
    grad_picked = tl.load(grad_picked_ptr + rows, mask=real, other=0.0)
    legal = _legal(ids, ranges_ptr + tl.load(job + 2) * 8)
    grad = tl.exp2((logits - lse[:, None]) * 1.4426950408889634) * grad_lse[:, None]
    grad = tl.where(ids[None, :] == targets[:, None], grad + grad_picked[:, None], grad)
    # Last, also over an overflow: hiding the logits instead spills 80 bytes by triton 3.6.
    grad = tl.where(legal[None, :], grad, 0.0)
    stride = tl.load(job + 5).to(tl.int32) * 16  # so that the compiler knows a multiple of 16
    place = lanes[:, None] * stride + tl.arange(0, BLOCK_N)[None, :]
    tl.store(buffer_ptr + tl.load(job + 4) * 16 + place, grad.to(buffer_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=_VARYING)
def dhidden(
    buffer_ptr,
    weight_ptr,
    jobs_ptr,  # (row blocks, 5) int64
    panels_ptr,  # (panels, 4) int64
    grad_hidden_ptr,  # (n, D) fp32, read and written
    width,
    vocabulary_size,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    job = jobs_ptr + tl.program_id(1) * 5
    begin = tl.load(job).to(tl.int32)
    end = tl.load(job + 1).to(tl.int32)
    lanes = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    steps = tl.arange(0, BLOCK_K)
    row = tl.load(job + 2)
    grad_ptr = grad_hidden_ptr + begin.to(tl.int64) * width
    place = lanes[:, None] * width + columns[None, :]
    real = (lanes < end - begin)[:, None] & (columns < width)[None, :]
    # Loaded first: beside the finished sums it would spill.
    total = tl.load(grad_ptr + place, mask=real, other=0.0)
    for panel in range(tl.load(job + 3).to(tl.int32), tl.load(job + 4).to(tl.int32)):
        one = panels_ptr + panel * 4
        stride = tl.load(one + 1) * 16
        first = tl.load(one + 2)
        a_ptr = buffer_ptr + tl.load(one) * 16 + row * stride
        b_ptr = weight_ptr + first * stride_w
        a_at = lanes[:, None] * stride.to(tl.int32) + steps[None, :]
        b_at = steps[:, None] * stride_w + columns[None, :]
        n_ids = vocabulary_size - first.to(tl.int32)
        for start in range(0, tl.load(one + 3).to(tl.int32), BLOCK_K):
            inside = (steps < n_ids - start)[:, None]
            if not EVEN:
                inside = inside & (columns < width)[None, :]
            b = tl.load(b_ptr + b_at, mask=inside, other=0.0)
            total = _dot(tl.load(a_ptr + a_at), b, total, INTERPRET)
            a_ptr += BLOCK_K
            b_ptr += BLOCK_K * stride_w
    tl.store(grad_ptr + place, total, mask=real)


@triton.jit(do_not_specialize=_VARYING)
def dweight(
    buffer_ptr,
    hidden_ptr,
    jobs_ptr,  # (tiles, 3) int64
    panels_ptr,  # (panels, 4) int64
    grad_weight_ptr,  # (V, D), written
    scale_ptr,  # (1,) fp32
    width,
    vocabulary_size,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    job = jobs_ptr + tl.program_id(1) * 3
    ids = tl.load(job).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    steps = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for panel in range(tl.load(job + 1).to(tl.int32), tl.load(job + 2).to(tl.int32)):
        one = panels_ptr + panel * 4
        stride = tl.load(one + 1) * 16
        begin = tl.load(one + 2)
        n = tl.load(one + 3).to(tl.int32) - begin.to(tl.int32)
        a_ptr = buffer_ptr + tl.load(one) * 16
        b_ptr = hidden_ptr + begin * width
        a_at = steps[:, None] * stride.to(tl.int32) + tl.arange(0, BLOCK_N)[None, :]
        b_at = steps[:, None] * width + columns[None, :]
        for start in range(0, n, BLOCK_K):
            inside = (steps < n - start)[:, None]
            if not EVEN:
                inside = inside & (columns < width)[None, :]
            b = tl.load(b_ptr + b_at, mask=inside, other=0.0)
            total = _dot(tl.trans(tl.load(a_ptr + a_at)), b, total, INTERPRET)
            a_ptr += BLOCK_K * stride
            b_ptr += BLOCK_K * width
    place = ids.to(tl.int64)[:, None] * width + columns[None, :]
    real = (ids < vocabulary_size)[:, None] & (columns < width)[None, :]
    total = total * tl.load(scale_ptr)
    tl.store(grad_weight_ptr + place, total.to(grad_weight_ptr.dtype.element_ty), mask=real)
