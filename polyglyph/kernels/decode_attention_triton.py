"""decode_attention in Triton: split-KV with the query heads of a key head packed into one tile.

A program reads at most SPLIT keys of one row and key head for all of that head's queries, and
writes their normalised sum and log2-sum-exp in fp32; a second kernel joins a row's splits in
order. SPLIT is fixed and a row uses only its own splits, so its bits don't depend on the batch.
Flash-Decoding: arXiv:2307.08691 and pytorch.org/blog/flash-decoding. Knows nothing of models."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Compilation

SPLIT = 256  # keys; fp32 sums of a split are 3 % of its keys and values (4 heads on 1, bf16)
MAX_PACKED = (
    64  # queries of a key head up to which splitting pays; more fill the card by themselves
)
JOINED = 16  # splits that the second kernel reads at once
FLOOR = tl.constexpr(-1e38)  # log2-sum-exp of no key: finite, so that no inf - inf arises
# architecture -> (bytes of an element, head width as a power of two) -> (keys a tile, warps,
# stages). From the resource report (no spill, two programs a multiprocessor up to 128), not from
# timings: no GPU has run them.
_TILES: dict[int | tuple[int, str], dict[tuple[int, int], tuple[int, int, int]]] = {
    80: {
        (2, 32): (128, 4, 3), (2, 64): (64, 4, 3), (2, 128): (64, 4, 2), (2, 256): (32, 4, 2),
        (4, 32): (32, 4, 2), (4, 64): (32, 4, 2), (4, 128): (32, 8, 2), (4, 256): (16, 8, 2),
    },
    90: {
        (2, 32): (128, 4, 3), (2, 64): (128, 4, 3), (2, 128): (64, 4, 3), (2, 256): (32, 4, 3),
        (4, 32): (32, 4, 2), (4, 64): (32, 8, 2), (4, 128): (32, 8, 2), (4, 256): (16, 8, 2),
    },
}  # fmt: skip
# Two stages spill 28 bytes by triton 3.6, three keep a word on the stack by 3.9.
_TILES[90, backend.OLD] = _TILES[90] | {(4, 256): (16, 8, 3)}


@triton.jit
def _dot(a, b, UPCAST: tl.constexpr):
    """a @ b in fp32. The interpreter is silently wrong for bf16: it upcasts first."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit(do_not_specialize=["batch", "n_keys", "n_steps", "n_splits", "split"])
def _attend(
    q_ptr,  # (B, N, T, K)
    k_ptr,  # (B, Nkv, S, K)
    v_ptr,
    lengths_ptr,  # (B,) int32
    shared_ptr,  # (B, 2) int32, read with SHARED
    out_ptr,  # (B, N, T, K), written with one split
    part_ptr,  # (B, N, T, n_splits, K) fp32, written with several
    lse_ptr,  # (B, N, T, n_splits) fp32, likewise
    stride_qb,
    stride_qn,
    stride_qt,
    stride_kb,
    stride_kn,
    stride_ks,
    stride_vb,
    stride_vn,
    stride_vs,
    scale,  # log2(e) / sqrt(K)
    batch,
    n_keys,  # S
    n_steps,  # T
    n_splits,
    split,  # keys of a split
    GROUPS: tl.constexpr,  # query heads of a key head
    WIDTH: tl.constexpr,  # K
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SHARED: tl.constexpr,
    SPLITS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Rows run fastest, so that those that share a prefix read it at the same time, from L2.
    row = (tl.program_id(0) % batch).to(tl.int64)
    kv_head = tl.program_id(1)
    begin = tl.program_id(2) * split
    packed = tl.program_id(0) // batch * BLOCK_M + tl.arange(0, BLOCK_M)  # t * GROUPS + g
    t = packed // GROUPS
    head = kv_head * GROUPS + packed % GROUPS
    real = t < n_steps
    length = tl.load(lengths_ptr + row)
    visible = tl.minimum(length - (n_steps - 1) + t, n_keys)  # keys that each query sees
    visible = tl.where(real, tl.maximum(visible, 0), 0)
    end = tl.minimum(tl.max(visible, 0), begin + split)
    # A split without a key is never read; a program that is the only one writes zeros.
    if end + (1 - SPLITS) > begin:
        columns = tl.arange(0, BLOCK_K)
        wide = columns < WIDTH
        places = row * stride_qb + head[:, None] * stride_qn + t[:, None] * stride_qt
        q = tl.load(q_ptr + places + columns, mask=real[:, None] & wide, other=0.0)
        source, prefix = row, 0
        if SHARED:
            source = tl.load(shared_ptr + 2 * row).to(tl.int64)
            source = tl.minimum(tl.maximum(source, 0), (batch - 1).to(tl.int64))
            prefix = tl.load(shared_ptr + 2 * row + 1)
        highest = tl.full([BLOCK_M], FLOOR, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        out = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for start in range(begin, end, BLOCK_S):
            keys = start + tl.arange(0, BLOCK_S)
            rows = tl.zeros([BLOCK_S], tl.int64) + row
            if SHARED:
                rows = tl.where(keys < prefix, source, row)
            inside = (keys < end)[:, None] & wide
            k_places = rows * stride_kb + kv_head.to(tl.int64) * stride_kn
            k_places += keys.to(tl.int64) * stride_ks
            k = tl.load(k_ptr + k_places[:, None] + columns, mask=inside, other=0.0)
            v_places = rows * stride_vb + kv_head.to(tl.int64) * stride_vn
            v_places += keys.to(tl.int64) * stride_vs
            v = tl.load(v_ptr + v_places[:, None] + columns, mask=inside, other=0.0)
            seen = keys < visible[:, None]  # (M, S)
            scores = tl.where(seen, _dot(q, tl.trans(k), UPCAST) * scale, FLOOR)
            higher = tl.maximum(highest, tl.max(scores, 1))
            p = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
            shrink = tl.exp2(highest - higher)
            total = total * shrink + tl.sum(p, 1)
            out = out * shrink[:, None] + _dot(p.to(v.dtype), v, UPCAST)
            highest = higher
        any_key = total > 0.0
        divisor = tl.where(any_key, total, 1.0)
        out = out / divisor[:, None]
        flat = (row * tl.num_programs(1) * GROUPS + head) * n_steps + t  # of (B, N, T)
        written = real[:, None] & wide
        if SPLITS:
            flat = flat * n_splits + tl.program_id(2)
            tl.store(lse_ptr + flat, tl.where(any_key, highest + tl.log2(divisor), FLOOR), real)
            tl.store(part_ptr + flat[:, None] * WIDTH + columns, out, written)
        else:
            out = out.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + flat[:, None] * WIDTH + columns, out, written)


@triton.jit(do_not_specialize=["n_heads", "n_keys", "n_steps", "n_splits", "split"])
def _join(
    part_ptr,  # (B, N, T, n_splits, K) fp32
    lse_ptr,  # (B, N, T, n_splits) fp32
    lengths_ptr,  # (B,) int32
    out_ptr,  # (B, N, T, K)
    n_heads,
    n_keys,
    n_steps,
    n_splits,
    split,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    JOINED: tl.constexpr,
):
    flat = tl.program_id(0).to(tl.int64)
    t = tl.program_id(0) % n_steps
    row = flat // n_steps // n_heads
    visible = tl.minimum(tl.load(lengths_ptr + row) - (n_steps - 1) + t, n_keys)
    used = (tl.maximum(visible, 0) + split - 1) // split
    columns = tl.arange(0, BLOCK_K)
    wide = columns < WIDTH
    out = tl.zeros([BLOCK_K], tl.float32)
    highest = tl.full([], FLOOR, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, used, JOINED):
        splits = start + tl.arange(0, JOINED)
        read = splits < used
        places = flat * n_splits + splits
        lse = tl.load(lse_ptr + places, mask=read, other=FLOOR)
        part = tl.load(
            part_ptr + places[:, None] * WIDTH + columns, mask=read[:, None] & wide, other=0.0
        )
        higher = tl.maximum(highest, tl.max(lse, 0))
        weight = tl.where(read, tl.exp2(lse - higher), 0.0)
        shrink = tl.exp2(highest - higher)
        out = out * shrink + tl.sum(part * weight[:, None], 0)
        total = total * shrink + tl.sum(weight, 0)
        highest = higher
    out = out / tl.where(total > 0.0, total, 1.0)
    tl.store(out_ptr + flat * WIDTH + columns, out.to(out_ptr.dtype.element_ty), wide)


def decode_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, shared: Tensor | None
) -> Tensor:
    """`decode_attention` for checked arguments."""
    if q.shape[3] > 256:
        raise ValueError(
            f"q has heads of {q.shape[3]}, the Triton kernel takes up to 256; "
            "set run.kernels = 'torch'"
        )
    lengths = lengths.contiguous()
    return _op(q, k, v, lengths, None if shared is None else shared.contiguous(), SPLIT)


@torch.library.custom_op("polyglyph::decode_attention", mutates_args=())
@backend.on_its_device
def _op(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, shared: Tensor | None, split: int
) -> Tensor:
    batch, n_heads, length, width = q.shape
    n_kv_heads, size = k.shape[1], k.shape[2]
    if q.stride(3) != 1:
        q = q.contiguous()
    n_queries = n_heads // n_kv_heads * length
    split = split if n_queries <= MAX_PACKED else max(size, split)
    n_splits = triton.cdiv(size, split)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    part = lse = out  # not written with one split
    if n_splits > 1:
        part = torch.empty(*q.shape[:3], n_splits, width, dtype=torch.float32, device=q.device)
        lse = torch.empty(*q.shape[:3], n_splits, dtype=torch.float32, device=q.device)
    tuned = _tuned(backend.architecture(q.device), q.dtype.itemsize, width, n_queries)
    _attend[(batch * triton.cdiv(n_queries, tuned["BLOCK_M"]), n_kv_heads, n_splits)](
        q, k, v, lengths, lengths if shared is None else shared, out, part, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        width**-0.5 * 1.4426950408889634, batch, size, length, n_splits, split,
        GROUPS=n_heads // n_kv_heads, WIDTH=width, SHARED=shared is not None,
        SPLITS=n_splits > 1, UPCAST=backend.interpreting(), enable_fp_fusion=True, **tuned,
    )  # fmt: skip
    if n_splits > 1:
        _join[(batch * n_heads * length,)](
            part, lse, lengths, out, n_heads, size, length, n_splits, split,
            WIDTH=width, BLOCK_K=tuned["BLOCK_K"], JOINED=JOINED,
            num_warps=4, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return out


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, shared: Tensor | None, split: int
) -> Tensor:
    return q.new_empty(q.shape)


def _tuned(architecture: int, itemsize: int, width: int, n_queries: int) -> dict[str, Any]:
    block_k = max(32, triton.next_power_of_2(width))
    block_m = min(MAX_PACKED, max(16, triton.next_power_of_2(n_queries)))
    block_s, warps, stages = backend.tuned(_TILES, architecture)[itemsize, block_k]
    if itemsize == 4:  # products by FMA, all operands in registers: more queries spill
        block_m = min(block_m, 16 if block_k > 64 else 32)
    elif block_m == MAX_PACKED and block_k > 64:
        warps = 8
    return {
        "BLOCK_K": block_k, "BLOCK_M": block_m, "BLOCK_S": block_s,
        "num_warps": warps, "num_stages": stages,
    }  # fmt: skip


# --- every shipped configuration ----------------------------------------------------------------

_NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _compilation(
    dtype: str, width: int, n_queries: int, arch: int, shared: bool = False, splits: bool = True
) -> Compilation:
    tuned = _tuned(arch, _NAMES[dtype].itemsize, width, n_queries)
    strides = {f"stride_{x}": "i32" for x in ("qb", "qn", "qt", "kb", "kn", "ks", "vb", "vn", "vs")}
    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{dtype}")
    pointers |= {"lengths_ptr": "*i32", "shared_ptr": "*i32", "out_ptr": f"*{dtype}"}
    pointers |= {"part_ptr": "*fp32", "lse_ptr": "*fp32"}
    counts = dict.fromkeys(("batch", "n_keys", "n_steps", "n_splits", "split"), "i32")
    warps, stages = tuned.pop("num_warps"), tuned.pop("num_stages")
    # Tiles of 16 and 32 queries are too low for Hopper's wgmma; memory is what they wait for.
    product = "HGMMA" if arch == 90 and tuned["BLOCK_M"] == 64 else "HMMA"
    constants = {"GROUPS": min(4, n_queries), "WIDTH": width, "SHARED": shared, "SPLITS": splits}
    constants |= {"UPCAST": False} | tuned
    form = ("" if splits else " whole") + (" shared" if shared else "")
    return Compilation(
        f"decode_attention {dtype} d{width} M{tuned['BLOCK_M']}{form} sm{arch}",
        _attend,
        pointers | strides | {"scale": "fp32"} | counts | dict.fromkeys(constants, "constexpr"),
        constants,
        warps,
        stages,
        divisible=(*pointers, *strides),
        architectures=(arch,),
        opcodes={} if dtype == "fp32" else {arch: (product, "LDGSTS")},
    )


def _join_compilation(dtype: str, width: int) -> Compilation:
    counts = dict.fromkeys(("n_heads", "n_keys", "n_steps", "n_splits", "split"), "i32")
    pointers = {"part_ptr": "*fp32", "lse_ptr": "*fp32", "lengths_ptr": "*i32"}
    pointers["out_ptr"] = f"*{dtype}"
    constants = {"WIDTH": width, "BLOCK_K": max(32, triton.next_power_of_2(width))}
    constants["JOINED"] = JOINED
    return Compilation(
        f"decode_attention join {dtype} d{width}", _join,
        pointers | counts | dict.fromkeys(constants, "constexpr"), constants, 4, 2,
        divisible=tuple(pointers),
    )  # fmt: skip


def _compilations() -> list[Compilation]:
    made = []
    for arch in (90, 80):
        made += [_compilation("bf16", width, 4, arch) for width in (128, 64, 32, 256)]
        made += [_compilation(dtype, 128, 4, arch) for dtype in ("fp16", "fp32")]
        made += [
            _compilation("bf16", 128, 4, arch, splits=False),
            _compilation("bf16", 128, 4, arch, shared=True),
            _compilation("bf16", 128, 24, arch),
            _compilation("bf16", 128, 64, arch),
            _compilation("bf16", 256, 64, arch, splits=False),
            _compilation("fp32", 64, 24, arch),
            _compilation("fp32", 32, 24, arch),
            _compilation("fp32", 256, 24, arch),
            _compilation("fp32", 256, 24, arch, splits=False),
        ]
    return [*made, *(_join_compilation("bf16", width) for width in (128, 256))]


COMPILATIONS = _compilations()
