"""The rows that any machine measures: our torch paths against what a user would write or install.

fp32, one thread. Knows how the peers are called."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyglyph.bench.kernel_cases.measuring import OURS, Case, Side, Thunk

# Sizes of the issue: positions, width, text ids and visual ids of the vocabulary.
HEAD = (512, 512, 151_552, 32_768)
QUICK_HEAD = (64, 32, 700, 200)
VISUAL_SHARE = 0.75
SEARCH = (65_536, 256, 16_384)
QUICK_SEARCH = (16, 64)  # width and codes
PEER_COPIES = 4  # matrices of (N, K) fp32 that vector-quantize-pytorch holds at once (measured)


def cases(quick: bool) -> list[Case]:
    """In the order of the issue's table."""
    return [
        Case(
            "sliced cross-entropy, 75 % visual, forward and backward",
            "cpu",
            make_head,
            {OURS: _sliced(text_is_full=False), "torch linear + cross-entropy": _torch_head},
            {"torch linear + cross-entropy": 2.3},
            {"torch linear + cross-entropy": 1 / 5},
        ),
        Case(
            "sliced cross-entropy, text over the whole vocabulary",
            "cpu",
            make_head,
            {OURS: _sliced(text_is_full=True), "torch linear + cross-entropy": _torch_head},
            {"torch linear + cross-entropy": 2.3},
            {"torch linear + cross-entropy": 1 / 5},
        ),
        Case(
            "packed attention, 16 documents of 256, forward and backward",
            "cpu",
            make_packed,
            {OURS: _packed, "SDPA with the dense mask": _dense},
            {"SDPA with the dense mask": 4.0},
        ),
        search_case(quick),
    ]


# --- the head -----------------------------------------------------------------------------------


def make_head(quick: bool, seed: int) -> tuple[Tensor, ...]:
    """hidden, weight, targets, slots, slot table: text in slot 0, visual ids in slot 1."""
    n, width, n_text, n_visual = QUICK_HEAD if quick else HEAD
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=generator).requires_grad_()
    weight = torch.randn(n_text + n_visual, width, generator=generator)
    weight.mul_(width**-0.5).requires_grad_()
    slots = (torch.rand(n, generator=generator) < VISUAL_SHARE).long()
    text = torch.randint(n_text, (n,), generator=generator)
    visual = torch.randint(n_text, n_text + n_visual, (n,), generator=generator)
    table = torch.zeros(2, 4, 2, dtype=torch.int64)
    table[0, 0] = torch.tensor([0, n_text])
    table[1, 0] = torch.tensor([n_text, n_text + n_visual])
    return hidden, weight, torch.where(slots == 1, visual, text), slots, table


def _sliced(text_is_full: bool) -> Side:
    def side(inputs: tuple[Tensor, ...]) -> Thunk:
        from polyglyph.kernels.cross_entropy import sliced_cross_entropy

        hidden, weight, targets, slots, table = inputs
        full = (0,) if text_is_full else ()

        def call() -> Any:
            found = sliced_cross_entropy(hidden, weight, targets, slots, table, full_slots=full)
            return torch.autograd.grad(found.loss, (hidden, weight))

        return call

    return side


def _torch_head(inputs: tuple[Tensor, ...]) -> Thunk:
    hidden, weight, targets, _, _ = inputs

    def call() -> Any:
        loss = F.cross_entropy(F.linear(hidden, weight), targets)
        return torch.autograd.grad(loss, (hidden, weight))

    return call


# --- packed attention ---------------------------------------------------------------------------


def make_packed(quick: bool, seed: int) -> tuple[Tensor, ...]:
    """q, k, v (1, N, T, K), a gradient, and doc_id (1, T)."""
    n_documents, length, n_heads, d_head = (4, 16, 2, 8) if quick else (16, 256, 8, 64)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, n_heads, n_documents * length, d_head)
    q, k, v, grad = (torch.randn(shape, generator=generator) for _ in range(4))
    doc_id = torch.arange(n_documents).repeat_interleave(length)[None]
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad, doc_id


def _packed(inputs: tuple[Tensor, ...]) -> Thunk:
    from polyglyph.kernels.attention import attention
    from polyglyph.kernels.packing import pack

    q, k, v, grad, doc_id = inputs

    def call() -> Any:
        out = attention(q, k, v, packing=pack(doc_id))
        return torch.autograd.grad(out, (q, k, v), grad)

    return call


def _dense(inputs: tuple[Tensor, ...]) -> Thunk:
    q, k, v, grad, doc_id = inputs
    mask = (doc_id[0][:, None] == doc_id[0]).tril_()

    def call() -> Any:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.autograd.grad(out, (q, k, v), grad)

    return call


# --- the nearest code ---------------------------------------------------------------------------


def search_case(quick: bool) -> Case:
    """The search, of as many vectors in every turn."""
    n = n_searched(quick)
    width, size = QUICK_SEARCH if quick else SEARCH[1:]
    return Case(
        f"nearest code, {n:,} × {width}, K = {size:,}",
        "cpu",
        partial(make_search, n=n),
        {OURS: _nearest, "vector-quantize-pytorch": _vector_quantize},
        {"vector-quantize-pytorch": 3.0},
        {"vector-quantize-pytorch": 1 / 50},
    )


def n_searched(quick: bool) -> int:
    """Vectors to search for: the issue's number, halved until the peer's matrices fit into what
    memory is free (it takes 16 GiB for 65,536)."""
    if quick:
        return 96
    n, _, k = SEARCH
    free = _free_bytes()
    while n > 4096 and PEER_COPIES * 4 * n * k * 1.15 > free:
        n //= 2
    return n


def _free_bytes() -> float:
    try:
        text = Path("/proc/meminfo").read_text("ascii", "replace")
    except OSError:
        return math.inf
    found = [line for line in text.splitlines() if line.startswith("MemAvailable")]
    return int(found[0].split()[1]) * 1024 if found else math.inf


def make_search(quick: bool, seed: int, *, n: int) -> tuple[Tensor, Tensor]:
    """x (n, D) and a codebook (K, D)."""
    width, size = QUICK_SEARCH if quick else SEARCH[1:]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator)
    return x, torch.randn(size, width, generator=generator)


def _nearest(inputs: tuple[Tensor, Tensor]) -> Thunk:
    from polyglyph.kernels.nearest_code import nearest_code

    return lambda: nearest_code(*inputs)


def _vector_quantize(inputs: tuple[Tensor, Tensor]) -> Thunk:
    from vector_quantize_pytorch import VectorQuantize

    x, codebook = inputs
    quantizer = VectorQuantize(dim=x.shape[1], codebook_size=len(codebook)).eval()
    quantizer._codebook.embed.data.copy_(codebook[None])

    def call() -> Any:
        with torch.no_grad():
            return quantizer(x[None])[:2]  # vectors and indices

    return call
