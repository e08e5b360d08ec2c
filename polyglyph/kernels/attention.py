"""Causal grouped-query attention, packed documents apart, conditioning blocks bidirectional
(arXiv:1706.03762, arXiv:2305.13245; blockwise: arXiv:2205.14135).

A key is visible to a query of the same document at the same place or earlier, or up to where the
query's prefix ends. The torch path computes each document by itself: documents of similar length
share one batched product, so no (T, T) mask is built and nothing across documents is computed.
Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example
from polyglyph.kernels.packing import Packing, pack

__all__ = ["Packing", "attention", "examples", "pack"]

# Scores of one product. On a CPU a quarter of it costs 10 %, four times as much costs 6 %.
CHUNK_ELEMENTS = 1 << 20
# Queries of one product: keys after the block's last query are never read. On a CPU, T = 512:
# 256 costs 13 % more, 512 (all keys) 50 % more.
BLOCK = 128
LONGEST_HEAD = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Rule:
    """How a score becomes a weight."""

    scale: float
    window: int | None = None
    softcap: float | None = None

    @property
    def is_plain(self) -> bool:
        return self.window is None and self.softcap is None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    packing: Packing | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Any:
    """softmax(scale q k^T) v over visible keys; q (B, N, T, K), k and v (B, Nkv, S, K), K <= 256.

    Without `packing` and `mask` causal over whole rows (T = S); with `packing` inside each document
    what `pack` says; with `mask`, bool (B or 1, 1, T, S), exactly what it allows (the KV cache's
    way, which has no window, softcap or lse). scale: K^-0.5 by default. window: keys more than that
    many places before the query are hidden. softcap c: scores become c tanh(score / c) (Gemma 2,
    arXiv:2408.00118). Query head n reads key head n // (N / Nkv). bf16, fp16, fp32, fp64 (fp64,
    and fp32 with K > 128: always on the torch path); products in that dtype, softmax in fp32.

    Returns (B, N, T, K) in q's dtype, laid out (B, T, N, K) where that costs nothing; with
    `return_lse` also (B, N, T), the natural log of the sum of exponentials, fp32 (fp64 for fp64).
    A query without a visible key: output 0, lse -inf, no gradient. Both are differentiable, once.
    Deterministic on either path, forward and backward: no atomics, sums in a fixed order. No mask
    of (T, T) is built. Numbers of one document never reach another's, except that inf and NaN can
    on the Triton path (0 times inf). ValueError, naming the argument, for whatever isn't this.
    """
    _check(q, k, v, packing, mask)
    if mask is not None:
        if window is not None or softcap is not None or return_lse:
            raise ValueError("mask: exclude keys in it; no window, softcap or return_lse beside it")
        grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
    rule = Rule(q.shape[3] ** -0.5 if scale is None else float(scale), window, softcap)
    _check_rule(rule)
    out, lse = _dispatch(q, k, v, packing, rule, return_lse)
    return (out, lse) if return_lse else out


def _dispatch(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing | None, rule: Rule, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    # Without tensor cores the sums of fp32 dK spill at 256 in every tile that was tried on sm_90.
    wide = q.dtype == torch.float64 or (q.dtype == torch.float32 and q.shape[3] > 128)
    if not wide and backend.pick("attention", q) == "triton":
        from polyglyph.kernels.attention_triton import attention_triton

        bounds = None if packing is None else packing.bounds
        return attention_triton(q, k, v, bounds, rule.scale, rule.window, rule.softcap)
    if q.is_cuda and packing is None and rule.is_plain and not with_lse:
        grouped = q.shape[1] != k.shape[1]
        options = {"is_causal": True, "scale": rule.scale, "enable_gqa": grouped}
        return scaled_dot_product_attention(q, k, v, **options), None
    return _Attention.apply(q, k, v, packing, rule, with_lse)


class _Attention(torch.autograd.Function):
    """Products and softmax by blocks, scores recomputed in the backward pass.

    On a CPU in bf16, T = 512: 0.58 of the time of torch's fused attention, and a third for packed
    documents of 104. In fp32 and at T = 4096 unpacked, torch's is 1.1 times as fast."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packing: Packing | None,
        rule: Rule,
        with_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(q, k, v)
        ctx.set_materialize_grads(False)
        ctx.packing, ctx.rule = packing, rule
        lasts = _lasts(packing, k.shape[1])
        outs, lses = [], []
        gathered = [_gather(x, packing) for x in (q, k, v)]
        for q_part, k_part, v_part, last in zip(*gathered, lasts, strict=True):
            out, lse = _forward(q_part, k_part, v_part, last, rule, with_lse)
            outs.append(out)
            lses.append(lse)
        out = _scatter(outs, q.shape, packing, q)
        if not with_lse:
            return out, None
        like = q.new_empty(0, dtype=torch.promote_types(q.dtype, torch.float32))
        return out, _scatter(lses, (*q.shape[:3], 1), packing, like, -torch.inf).squeeze(3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        tensors, packing = ctx.saved_tensors, ctx.packing
        if grad is None:
            grad = torch.zeros_like(tensors[0])
        if grad_lse is not None:
            grad_lse = grad_lse.unsqueeze(3).contiguous()
        wanted = [*tensors, grad] + ([] if grad_lse is None else [grad_lse])
        gathered: list[Any] = [_gather(x, packing) for x in wanted]
        if packing is not None:  # repeated positions would count twice in the keys' gradients
            for of_bucket in gathered[3:]:
                for bucket, part in zip(packing.buckets, of_bucket, strict=True):
                    part.transpose(1, 2)[bucket.padding] = 0.0
        lasts = _lasts(packing, tensors[1].shape[1])
        if grad_lse is None:
            gathered.append([None] * len(lasts))
        results = [
            _backward(q, k, v, d_out, d_lse, last, ctx.rule)
            for q, k, v, d_out, d_lse, last in zip(*gathered, lasts, strict=True)
        ]
        grads = list(zip(*results, strict=True)) or [(), (), ()]  # none: nothing but padding
        scattered = (_scatter(list(g), x.shape, packing, x) for g, x in zip(grads, tensors))
        return *scattered, None, None, None


def _lasts(packing: Packing | None, n_kv_heads: int) -> list[Tensor | None]:
    """Per bucket the last visible place of each query, (M, L), a row per key head; None: causal."""
    if packing is None:
        return [None]
    return [
        None if bucket.last is None else bucket.last.repeat_interleave(n_kv_heads, 0)
        for bucket in packing.buckets
    ]


def _gather(x: Tensor, packing: Packing | None) -> list[Tensor]:
    """x (B, N, T, K) as one contiguous (n, N, L, K) per bucket."""
    if packing is None:
        return [x.contiguous()]
    n_heads, d_head = x.shape[1], x.shape[3]
    rows = x.transpose(1, 2).reshape(-1, d_head)  # (B T N, K)
    heads = torch.arange(n_heads, device=x.device)[:, None]
    parts = []
    for bucket in packing.buckets:
        index = bucket.index.unsqueeze(1) * n_heads + heads  # (n, N, L)
        part = rows.index_select(0, index.view(-1))
        parts.append(part.view(*index.shape, d_head))
    return parts


def _scatter(
    parts: list[Tensor],
    shape: Sequence[int],
    packing: Packing | None,
    like: Tensor,
    padding: float = 0.0,
) -> Tensor:
    """The way back: (B, N, T, K) of `like`'s dtype, `padding` at padding, laid out (B, T, N, K)."""
    if packing is None:
        return parts[0]
    batch, n_heads, length, d_head = shape
    # (n, N, L, K) -> (n, L, N, K) -> (n L, N K); one more row for padding.
    rows = [part.transpose(1, 2).reshape(-1, n_heads * d_head) for part in parts]
    joined = torch.cat([*rows, like.new_full((1, n_heads * d_head), padding)])
    out = joined.index_select(0, packing.inverse)
    return out.view(batch, length, n_heads, d_head).transpose(1, 2)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, last: Tensor | None, rule: Rule, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    out = torch.empty_like(q)
    n_kv_heads, wide = k.shape[1], torch.promote_types(q.dtype, torch.float32)
    lse = q.new_empty((*q.shape[:3], 1), dtype=wide) if with_lse else None
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # (M, L, K)
    q, grouped_out = q.view(len(k), -1, *q.shape[2:]), out.view(len(k), -1, *q.shape[2:])
    assert q.shape[0] == len(out) * n_kv_heads
    for block in _blocks(q, last, rule.window):
        part = q[block.rows, :, block.start : block.stop]  # (m, G, b, K)
        keys = slice(block.low, block.high)
        scores, _ = _scores(part, k[block.rows, keys], block, last, rule)
        p = torch.softmax(scores, -1)  # fp32 inside, also for bf16
        result = torch.bmm(p, v[block.rows, keys])
        grouped_out[block.rows, :, block.start : block.stop] = result.view(part.shape)
        if lse is not None:
            sums = torch.logsumexp(scores.to(wide), -1).view(part.shape[:3])
            lse.view(*q.shape[:3])[block.rows, :, block.start : block.stop] = sums
    return out, lse


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    grad_lse: Tensor | None,
    last: Tensor | None,
    rule: Rule,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # (M, L, K)
    shape = (len(k), -1, *q.shape[2:])
    q, grad, grad_q = q.view(shape), grad.view(shape), grads[0].view(shape)
    grad_k, grad_v = grads[1].view(k.shape), grads[2].view(v.shape)
    for block in _blocks(q, last, rule.window):
        rows, queries = block.rows, slice(block.start, block.stop)
        part = q[rows, :, queries]  # (m, G, b, K)
        keys, values = k[rows, block.low : block.high], v[rows, block.low : block.high]
        scores, slope = _scores(part, keys, block, last, rule)
        p = torch.softmax(scores, -1)
        d_out = grad[rows, :, queries].flatten(1, 2)
        grad_v[rows, block.low : block.high] += torch.bmm(p.transpose(1, 2), d_out)
        d_p = torch.bmm(d_out, values.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype).mul_(rule.scale)
        if grad_lse is not None:
            d_lse = grad_lse.view(*shape[:3], 1)[rows, :, queries].flatten(1, 2)
            d_scores += (p * (d_lse * rule.scale)).to(p.dtype)
        if slope is not None:
            d_scores *= slope
        grad_q[rows, :, queries] = torch.bmm(d_scores, keys).view(part.shape)
        grad_k[rows, block.low : block.high] += torch.bmm(
            d_scores.transpose(1, 2), part.flatten(1, 2)
        )
    return grads


@dataclass(frozen=True)
class Block:
    """One product: some rows of (M, G, L, K), their queries, and the keys those may see."""

    rows: slice
    start: int
    stop: int
    low: int
    high: int


def _scores(
    q: Tensor, k: Tensor, block: Block, last: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor | None]:
    """q (m, G, b, K), k (m, s, K) -> scores (m, G b, s), -inf where hidden, and their slope."""
    m, groups, size, d_head = q.shape
    scores = torch.bmm((q * rule.scale).view(m, -1, d_head), k.transpose(1, 2))
    slope = None
    if rule.softcap is not None:
        scores = (scores / rule.softcap).tanh_()
        slope = 1 - scores.square()
        scores = scores.mul_(rule.softcap)
    grouped = scores.view(m, groups, size, -1)
    if last is None and rule.window is None:  # only the diagonal's square hides anything
        future = torch.full((size, size), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
        grouped[..., block.start :] += future
        return scores, slope
    keys = torch.arange(block.low, block.high, device=q.device)
    queries = torch.arange(block.start, block.stop, device=q.device)[:, None]
    end = queries if last is None else last[block.rows, None, block.start : block.stop, None]
    hidden = keys > end
    if rule.window is not None:
        hidden = hidden | (keys < queries - rule.window)
    grouped.masked_fill_(hidden, -torch.inf)
    return scores, slope


def _blocks(q: Tensor, last: Tensor | None, window: int | None) -> list[Block]:
    """The products over q (M, G, L, K)."""
    total, groups, length, _ = q.shape
    ends = None if last is None else (last.amax(0) + 1).tolist()
    blocks = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        low = 0 if window is None else max(0, start - window)
        high = stop if ends is None else max(ends[start:stop])
        step = max(1, CHUNK_ELEMENTS // (groups * (stop - start) * (high - low)))
        for row in range(0, total, step):
            blocks.append(Block(slice(row, row + step), start, stop, low, high))
    return blocks


def _check(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None, mask: Tensor | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[3] != k.shape[3]:
        raise ValueError(
            "expected q (B, N, T, K), k and v (B, Nkv, S, K), "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    for name, x in (("q", q), ("k", k)):
        if not x.numel():
            raise ValueError(f"{name} must not be empty, got {tuple(x.shape)}")
    if q.shape[3] > LONGEST_HEAD:
        raise ValueError(f"q: a head size of {q.shape[3]}; at most {LONGEST_HEAD} is supported")
    if q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q has {q.shape[0]} rows of {q.shape[1]} heads, k {k.shape[0]} of {k.shape[1]}: "
            "expected as many rows, and query heads that divide into the key heads"
        )
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise ValueError(f"{name} must have q's dtype, {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device, {q.device}, got {x.device}")
    if q.dtype not in DTYPES:
        raise ValueError(f"q: expected a dtype of bf16, fp16, fp32 or fp64, got {q.dtype}")
    if mask is None and q.shape[2] != k.shape[2]:
        raise ValueError(f"q has {q.shape[2]} places, k {k.shape[2]}: that would need a mask")
    if mask is not None and packing is not None:
        raise ValueError("give packing or mask, not both")
    if mask is not None and (mask.dtype != torch.bool or mask.device != q.device):
        raise ValueError(f"mask must be bool on {q.device}, got {mask.dtype} on {mask.device}")
    if packing is not None and packing.doc_id.shape != (q.shape[0], q.shape[2]):
        raise ValueError(f"doc_id is {tuple(packing.doc_id.shape)}, q {tuple(q.shape)}")
    if packing is not None and packing.doc_id.device != q.device:
        raise ValueError(f"doc_id is on {packing.doc_id.device}, q on {q.device}")


def _check_rule(rule: Rule) -> None:
    if not 0 < rule.scale < float("inf"):
        raise ValueError(f"scale must be above 0, got {rule.scale}")
    if rule.window is not None and rule.window < 0:
        raise ValueError(f"window must be a number of places, 0 or more, got {rule.window}")
    if rule.softcap is not None and not 0 < rule.softcap < float("inf"):
        raise ValueError(f"softcap must be above 0, got {rule.softcap}")


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    doc_id: Tensor | None = None,
    prefix_end: Tensor | None = None,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) by the definition, every score in memory: for tests."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    keys = torch.arange(q.shape[2], device=q.device)
    queries = keys[:, None]
    visible = keys <= queries
    if doc_id is not None:
        end = queries if prefix_end is None else queries.maximum(prefix_end[:, None, :, None])
        same = (doc_id[:, None, :, None] == doc_id[:, None, None]) & (doc_id >= 0)[:, None, None]
        visible = same & (keys <= end)
    if window is not None:
        visible = visible & (keys >= queries - window)
    scores = scores.masked_fill(~visible, -torch.inf)
    empty = ~visible.any(-1)  # no gradient through softmax and log of nothing
    lse = scores.masked_fill(empty[..., None], 0.0).logsumexp(-1).masked_fill(empty, -torch.inf)
    p = scores.masked_fill(empty[..., None], 0.0).softmax(-1).masked_fill(empty[..., None], 0.0)
    return p @ v, lse


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    doc_id: Tensor | None = None,
    prefix_end: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    packing = None if doc_id is None else pack(doc_id, prefix_end)
    return attention(q, k, v, packing=packing, return_lse=True, **options)


def _test_documents(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """doc_id and prefix_end: documents of odd lengths, padding at both ends, blocks that see
    themselves whole, and ends beyond the document."""
    doc_id = torch.full((batch, length), -1)
    prefix_end = torch.arange(length).repeat(batch, 1)
    third = length // 3
    doc_id[0, :third], doc_id[0, third:] = 3, 0
    prefix_end[0, third + 2 : third + length // 2] = third + length // 2 - 1
    if batch > 1:
        doc_id[1, 2:-3] = 1
        prefix_end[1, 5:9] = length + 9
        prefix_end[1, 20:30] = torch.arange(20, 30) * 37 % length  # any ends, in no order
    return doc_id.int(), prefix_end.int()


def _example(
    name: str,
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    documents: tuple[Tensor, Tensor | None] | None = None,
    **options: Any,
) -> Example:
    """shape: (B, N, Nkv, T, K)."""
    batch, n_heads, n_kv_heads, length, d_head = shape
    generator = torch.Generator(device).manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for key, heads in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
        x = torch.randn(batch, length, heads, d_head, generator=generator, device=device)
        inputs[key] = x.to(dtype).transpose(1, 2)  # (B, N, T, K)
    n_bytes = sum(x.numel() * x.element_size() for x in inputs.values())
    doc_id, prefix_end = documents or (torch.zeros(batch, length, dtype=torch.int32), None)
    n_pairs = pack(doc_id, prefix_end).n_visible(options.get("window"))
    if documents is not None:
        inputs["doc_id"] = doc_id.to(device)
    if prefix_end is not None:
        inputs["prefix_end"] = prefix_end.to(device)
    return Example(
        f"{name} d{d_head} T{length}",
        partial(_call, **options),
        inputs,
        partial(reference, **options),
        ("q", "k", "v"),
        n_flops=4.0 * n_heads * d_head * n_pairs,
        n_bytes=float(n_bytes + inputs["q"].numel() * inputs["q"].element_size()),
    )


def examples(
    size: str, dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> list[Example]:
    """Calls for the generic tests ("test"), the table on a GPU ("bench") and on a CPU ("cpu")."""
    make = partial(_example, dtype=dtype, device=device, seed=seed)
    if size == "test":
        documents = partial(_test_documents, length=129)
        # One key's weight is 1 whatever its score: gradients of q and k are rounding there.
        alone = replace(make("causal", (2, 4, 2, 1, 32)), gradients=("v",))
        return [
            alone,
            make("causal grouped", (2, 4, 2, 17, 64)),
            make("causal, size padded", (1, 2, 2, 127, 40)),
            make("causal", (1, 1, 1, 17, 256)),
            make("window, softcap", (1, 2, 1, 127, 32), window=20, softcap=3.0),
            make("documents, prefixes", (2, 2, 1, 129, 32), documents=documents(2)),
            make("documents, window", (1, 1, 1, 129, 64), documents=documents(1), window=13),
        ]
    if size == "cpu":
        packed = torch.arange(16).repeat_interleave(256)[None].int()
        return [make("16 documents of 256", (1, 8, 8, 4096, 64), documents=(packed, None))]
    place = torch.arange(16_384)
    rows = [make("causal", (16_384 // t, 16, 16, t, 128)) for t in (4096, 8192, 16_384)]
    rows += [make("causal", (4, 32, 32, 4096, 64)), make("grouped", (4, 32, 8, 4096, 128))]
    packed = (place // 2048)[None].int()
    rows.append(make("documents of 2048", (1, 16, 16, 16_384, 128), documents=(packed, None)))
    # Text and pictures of 1024 in turns: three pictures that see themselves whole.
    place = torch.arange(4096)
    end = torch.where(place // 256 % 5 > 0, place // 1280 * 1280 + 1279, place)
    blocks = torch.zeros(4, 4096, dtype=torch.int32), end.int().repeat(4, 1)
    rows.append(make("conditioning blocks", (4, 16, 16, 4096, 128), documents=blocks))
    return rows
