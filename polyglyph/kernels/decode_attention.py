"""Attention of a row's newest ids to all it has read: few queries, a long cache (Flash-Decoding).

Rows have different lengths; the query heads of a key head read its keys once, together. The
Triton form splits long rows over many programs (decode_attention_triton.py). Knows nothing of
models or of how a cache is filled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, *, shared: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the keys that each row has.

    q (B, N, T, K): the queries of each row's last T ids; k and v (B, Nkv, S, K): the cache, head
    width contiguous. lengths (B,) int32, how many keys the last query of a row sees: query t sees
    the first lengths - (T - 1 - t), at most S; where that is none its output is 0. shared (B, 2)
    int32: row i reads its first shared[i, 1] keys from row shared[i, 0] of the cache (its own
    places there may hold anything). Query head n reads key head n // (N / Nkv). Returns
    (B, N, T, K) in q's dtype.

    Keys behind a row's length don't matter, be they NaN. Products in the inputs' dtype, softmax
    in fp32. The Triton form has no gradient, and for one T gives a row the same bits whatever the
    other rows, their lengths and S (splits of fixed size, joined in order); torch's differs there
    by rounding. Flash-Decoding: pytorch.org/blog/flash-decoding; arXiv:2307.08691; grouped heads:
    arXiv:2305.13245.
    ValueError names the argument that is wrong.
    """
    _check(q, k, v, lengths, shared)
    # fp64, of which the Triton form knows nothing, stays with torch.
    if q.dtype != torch.float64 and backend.pick("decode_attention", q) == "triton":
        from polyglyph.kernels.decode_attention_triton import decode_attention_triton

        return decode_attention_triton(q, k, v, lengths, shared)
    if shared is not None:
        k, v = _unshare(k, shared), _unshare(v, shared)
    return _attend(q, k, v, lengths)


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    """One product for all rows with a mask, or one for each run of rows of one length without:
    a mask costs a third on a CPU, a call as much as 300 keys."""
    batch, length = q.shape[0], q.shape[2]
    if q.device.type == "cpu":
        runs = _runs(lengths.tolist(), k.shape[2])
        if 4 * len(runs) <= max(4, batch) and all(n >= length for _, _, n in runs):
            return _each(q, k, v, runs)
    steps = torch.arange(1 - length, 1, device=q.device)
    visible = lengths.unsqueeze(1) + steps  # (B, T) keys that each query sees
    keys = torch.arange(k.shape[2], device=q.device)
    mask = (keys < visible.unsqueeze(2)).unsqueeze(1)  # (B, 1, T, S)
    out = _packed(q, k, v, mask)
    out = out.masked_fill((visible <= 0)[:, None, :, None], 0.0)
    if out.isfinite().all():
        return out
    # A weight of 0 doesn't hide a NaN or an infinity behind a row's length: not reading does.
    return _each(q, k, v, [(row, row + 1, n) for row, n in enumerate(lengths.tolist())])


def _each(q: Tensor, k: Tensor, v: Tensor, runs: list[tuple[int, int, int]]) -> Tensor:
    """Rows of one length at a time, reading no key behind it."""
    length, parts = q.shape[2], []
    for start, stop, n in runs:
        rows, end = slice(start, stop), min(n, k.shape[2])
        if end <= 0:
            parts.append(torch.zeros_like(q[rows]))
            continue
        mask = None
        if length > 1:
            mask = torch.ones(length, end, dtype=torch.bool, device=q.device).tril_(n - length)
        part = _packed(q[rows], k[rows, :, :end], v[rows, :, :end], mask)
        if n < length:  # the first queries see nothing
            blind = torch.arange(length, device=q.device) < length - n
            part = part.masked_fill(blind[:, None], 0.0)
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _packed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The query heads of a key head as further queries of it: its keys are read once. On a CPU
    in bf16, 16 heads on 4, 8 rows of 2,000: an eighth of the time of torch's own grouping."""
    batch, n_kv_heads, _, d_head = k.shape
    length, groups = q.shape[2], q.shape[1] // n_kv_heads
    if mask is not None and groups > 1:  # (..., T, S) -> (..., G T, S)
        mask = mask.unsqueeze(-3).expand(*mask.shape[:-2], groups, *mask.shape[-2:])
        mask = mask.flatten(-3, -2)
    grouped = q.reshape(batch, n_kv_heads, groups * length, d_head)
    return scaled_dot_product_attention(grouped, k, v, attn_mask=mask).view(q.shape)


def _runs(lengths: list[int], size: int) -> list[tuple[int, int, int]]:
    """(first row, end, length) of neighbouring rows of one length."""
    runs: list[tuple[int, int, int]] = []
    for row, n in enumerate(lengths):
        if runs and runs[-1][2] == n:
            runs[-1] = (runs[-1][0], row + 1, n)
        else:
            runs.append((row, row + 1, n))
    return runs


def _unshare(x: Tensor, shared: Tensor) -> Tensor:
    """The cache (B, Nkv, S, K) with every row's shared keys in their places."""
    places = torch.arange(x.shape[2], device=x.device)
    own = torch.arange(len(x), device=x.device).unsqueeze(1)
    sources = torch.where(places < shared[:, 1:], shared[:, :1].long(), own)  # (B, S)
    return x.transpose(1, 2)[sources, places].transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, shared: Tensor | None) -> None:
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q must be (B, N, T, K), none of them 0, got {tuple(q.shape)}")
    if not q.is_floating_point():
        raise ValueError(f"q must be of a float dtype, got {q.dtype}")
    for name, x in (("k", k), ("v", v)):
        if x.ndim != 4 or x.shape[0] != q.shape[0] or x.shape[3] != q.shape[3] or 0 in x.shape:
            raise ValueError(
                f"{name} must be (B, Nkv, S, K) with q's B {q.shape[0]} and K {q.shape[3]}, "
                f"none of them 0, got {tuple(x.shape)}"
            )
        if x.dtype != q.dtype:
            raise ValueError(f"{name} is {x.dtype}, q {q.dtype}; cast one")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}; move one")
        if x.stride(3) != 1:
            raise ValueError(f"{name} must be contiguous along K, its strides are {x.stride()}")
    if k.shape != v.shape:
        raise ValueError(f"v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads, not a multiple of k's {k.shape[1]}")
    _check_counts("lengths", lengths, (q.shape[0],), q)
    if shared is None:
        return
    _check_counts("shared", shared, (q.shape[0], 2), q)
    if shared.device.type == "cpu":  # the Triton form clamps: asking a GPU would wait for it
        rows = shared[:, 0]
        if int(rows.min()) < 0 or int(rows.max()) >= len(q):
            raise ValueError(f"shared names row {int(rows.max())} of {len(q)}")


def _check_counts(name: str, x: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    if x.shape != shape or x.dtype != torch.int32:
        raise ValueError(f"{name} must be int32 {shape}, got {x.dtype} {tuple(x.shape)}")
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device}, q on {q.device}; move one")


# --- what the generic tests and the benchmark run -----------------------------------------------


def definition(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, shared: Tensor | None = None
) -> Tensor:
    """`decode_attention` query by query, from the keys that it sees and no others."""
    out = torch.zeros_like(q)
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    for row, n in enumerate(lengths.tolist()):
        keys, values = k[row], v[row]
        if shared is not None:
            source, prefix = shared[row].tolist()
            keys = torch.cat([k[source, :, :prefix], keys[:, prefix:]], 1)
            values = torch.cat([v[source, :, :prefix], values[:, prefix:]], 1)
        for t in range(length):
            end = min(n - (length - 1 - t), k.shape[2])
            if end <= 0:
                continue
            for head in range(q.shape[1]):
                scores = keys[head // groups, :end] @ q[row, head, t] * q.shape[3] ** -0.5
                out[row, head, t] = scores.softmax(0) @ values[head // groups, :end]
    return out


# (query heads, key heads, T, d_head, S, lengths)
_TEST = (
    (2, 2, 1, 32, 129, (127, 1, 0, 129)),  # one split
    (2, 1, 1, 64, 300, (300, 257, 17)),  # two splits, a row that needs one
    (7, 1, 3, 48, 130, (129, 2)),  # 21 queries packed, the first of row 1 sees nothing
    (2, 1, 1, 256, 140, (127, 140)),
    (4, 4, 2, 128, 1000, (1000,)),
)
_CPU = ((4, 2, 1, 64, 512, (512,) * 16), (32, 8, 1, 128, 4096, (4096, 3000, 2000, 1000)))
_BENCH = (
    (32, 8, 1, 128, 4096, (4096,) * 32),  # 537 MB
    (32, 8, 1, 128, 8192, (8192,)),  # floor 7.8 us on an H200: latency
    (32, 8, 1, 128, 16384, tuple(range(16384, 0, -1024))),
    (16, 16, 1, 64, 4096, (4096,) * 64),
)
_SIZES = {"test": _TEST, "cpu": _CPU, "bench": _BENCH}


def examples(size: str, dtype: torch.dtype, device: torch.device, seed: int) -> list[Example]:
    generator = torch.Generator(device).manual_seed(seed)
    made = []
    for n_heads, n_kv_heads, length, d_head, capacity, lengths in _SIZES[size]:
        batch, counts = len(lengths), torch.tensor(lengths, dtype=torch.int32, device=device)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        inputs = {"q": draw(batch, n_heads, length, d_head), "lengths": counts}
        behind = torch.arange(capacity, device=device) >= counts.unsqueeze(1)
        for name in ("k", "v"):  # what lies behind a row's length is poison
            x = draw(batch, n_kv_heads, capacity, d_head)
            inputs[name] = x.masked_fill_(behind[:, None, :, None], torch.nan)
        n_keys = sum(lengths)
        name = f"B{batch} N{n_heads}/{n_kv_heads} T{length} d{d_head} S{capacity}"
        made.append(
            Example(
                name, decode_attention, inputs, definition,
                n_flops=4.0 * n_heads * length * d_head * n_keys,
                n_bytes=2.0 * n_kv_heads * d_head * n_keys * q_bytes(dtype),
            )
        )  # fmt: skip
    if size == "test":
        made.append(_shared_example(made[1]))
    return made


def _shared_example(example: Example) -> Example:
    """Row 1 reads 140 of its keys from row 0, row 2 nothing from anywhere."""
    inputs = dict(example.inputs)
    shared = torch.tensor([[0, 0], [0, 140], [1, 0]], dtype=torch.int32)
    inputs["shared"] = shared.to(inputs["q"].device)
    for name in ("k", "v"):
        inputs[name] = inputs[name].clone()
        inputs[name][1, :, :140] = torch.nan
    return Example(f"{example.name} shared", decode_attention, inputs, definition)


def q_bytes(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8
