"""Attention by tiles, the Triton kernels: one forward, and a backward of two without atomics
(FlashAttention-2, arXiv:2307.08691; interval masks: FlashMask, arXiv:2410.01359).

Every query sees an interval of keys, every key is seen inside an interval of queries, so a tile's
loop bounds, and which of its partners need no mask, follow from the smallest and largest of a few
int32 vectors (`Packing.bounds`). A prefix lets queries before a key see it: the loop over queries
begins there, not at the diagonal. Statistics and sums are fp32. Knows nothing of launches."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Below every score and above what hides one: a row's maximum starts here, so that a tile in which
# it sees nothing gives exp2(HIDDEN - LOWEST) = 0 and never -inf - -inf.
LOWEST = tl.constexpr(-1e30)
HIDDEN = tl.constexpr(-1e38)


@triton.jit
def _dot(a, b, acc, INTERPRETED: tl.constexpr):
    # The interpreter holds bf16 as integers and would multiply those.
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _load(
    base, stride: tl.constexpr, n_rows, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """(ROWS, WIDTH) from `base`; zero beyond D columns and, unless WHOLE, beyond n_rows rows.

    Row strides are constants of the compilation: they depend on a model's shape and never on a
    length, and a thread's addresses become one register and immediate offsets."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    at = base + rows * stride + columns
    if WHOLE and WIDTH == D:
        return tl.load(at)
    elif WHOLE:
        return tl.load(at, mask=columns < D, other=0.0)
    elif WIDTH == D:
        return tl.load(at, mask=rows < n_rows, other=0.0)
    else:
        return tl.load(at, mask=(rows < n_rows) & (columns < D), other=0.0)


@triton.jit
def _store(base, stride, n_rows, x, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    at = base + rows * stride + columns
    tl.store(at, x.to(base.dtype.element_ty), mask=(rows < n_rows) & (columns < D))


@triton.jit
def _query_bounds(bounds, plane, row, places, length, window):
    """First and last visible key of queries at `places`; first > last: it sees nothing."""
    inside = places < length
    at = bounds + row * length + places
    first = tl.load(at, mask=inside, other=length)
    last = tl.load(at + plane.to(tl.int64), mask=inside, other=-1)
    return tl.maximum(first, places - window), last


@triton.jit
def _key_bounds(bounds, plane, row, places, length, window):
    """Of keys at `places`: the earliest query that sees it, the latest, and from which on all do;
    earliest > latest: nothing sees it."""
    inside = places < length
    at = bounds + row * length + places
    stop = tl.load(at + 2 * plane.to(tl.int64), mask=inside, other=0)
    earliest = tl.load(at + 3 * plane.to(tl.int64), mask=inside, other=length)
    steady = tl.load(at + 4 * plane.to(tl.int64), mask=inside, other=length)
    return earliest, tl.minimum(stop - 1, places + window), steady


@triton.jit
def _tiles(first, last, steady, places, length, SIZE: tl.constexpr):
    """The partners' tiles of SIZE that a tile meets: [begin, end), of which [full, rest) whole.

    Row by row [first, last] is what may be seen and [steady, last] what surely is, nothing where
    first > last: one such row inside the length and no tile is whole, so that masks alone keep its
    sums at 0. `length` is larger than any place.
    """
    alive = first <= last
    begin = tl.min(tl.where(alive, first, length), 0) // SIZE
    end = tl.max(tl.where(alive, last, -1), 0) // SIZE + 1  # 0 where no row is alive
    begin = tl.minimum(begin, end)
    inside = places < length
    full = (tl.max(tl.where(inside, steady, 0), 0) + SIZE - 1) // SIZE
    rest = (tl.min(tl.where(inside, last, length), 0) + 1) // SIZE
    full = tl.minimum(tl.maximum(full, begin), end)
    rest = tl.minimum(tl.maximum(rest, full), end)
    return begin, full, rest, end


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))


@triton.jit
def _weigh(raw, scale, softcap, SOFTCAP: tl.constexpr):
    """Scores in units of log2 from products, and the slope that a softcap puts on them."""
    if SOFTCAP:
        t = _tanh(raw * (scale / softcap))
        return t * (softcap * LOG2E), 1.0 - t * t
    else:  # a return after a branch's return would have to be of its type
        return raw * (scale * LOG2E), 1.0


@triton.jit
def _forward_tile(
    acc, top, total, q, k_base, v_base, stride_k: tl.constexpr, stride_v: tl.constexpr, n_keys,
    first, last, tile, scale, softcap, BLOCK_N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    SOFTCAP: tl.constexpr, WHOLE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of keys into the running sums; WHOLE: every query sees every key of it."""
    begin = tile * BLOCK_N
    far = begin.to(tl.int64)
    k = _load(k_base + far * stride_k, stride_k, n_keys - begin, BLOCK_N, D, WIDTH, WHOLE)
    raw = _dot(q, tl.trans(k), None, INTERPRETED)
    if WHOLE and not SOFTCAP:  # the maximum of products first: then one fma feeds each exp2
        higher = tl.maximum(top, tl.max(raw, 1) * (scale * LOG2E))
        p = tl.exp2(raw * (scale * LOG2E) - higher[:, None])
    else:
        scores, _ = _weigh(raw, scale, softcap, SOFTCAP)
        if not WHOLE:
            keys = begin + tl.arange(0, BLOCK_N)[None, :]
            visible = (first[:, None] <= keys) & (keys <= last[:, None])
            scores = tl.where(visible, scores, HIDDEN)
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    v = _load(v_base + far * stride_v, stride_v, n_keys - begin, BLOCK_N, D, WIDTH, WHOLE)
    acc = _dot(p.to(v.dtype), v, acc * shrink[:, None], INTERPRETED)
    return acc, higher, total


@triton.jit(do_not_specialize=["plane", "length", "n_tiles", "window"])
def forward_kernel(
    q, k, v, bounds, out, lse, stride_qb, stride_qh, STRIDE_Q: tl.constexpr, stride_kb, stride_kh,
    STRIDE_K: tl.constexpr, stride_vb, stride_vh, STRIDE_V: tl.constexpr, n_heads, group, plane,
    length, n_tiles, window, scale, softcap, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head: output (B, T, N, D) and lse (B, N, T)."""
    program = tl.program_id(0)
    start = (n_tiles - 1 - program % n_tiles) * BLOCK_M  # the longest, at the end, first
    row = (program // n_tiles // n_heads).to(tl.int64)
    head = (program // n_tiles % n_heads).to(tl.int64)
    far = start.to(tl.int64)
    n_rows = length - start
    places = start + tl.arange(0, BLOCK_M)
    first, last = _query_bounds(bounds, plane, row, places, length, window)
    begin, full, rest, end = _tiles(first, last, first, places, length, BLOCK_N)

    q += row * stride_qb + head * stride_qh + far * STRIDE_Q
    k += row * stride_kb + head // group * stride_kh
    v += row * stride_vb + head // group * stride_vh
    q_tile = _load(q, STRIDE_Q, n_rows, BLOCK_M, D, WIDTH, False)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    top = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for tile in range(full, rest):
        acc, top, total = _forward_tile(
            acc, top, total, q_tile, k, v, STRIDE_K, STRIDE_V, length, first, last, tile, scale,
            softcap, BLOCK_N, D, WIDTH, SOFTCAP, True, INTERPRETED,
        )  # fmt: skip
    for i in range(0, end - begin - (rest - full)):
        tile = begin + i + tl.where(begin + i < full, 0, rest - full)
        acc, top, total = _forward_tile(
            acc, top, total, q_tile, k, v, STRIDE_K, STRIDE_V, length, first, last, tile, scale,
            softcap, BLOCK_N, D, WIDTH, SOFTCAP, False, INTERPRETED,
        )  # fmt: skip

    alive = total != 0  # a row that saw nothing has sums of 0, and stays 0
    total = tl.where(alive, total, 1.0)
    acc = acc * (1.0 / total)[:, None]
    sums = tl.where(alive, (top + tl.log2(total)) * LN2, float("-inf"))
    tl.store(lse + (row * n_heads + head) * length + places, sums, mask=places < length)
    out += ((row * length + far) * n_heads + head) * D
    _store(out, n_heads * D, n_rows, acc, BLOCK_M, D, WIDTH)


@triton.jit(do_not_specialize=["length", "n_tiles"])
def delta_kernel(
    out, d_out, lse, d_lse, binary, delta, stride_ob, stride_oh, STRIDE_O: tl.constexpr, stride_db,
    stride_dh, STRIDE_D: tl.constexpr, n_heads, length, n_tiles, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Both (B, N, T) fp32: lse in units of log2, 0 where nothing is seen; and delta = sum over D
    of out * d_out - d_lse, which softmax takes off."""
    program = tl.program_id(0)
    start = program % n_tiles * BLOCK_M
    row = (program // n_tiles // n_heads).to(tl.int64)
    head = (program // n_tiles % n_heads).to(tl.int64)
    far = start.to(tl.int64)
    n_rows = length - start
    places = start + tl.arange(0, BLOCK_M)
    out += row * stride_ob + head * stride_oh + far * STRIDE_O
    d_out += row * stride_db + head * stride_dh + far * STRIDE_D
    o = _load(out, STRIDE_O, n_rows, BLOCK_M, D, WIDTH, False).to(tl.float32)
    d = _load(d_out, STRIDE_D, n_rows, BLOCK_M, D, WIDTH, False).to(tl.float32)
    at = (row * n_heads + head) * length + places
    sums = tl.load(lse + at, mask=places < length, other=0.0)
    tl.store(binary + at, tl.where(sums > LOWEST, sums * LOG2E, 0.0), mask=places < length)
    minus = tl.load(d_lse + at, mask=places < length, other=0.0)
    tl.store(delta + at, tl.sum(o * d, 1) - minus, mask=places < length)


@triton.jit
def _keys_tile(
    dk, dv, k, v, q_base, d_base, lse, delta, bounds, plane, row, stride_q: tl.constexpr,
    stride_d: tl.constexpr, length, window, keys, tile, scale, softcap, BLOCK_M: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, SOFTCAP: tl.constexpr,
    WITH_K: tl.constexpr, WITH_V: tl.constexpr, WHOLE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of queries into a key tile's sums; everything transposed, (keys, queries)."""
    begin = tile * BLOCK_M
    far = begin.to(tl.int64)
    places = begin + tl.arange(0, BLOCK_M)
    q = _load(q_base + far * stride_q, stride_q, length - begin, BLOCK_M, D, WIDTH, WHOLE)
    raw = _dot(k, tl.trans(q), None, INTERPRETED)
    scores, slope = _weigh(raw, scale, softcap, SOFTCAP)
    if WHOLE:
        sums = tl.load(lse + places)
        p = tl.exp2(scores - sums[None, :])
        shift = tl.load(delta + places) if WITH_K else sums
    else:
        inside = places < length
        sums = tl.load(lse + places, mask=inside, other=0.0)
        first, last = _query_bounds(bounds, plane, row, places, length, window)
        visible = (first[None, :] <= keys[:, None]) & (keys[:, None] <= last[None, :])
        p = tl.exp2(tl.where(visible, scores - sums[None, :], HIDDEN))
        shift = tl.load(delta + places, mask=inside, other=0.0) if WITH_K else sums
    d = _load(d_base + far * stride_d, stride_d, length - begin, BLOCK_M, D, WIDTH, WHOLE)
    if WITH_V:
        dv = _dot(p.to(d.dtype), d, dv, INTERPRETED)
    if WITH_K:
        dp = _dot(v, tl.trans(d), None, INTERPRETED)
        ds = p * (dp - shift[None, :])
        if SOFTCAP:
            ds = ds * slope
        dk = _dot(ds.to(q.dtype), q, dk, INTERPRETED)
    return dk, dv


@triton.jit(do_not_specialize=["plane", "length", "n_tiles", "window"])
def keys_kernel(
    q, k, v, d_out, bounds, lse, delta, dk, dv, stride_qb, stride_qh, STRIDE_Q: tl.constexpr,
    stride_kb, stride_kh, STRIDE_K: tl.constexpr, stride_vb, stride_vh, STRIDE_V: tl.constexpr,
    stride_db, stride_dh, STRIDE_D: tl.constexpr, n_kv_heads, group, plane, length, n_tiles, window,
    scale, softcap, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr,
    WITH_K: tl.constexpr, WITH_V: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys: the group's query heads one after another, in order.

    WITH_K, WITH_V: which of them; with heads of 256 the sums of both don't fit the registers.
    There, and with a softcap's slopes, the loop without masks costs more of them than are left."""
    program = tl.program_id(0)
    start = program % n_tiles * BLOCK_N
    row = (program // n_tiles // n_kv_heads).to(tl.int64)
    head = (program // n_tiles % n_kv_heads).to(tl.int64)
    far = start.to(tl.int64)
    n_rows = length - start
    keys = start + tl.arange(0, BLOCK_N)
    earliest, latest, steady = _key_bounds(bounds, plane, row, keys, length, window)
    begin, full, rest, end = _tiles(earliest, latest, steady, keys, length, BLOCK_M)
    TWO_LOOPS: tl.constexpr = WITH_K and WITH_V and not SOFTCAP
    if not TWO_LOOPS:
        rest = full

    k += row * stride_kb + head * stride_kh + far * STRIDE_K
    v += row * stride_vb + head * stride_vh + far * STRIDE_V
    k_tile = _load(k, STRIDE_K, n_rows, BLOCK_N, D, WIDTH, False)
    v_tile = _load(v, STRIDE_V, n_rows, BLOCK_N, D, WIDTH, False)
    dk_tile = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    dv_tile = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    for member in range(0, group):
        query_head = head * group + member
        q_head = q + row * stride_qb + query_head * stride_qh
        d_head = d_out + row * stride_db + query_head * stride_dh
        sums = (row * n_kv_heads * group + query_head) * length
        if TWO_LOOPS:
            for tile in range(full, rest):
                dk_tile, dv_tile = _keys_tile(
                    dk_tile, dv_tile, k_tile, v_tile, q_head, d_head, lse + sums, delta + sums,
                    bounds, plane, row, STRIDE_Q, STRIDE_D, length, window, keys, tile, scale,
                    softcap, BLOCK_M, D, WIDTH, SOFTCAP, WITH_K, WITH_V, True, INTERPRETED,
                )  # fmt: skip
        for i in range(0, end - begin - (rest - full)):
            tile = begin + i + tl.where(begin + i < full, 0, rest - full)
            dk_tile, dv_tile = _keys_tile(
                dk_tile, dv_tile, k_tile, v_tile, q_head, d_head, lse + sums, delta + sums, bounds,
                plane, row, STRIDE_Q, STRIDE_D, length, window, keys, tile, scale, softcap,
                BLOCK_M, D, WIDTH, SOFTCAP, WITH_K, WITH_V, False, INTERPRETED,
            )  # fmt: skip

    to = ((row * length + far) * n_kv_heads + head) * D
    if WITH_K:
        _store(dk + to, n_kv_heads * D, n_rows, dk_tile * scale, BLOCK_N, D, WIDTH)
    if WITH_V:
        _store(dv + to, n_kv_heads * D, n_rows, dv_tile, BLOCK_N, D, WIDTH)


@triton.jit
def _queries_tile(
    dq, q, d, sums, shift, k_base, v_base, stride_k: tl.constexpr, stride_v: tl.constexpr, n_keys,
    first, last, tile, scale, softcap, BLOCK_N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    SOFTCAP: tl.constexpr, WHOLE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of keys into a query tile's gradient."""
    begin = tile * BLOCK_N
    far = begin.to(tl.int64)
    k = _load(k_base + far * stride_k, stride_k, n_keys - begin, BLOCK_N, D, WIDTH, WHOLE)
    v = _load(v_base + far * stride_v, stride_v, n_keys - begin, BLOCK_N, D, WIDTH, WHOLE)
    scores, slope = _weigh(_dot(q, tl.trans(k), None, INTERPRETED), scale, softcap, SOFTCAP)
    scores = scores - sums[:, None]
    if not WHOLE:
        keys = begin + tl.arange(0, BLOCK_N)[None, :]
        visible = (first[:, None] <= keys) & (keys <= last[:, None])
        scores = tl.where(visible, scores, HIDDEN)
    p = tl.exp2(scores)
    ds = p * (_dot(d, tl.trans(v), None, INTERPRETED) - shift[:, None])
    if SOFTCAP:
        ds = ds * slope
    return _dot(ds.to(k.dtype), k, dq, INTERPRETED)


@triton.jit(do_not_specialize=["plane", "length", "n_tiles", "window"])
def queries_kernel(
    q, k, v, d_out, bounds, lse, delta, dq, stride_qb, stride_qh, STRIDE_Q: tl.constexpr, stride_kb,
    stride_kh, STRIDE_K: tl.constexpr, stride_vb, stride_vh, STRIDE_V: tl.constexpr, stride_db,
    stride_dh, STRIDE_D: tl.constexpr, n_heads, group, plane, length, n_tiles, window, scale,
    softcap, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SOFTCAP: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of queries of one head."""
    program = tl.program_id(0)
    start = (n_tiles - 1 - program % n_tiles) * BLOCK_M
    row = (program // n_tiles // n_heads).to(tl.int64)
    head = (program // n_tiles % n_heads).to(tl.int64)
    far = start.to(tl.int64)
    n_rows = length - start
    places = start + tl.arange(0, BLOCK_M)
    first, last = _query_bounds(bounds, plane, row, places, length, window)
    begin, full, rest, end = _tiles(first, last, first, places, length, BLOCK_N)

    q += row * stride_qb + head * stride_qh + far * STRIDE_Q
    d_out += row * stride_db + head * stride_dh + far * STRIDE_D
    k += row * stride_kb + head // group * stride_kh
    v += row * stride_vb + head // group * stride_vh
    q_tile = _load(q, STRIDE_Q, n_rows, BLOCK_M, D, WIDTH, False)
    d_tile = _load(d_out, STRIDE_D, n_rows, BLOCK_M, D, WIDTH, False)
    at = (row * n_heads + head) * length + places
    sums = tl.load(lse + at, mask=places < length, other=0.0)
    shift = tl.load(delta + at, mask=places < length, other=0.0)
    dq_tile = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for tile in range(full, rest):
        dq_tile = _queries_tile(
            dq_tile, q_tile, d_tile, sums, shift, k, v, STRIDE_K, STRIDE_V, length, first, last,
            tile, scale, softcap, BLOCK_N, D, WIDTH, SOFTCAP, True, INTERPRETED,
        )  # fmt: skip
    for i in range(0, end - begin - (rest - full)):
        tile = begin + i + tl.where(begin + i < full, 0, rest - full)
        dq_tile = _queries_tile(
            dq_tile, q_tile, d_tile, sums, shift, k, v, STRIDE_K, STRIDE_V, length, first, last,
            tile, scale, softcap, BLOCK_N, D, WIDTH, SOFTCAP, False, INTERPRETED,
        )  # fmt: skip
    dq += ((row * length + far) * n_heads + head) * D
    _store(dq, n_heads * D, n_rows, dq_tile * scale, BLOCK_M, D, WIDTH)
