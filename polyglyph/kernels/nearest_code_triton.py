"""nearest_code in Triton: search, the residual loop over codebooks, and sums of vectors by code.

Scores are fp32 products (never tf32: a near tie would flip), kept for one tile of codes at a time;
the first of equal scores wins, inside a tile and between tiles. Of the residual loop one program
does all codebooks for its rows, whose residual stays on the chip. Sums by code run over the rows
in the order of the batch. No atomics. Knows nothing of codecs."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Compilation

PART = 8192  # codes that one program of a search goes through
WIDEST_RESIDUAL = 256  # of a vector whose residual stays on the chip
# architecture -> (rows, codes, columns of a product's step, warps, stages) of a search. From the
# resource report (no spill, shared memory), not from timings: no GPU has run them.
_SEARCH = {80: (64, 64, 16, 4, 2), 90: (64, 64, 16, 4, 2)}
# width of a vector, rounded up -> (rows, codes, warps, stages) of the residual loop
_RESIDUAL = {
    80: {16: (64, 32, 4, 1), 32: (32, 64, 4, 1), 64: (32, 32, 4, 1), 128: (16, 32, 4, 1),
         256: (16, 16, 4, 1)},
    90: {16: (64, 32, 4, 2), 32: (32, 64, 4, 1), 64: (32, 32, 4, 1), 128: (16, 32, 4, 2),
         256: (16, 16, 4, 1)},
}  # fmt: skip
_SUM_ROWS, _SUM_WIDTH = 32, 64


@triton.jit
def _dot(a, b, total, INTERPRET: tl.constexpr):
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit(do_not_specialize=["n_rows", "n_codes"])
def search(
    x_ptr,  # (N, D) fp32
    book_ptr,  # (K, D) fp32
    bias_ptr,  # (K,) fp32
    best_ptr,  # (parts, N) fp32
    code_ptr,  # (parts, N) int64
    n_rows,
    n_codes,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CODES: tl.constexpr,  # of one part
    INTERPRET: tl.constexpr,
):
    """The largest x · code + bias of a part of the codes, and the lowest code that has it."""
    part = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = rows < n_rows
    columns = tl.arange(0, BLOCK_K)
    x_at = tl.minimum(rows, n_rows - 1).to(tl.int64)[:, None] * width + columns[None, :]
    first = part * CODES
    best = tl.full([BLOCK_M], -1e38, dtype=tl.float32)
    found = tl.zeros([BLOCK_M], dtype=tl.int32) + first
    for start in range(first, tl.minimum(first + CODES, n_codes), BLOCK_N):
        codes = start + tl.arange(0, BLOCK_N)
        safe = tl.minimum(codes, n_codes - 1).to(tl.int64)
        book_at = safe[None, :] * width + columns[:, None]
        scores = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for k in range(0, width, BLOCK_K):
            inside = columns < width - k
            x = tl.load(x_ptr + x_at + k, mask=inside[None, :], other=0.0)
            book = tl.load(book_ptr + book_at + k, mask=inside[:, None], other=0.0)
            scores = _dot(x, book, scores, INTERPRET)
        scores += tl.load(bias_ptr + safe)[None, :]
        scores = tl.where((codes < n_codes)[None, :], scores, -1e38)
        top, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
        better = top > best
        found = tl.where(better, start + place, found)
        best = tl.where(better, top, best)
    out = part.to(tl.int64) * n_rows + rows
    tl.store(best_ptr + out, best, mask=real)
    tl.store(code_ptr + out, found.to(tl.int64), mask=real)


@triton.jit(do_not_specialize=["n_rows", "n_codes"])
def residual(
    x_ptr,  # (N, D) fp32
    books_ptr,  # (Q, K, D) fp32
    bias_ptr,  # (Q, K) fp32
    code_ptr,  # (N, Q) int64
    quantized_ptr,  # (N, D) fp32
    n_rows,
    n_codes,
    n_codebooks,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # width, rounded up
    INTERPRET: tl.constexpr,
):
    """All codebooks for BLOCK_M rows: what each leaves is what the next one searches."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = rows < n_rows
    columns = tl.arange(0, BLOCK_D)
    inside = columns < width
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    mask = real[:, None] & inside[None, :]
    left = tl.load(x_ptr + at, mask=mask, other=0.0)
    quantized = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    book_ptr = books_ptr
    for q in range(n_codebooks):
        best = tl.full([BLOCK_M], -1e38, dtype=tl.float32)
        found = tl.zeros([BLOCK_M], dtype=tl.int32)
        for start in range(0, n_codes, BLOCK_N):
            codes = start + tl.arange(0, BLOCK_N)
            safe = tl.minimum(codes, n_codes - 1)
            book_at = safe[None, :] * width + columns[:, None]
            book = tl.load(book_ptr + book_at, mask=inside[:, None], other=0.0)
            scores = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
            scores = _dot(left, book, scores, INTERPRET)
            scores += tl.load(bias_ptr + safe)[None, :]
            scores = tl.where((codes < n_codes)[None, :], scores, -1e38)
            top, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
            better = top > best
            found = tl.where(better, start + place, found)
            best = tl.where(better, top, best)
        chosen_at = found[:, None] * width + columns[None, :]
        chosen = tl.load(book_ptr + chosen_at, mask=inside[None, :], other=0.0)
        left -= chosen
        quantized += chosen
        tl.store(code_ptr + rows.to(tl.int64) * n_codebooks + q, found.to(tl.int64), mask=real)
        book_ptr += n_codes * width
        bias_ptr += n_codes
    tl.store(quantized_ptr + at, quantized, mask=mask)


@triton.jit
def sums(
    x_ptr,  # (N, D)
    order_ptr,  # (N,) int64: rows sorted by code, the rows of one code in order
    ends_ptr,  # (K,) int64: where each code's rows end in `order`
    sums_ptr,  # (K, D) fp32
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sum of one code's rows."""
    code = tl.program_id(0)
    begin = tl.load(ends_ptr + code - 1, mask=code > 0, other=0)
    end = tl.load(ends_ptr + code)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    lanes = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    order_ptr += begin
    for start in range(0, (end - begin).to(tl.int32), ROWS):
        real = lanes < end - begin - start
        rows = tl.load(order_ptr + start + lanes, mask=real, other=0)
        mask = real[:, None] & (columns < width)[None, :]
        at = rows[:, None] * width + columns[None, :]
        total += tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    place = code.to(tl.int64) * width + columns
    tl.store(sums_ptr + place, tl.sum(total, 0), mask=columns < width)


# --- launches -----------------------------------------------------------------------------------


def _options(warps: int, stages: int) -> dict[str, Any]:
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


@torch.library.custom_op("polyglyph::nearest_code", mutates_args=())
@backend.on_its_device
def _search(x: Tensor, book: Tensor, bias: Tensor) -> Tensor:
    n, width = x.shape
    n_parts = triton.cdiv(len(book), PART)
    codes = x.new_empty((n_parts, n), dtype=torch.int64)
    if n == 0:
        return codes[0]
    best = x.new_empty((n_parts, n))
    m, k, step, *options = _SEARCH[backend.architecture(x.device)]
    search[(triton.cdiv(n, m), n_parts)](
        x, book, bias, best, codes, n, len(book), width,
        m, k, step, PART, backend.interpreting(), **_options(*options),
    )  # fmt: skip
    # max gives the first of equal ones: the lowest code.
    return codes.gather(0, best.max(0, keepdim=True).indices)[0]


@_search.register_fake
def _(x: Tensor, book: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


@torch.library.custom_op("polyglyph::nearest_code_residual", mutates_args=())
@backend.on_its_device
def _residual(x: Tensor, books: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    n, width = x.shape
    n_codebooks, n_codes = bias.shape
    codes = x.new_empty((n, n_codebooks), dtype=torch.int64)
    quantized = torch.empty_like(x)
    if n:
        block = max(16, triton.next_power_of_2(width))
        m, k, *options = _RESIDUAL[backend.architecture(x.device)][block]
        residual[(triton.cdiv(n, m),)](
            x, books, bias, codes, quantized, n, n_codes, n_codebooks, width,
            m, k, block, backend.interpreting(), **_options(*options),
        )  # fmt: skip
    return codes, quantized


@_residual.register_fake
def _(x: Tensor, books: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], bias.shape[0]), dtype=torch.int64), torch.empty_like(x)


@torch.library.custom_op("polyglyph::nearest_code_sums", mutates_args=())
@backend.on_its_device
def _sums(x: Tensor, codes: Tensor, n_codes: int) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(codes, minlength=n_codes)
    found = x.new_empty((n_codes, x.shape[1]), dtype=torch.float32)
    grid = (n_codes, triton.cdiv(x.shape[1], _SUM_WIDTH))
    order = torch.argsort(codes, stable=True)
    sums[grid](
        x, order, counts.cumsum(0), found, x.shape[1], _SUM_ROWS, _SUM_WIDTH, **_options(4, 2)
    )
    return counts, found


@_sums.register_fake
def _(x: Tensor, codes: Tensor, n_codes: int) -> tuple[Tensor, Tensor]:
    counts = codes.new_empty(n_codes)
    return counts, x.new_empty((n_codes, x.shape[1]), dtype=torch.float32)


def nearest_code_triton(x: Tensor, book: Tensor, bias: Tensor) -> Tensor:
    """Lowest code (N,) of the largest x · code + bias: x (N, D), book (K, D), bias (K,), fp32."""
    return _search(x.contiguous(), book.contiguous(), bias)


def residual_codes_triton(x: Tensor, books: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (N, Q) and their sum (N, D): x (N, D ≤ WIDEST_RESIDUAL), books (Q, K, D), bias (Q, K),
    all fp32."""
    return _residual(x.contiguous(), books.contiguous(), bias.contiguous())


def ema_sums_triton(x: Tensor, codes: Tensor, n_codes: int) -> tuple[Tensor, Tensor]:
    """(counts (K,) int64, sums (K, D) fp32) of rows x (N, D) by their codes (N,), in [0, K)."""
    return _sums(x.contiguous(), codes.contiguous(), n_codes)


# --- the shipped configurations -----------------------------------------------------------------


def _compilations() -> list[Compilation]:
    found = []
    for architecture in (90, 80):
        found.append(_compilation("search", search, architecture, 0))
        found.append(_compilation("sums", sums, architecture, 0))
        for width in _RESIDUAL[architecture]:
            found.append(_compilation(f"residual D{width}", residual, architecture, width))
    return found


def _compilation(name: str, kernel: Any, architecture: int, width: int) -> Compilation:
    constants: dict[str, Any]
    if kernel is search:
        m, n, k, *options = _SEARCH[architecture]
        constants = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "CODES": PART, "INTERPRET": False}
    elif kernel is residual:
        m, n, *options = _RESIDUAL[architecture][width]
        constants = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": width, "INTERPRET": False}
    else:
        options = [4, 2]
        constants = {"ROWS": _SUM_ROWS, "COLUMNS": _SUM_WIDTH}
    integers = ("code_ptr", "order_ptr", "ends_ptr")
    signature = {
        name: "constexpr" if name in constants
        else "i32" if not name.endswith("_ptr")
        else "*i64" if name in integers else "*fp32"
        for name in kernel.arg_names
    }  # fmt: skip
    return Compilation(
        name=f"nearest_code_{name} fp32 sm{architecture}",
        kernel=kernel,
        signature=signature,
        constants=constants,
        num_warps=options[0],
        num_stages=options[1],
        divisible=tuple(name for name in signature if name.endswith("_ptr") or name == "width"),
        architectures=(architecture,),
    )


COMPILATIONS = _compilations()
