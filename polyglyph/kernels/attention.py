"""Causal grouped-query attention, packed documents apart (arXiv:1706.03762, arXiv:2305.13245).

A key is visible to a query of the same document at the same place or later. The torch path
computes each document by itself: documents of similar length share one batched product, so no
(T, T) mask is built and nothing across documents is computed. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Scores of one product. On a CPU a quarter of it costs 10 %, four times as much costs 6 %.
CHUNK_ELEMENTS = 1 << 20
# Queries of one product: keys after the block's last query are never read. On a CPU, T = 512:
# 256 costs 13 % more, 512 (all keys) 50 % more.
BLOCK = 128
# A document joins a bucket when it is at least this share of the bucket's longest.
FILL = 0.8


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length, side by side."""

    index: Tensor  # (n, L) int64 flat positions; short documents repeat their last
    padding: tuple[Tensor, Tensor]  # (row, column) of each such repetition


@dataclass(frozen=True)
class Packing:
    """Where the documents of a packed batch lie; made once per forward, read by every layer."""

    positions: Tensor  # (B, T) int64, restarting at 0 in every document
    buckets: list[Bucket]  # every position that isn't padding, once
    inverse: Tensor  # (B * T,) place in the joined buckets; the one after their end: padding
    doc_id: Tensor  # (B, T)

    def mask(self) -> Tensor:
        """(B, 1, T, T) bool, for paths that need it whole."""
        doc = self.doc_id
        same = doc.unsqueeze(2) == doc.unsqueeze(1)
        return (same & (doc >= 0).unsqueeze(2)).tril_().unsqueeze(1)


def pack(doc_id: Tensor) -> Packing:
    """Find the documents of doc_id (B, T) int: runs of one number; negative: padding, output 0.

    ValueError where a number comes back in a row after another: documents are contiguous.
    """
    if doc_id.ndim != 2:
        raise ValueError(f"doc_id must be (B, T), got {tuple(doc_id.shape)}")
    batch, length = doc_id.shape
    flat = doc_id.reshape(-1)
    place = torch.arange(length, device=doc_id.device).repeat(batch)
    new = place == 0
    new[1:] |= flat[1:] != flat[:-1]
    starts = new.nonzero().squeeze(1)
    _check_contiguous(doc_id, starts, length)
    run = new.cumsum(0) - 1
    positions = torch.arange(len(flat), device=doc_id.device) - starts[run]
    lengths = torch.bincount(run, minlength=len(starts))
    kept = flat[starts] >= 0
    buckets = _make_buckets(starts[kept], lengths[kept])
    inverse = torch.full_like(positions, sum(bucket.index.numel() for bucket in buckets))
    begin = 0
    for bucket in buckets:
        places = torch.arange(begin, begin + bucket.index.numel(), device=doc_id.device)
        columns = torch.arange(bucket.index.shape[1], device=doc_id.device)
        real = positions[bucket.index] == columns
        inverse[bucket.index[real]] = places.view(real.shape)[real]
        begin += bucket.index.numel()
    return Packing(positions.view(batch, length), buckets, inverse, doc_id)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, packing: Packing | None = None, mask: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over visible keys; q (B, N, T, K), k and v (B, Nkv, S, K).

    Without `packing` and `mask` causal over whole rows (T = S); with `packing` causal inside each
    document; with `mask`, bool (B or 1, 1, T, S), exactly what it allows (the KV cache's way).
    Returns (B, N, T, K) in q's dtype. Products in the inputs' dtype, softmax in fp32. Query head n
    reads key head n // (N / Nkv). Deterministic on a CPU; gradients of first order.
    """
    _check(q, k, v, packing, mask)
    grouped = q.shape[1] != k.shape[1]
    if mask is not None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if q.device.type != "cpu":
        if packing is None:
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        dense = packing.mask()
        # A row without any visible key (padding) would be NaN: let it see itself, then drop it.
        padding = (packing.doc_id < 0)[:, None, :, None]
        dense = dense | (padding & torch.eye(q.shape[2], dtype=torch.bool, device=q.device))
        out = scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=grouped)
        return out.masked_fill(padding, 0.0)
    return _Attention.apply(q, k, v, packing)


class _Attention(torch.autograd.Function):
    """Products and softmax by blocks, scores recomputed in the backward pass.

    On a CPU in bf16, T = 512: 0.58 of the time of torch's fused attention, and a third for packed
    documents of 104. In fp32 and at T = 4096 unpacked, torch's is 1.1 times as fast."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.packing = packing
        parts = zip(*(_gather(x, packing) for x in (q, k, v)), strict=True)
        return _scatter([_forward(*part) for part in parts], q.shape, packing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, packing = ctx.saved_tensors, ctx.packing
        gathered = [_gather(x, packing) for x in (*tensors, grad)]
        if packing is not None:  # repeated positions would count twice in the keys' gradients
            for bucket, part in zip(packing.buckets, gathered[3], strict=True):
                part.transpose(1, 2)[bucket.padding] = 0.0
        parts = zip(*gathered, strict=True)
        grads = zip(*(_backward(*part) for part in parts), strict=True)
        return *(_scatter(list(g), x.shape, packing) for g, x in zip(grads, tensors)), None


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


def _scatter(parts: list[Tensor], shape: torch.Size, packing: Packing | None) -> Tensor:
    """The way back: (B, N, T, K), zero at padding, laid out (B, T, N, K)."""
    if packing is None:
        return parts[0]
    batch, n_heads, length, d_head = shape
    # (n, N, L, K) -> (n, L, N, K) -> (n L, N K); one more row of zeros for padding.
    rows = [part.transpose(1, 2).reshape(-1, n_heads * d_head) for part in parts]
    like = parts[0] if parts else torch.zeros(0)
    joined = torch.cat([*rows, like.new_zeros(1, n_heads * d_head)])
    out = joined.index_select(0, packing.inverse)
    return out.view(batch, length, n_heads, d_head).transpose(1, 2)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(q)
    n_kv_heads = k.shape[1]
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # (M, L, K)
    q, grouped_out = q.view(len(k), -1, *q.shape[2:]), out.view(len(k), -1, *q.shape[2:])
    assert q.shape[0] == len(out) * n_kv_heads
    for rows, start, stop in _blocks(q):
        block = q[rows, :, start:stop]  # (m, G, b, K)
        p = _probabilities(block, k[rows, :stop], start)
        result = torch.bmm(p, v[rows, :stop])
        grouped_out[rows, :, start:stop] = result.view(block.shape)
    return out


def _backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # (M, L, K)
    shape = (len(k), -1, *q.shape[2:])
    q, grad, grad_q = q.view(shape), grad.view(shape), grads[0].view(shape)
    grad_k, grad_v = grads[1].view(k.shape), grads[2].view(v.shape)
    scale = q.shape[-1] ** -0.5
    for rows, start, stop in _blocks(q):
        block = q[rows, :, start:stop]  # (m, G, b, K)
        keys, values = k[rows, :stop], v[rows, :stop]
        p = _probabilities(block, keys, start)
        d_out = grad[rows, :, start:stop].flatten(1, 2)
        grad_v[rows, :stop] += torch.bmm(p.transpose(1, 2), d_out)
        d_p = torch.bmm(d_out, values.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype).mul_(scale)
        grad_q[rows, :, start:stop] = torch.bmm(d_scores, keys).view(block.shape)
        grad_k[rows, :stop] += torch.bmm(d_scores.transpose(1, 2), block.flatten(1, 2))
    return grads


def _probabilities(q: Tensor, k: Tensor, start: int) -> Tensor:
    """Softmax of a block: q (m, G, b, K) at places start.., k (m, stop, K) -> (m, G b, stop)."""
    m, groups, size, d_head = q.shape
    scores = torch.bmm((q * d_head**-0.5).view(m, -1, d_head), k.transpose(1, 2))
    future = torch.full((size, size), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
    scores.view(m, groups, size, -1)[..., start:] += future
    return torch.softmax(scores, -1)  # fp32 inside, also for bf16


def _blocks(q: Tensor) -> list[tuple[slice, int, int]]:
    """(rows, first and last query) of each product over q (M, G, L, K)."""
    total, groups, length, _ = q.shape
    blocks = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        step = max(1, CHUNK_ELEMENTS // (groups * (stop - start) * stop))
        blocks += [(slice(row, row + step), start, stop) for row in range(0, total, step)]
    return blocks


def _make_buckets(starts: Tensor, lengths: Tensor) -> list[Bucket]:
    """The documents, longest first, cut where one would be mostly padding."""
    lengths, order = lengths.sort(descending=True, stable=True)
    starts, sizes = starts[order], lengths.tolist()
    buckets, begin = [], 0
    for i in range(len(sizes) + 1):
        if i == len(sizes) or sizes[i] < FILL * sizes[begin]:
            if i > begin:
                columns = torch.arange(sizes[begin], device=starts.device)
                last = lengths[begin:i, None] - 1
                index = starts[begin:i, None] + torch.minimum(columns, last)
                rows, places = (columns > last).nonzero(as_tuple=True)
                buckets.append(Bucket(index, (rows, places)))
            begin = i
    return buckets


def _check_contiguous(doc_id: Tensor, starts: Tensor, length: int) -> None:
    rows, docs = starts // length, doc_id.reshape(-1)[starts]
    pairs = torch.stack([rows, docs.long()], 1)[docs >= 0]
    if len(torch.unique(pairs, dim=0)) != len(pairs):
        raise ValueError("doc_id: a document's ids must be contiguous in their row")


def _check(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None, mask: Tensor | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[3] != k.shape[3]:
        raise ValueError(
            "expected q (B, N, T, K), k and v (B, Nkv, S, K), "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads don't divide into {k.shape[1]} key heads")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}")
    if mask is None and q.shape[2] != k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries and {k.shape[2]} keys need a mask")
    if mask is not None and packing is not None:
        raise ValueError("give packing or mask, not both")
    if packing is not None and packing.doc_id.shape != (q.shape[0], q.shape[2]):
        raise ValueError(f"doc_id is {tuple(packing.doc_id.shape)}, q {tuple(q.shape)}")
