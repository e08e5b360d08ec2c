"""The nearest row of a codebook for every vector, without the (N, K) matrix in memory; the residual
loop over several codebooks; sums of vectors by code.

Knows nothing of codecs or training. The expanded distance |c|^2 - 2 x.c is one matrix product per
chunk of rows (SoundStream, arXiv:2107.03312; cosine form: ViT-VQGAN, arXiv:2110.04627; sums by
code: VQ-VAE, arXiv:1711.00937)."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example

METRICS = ("euclidean", "cosine")
# Scores of one chunk: 16 MB of fp32. With 1 MB and K = 16,384 the product loses 2.3 times its
# speed to short rows; 64 MB would gain 8 % (measured on a CPU).
CHUNK_ELEMENTS = 1 << 22
_TRITON_RESIDUAL = 256  # the widest vector of the Triton form of residual_codes


@overload
def nearest_code(x: Tensor, codebook: Tensor, *, metric: str = ...) -> Tensor: ...
@overload
def nearest_code(
    x: Tensor, codebook: Tensor, *, metric: str = ..., distances: Literal[False]
) -> Tensor: ...
@overload
def nearest_code(
    x: Tensor, codebook: Tensor, *, metric: str = ..., distances: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@torch.no_grad()
def nearest_code(
    x: Tensor, codebook: Tensor, *, metric: str = "euclidean", distances: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Index of the nearest codebook row of every vector, and with `distances` how far it is.

    x: (N, D) float; codebook: (K, D) float. Returns codes (N,) int64, or (codes, squared distances
    (N,) in fp32). Products and sums in fp32, never tf32, under autocast too (fp64 for fp64 input):
    the index is that of exact arithmetic wherever the two best squared distances differ by more
    than 1e-6 of |x|^2 + |c|^2. Ties go to the lowest index. "cosine" compares directions: both
    sides are normalised, for the distances too. Deterministic; no gradients. ValueError, naming
    the argument, for wrong shapes, dtypes, devices or metric.
    """
    _check(x, codebook, metric)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        x, codebook = x.to(dtype), codebook.to(dtype)
        if metric == "cosine":
            codebook = torch.nn.functional.normalize(codebook, dim=-1)
            bias = torch.zeros(len(codebook), dtype=dtype, device=x.device)
        else:
            # Not centred first: that would round, and exact ties would no longer tie.
            bias = _bias(codebook)
        if dtype == torch.float32 and backend.pick("nearest_code", x) == "triton":
            from polyglyph.kernels.nearest_code_triton import nearest_code_triton

            codes = nearest_code_triton(x, codebook, bias)
        else:
            codes = _search(x, codebook.t(), bias)
        if not distances:
            return codes
        return codes, _distances(x, codebook, codes, metric)


@torch.no_grad()
def residual_codes(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of a residual quantizer: each codebook quantizes what the ones before it left.

    x: (N, D) float; codebooks: (Q, K, D) float, Q ≥ 1. Returns codes (N, Q) int64 and the sum of
    the chosen rows (N, D), in fp32 (fp64 for fp64 x). Every search is `nearest_code`'s Euclidean
    one, on the fp32 residual, with its promises. ValueError as there.
    """
    if codebooks.ndim != 3 or len(codebooks) == 0:
        raise ValueError(f"codebooks must be (Q, K, D), Q at least 1, got {tuple(codebooks.shape)}")
    _check(x, codebooks[0], "euclidean")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        left, codebooks = x.to(dtype), codebooks.to(dtype)
        fits = dtype == torch.float32 and x.shape[1] <= _TRITON_RESIDUAL
        if fits and backend.pick("nearest_code", x) == "triton":
            from polyglyph.kernels.nearest_code_triton import residual_codes_triton

            return residual_codes_triton(left, codebooks, _bias(codebooks))
        codes = []
        quantized = torch.zeros_like(left)
        for book in codebooks:
            codes.append(nearest_code(left, book))
            chosen = book[codes[-1]]
            left = left - chosen
            quantized += chosen
        return torch.stack(codes, dim=1), quantized


@torch.no_grad()
def ema_sums(x: Tensor, codes: Tensor, n_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors each code has and their sum: what running means of a codebook are fed with.

    x: (N, D) float; codes: (N,) integers in [0, n_codes). Returns counts (n_codes,) int64 and sums
    (n_codes, D) in fp32 (fp64 for fp64 x). Deterministic: by sorting, the rows of a code summed in
    the batch's order. ValueError for wrong shapes and codes out of range.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be float (N, D), got {x.dtype} {tuple(x.shape)}")
    if codes.shape != x.shape[:1] or codes.is_floating_point() or codes.device != x.device:
        raise ValueError(
            f"codes must be ({len(x)},) integers on {x.device}, got {codes.dtype} "
            f"{tuple(codes.shape)} on {codes.device}"
        )
    if len(codes) and not (int(codes.min()) >= 0 and int(codes.max()) < n_codes):
        raise ValueError(f"codes reach {int(codes.min())}..{int(codes.max())}, n_codes {n_codes}")
    codes = codes.long()
    if x.dtype != torch.float64 and backend.pick("nearest_code", x) == "triton":
        from polyglyph.kernels.nearest_code_triton import ema_sums_triton

        return ema_sums_triton(x, codes, n_codes)
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    sums = wide.new_zeros(n_codes, x.shape[1])
    counts = torch.bincount(codes, minlength=n_codes)
    if x.device.type == "cpu":  # where index_add goes from row to row
        return counts, sums.index_add_(0, codes, wide)
    by_code = wide[torch.argsort(codes, stable=True)]
    return counts, torch.segment_reduce(by_code, "sum", lengths=counts, initial=0)


def _bias(codebook: Tensor) -> Tensor:
    """-|c|^2 / 2 of every row."""
    return codebook.square().sum(-1).mul_(-0.5)


def _distances(x: Tensor, codebook: Tensor, codes: Tensor, metric: str) -> Tensor:
    """Squared distances (N,), from differences: the expanded form cancels where they are small."""
    found = torch.empty(len(x), dtype=x.dtype, device=x.device)
    rows = max(1, CHUNK_ELEMENTS // max(1, x.shape[1]))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        if metric == "cosine":
            part = torch.nn.functional.normalize(part, dim=-1)
        chosen = codebook[codes[start : start + rows]]
        found[start : start + rows] = (part - chosen).square_().sum(-1)
    return found


def _search(x: Tensor, codebook_t: Tensor, bias: Tensor) -> Tensor:
    """argmax over K of x @ codebook_t + bias, by chunks of rows; (N,) int64."""
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    rows = max(1, CHUNK_ELEMENTS // codebook_t.shape[1])
    scores = x.new_empty(min(rows, len(x)), codebook_t.shape[1])
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        out = scores[: len(part)]
        torch.addmm(bias, part, codebook_t, out=out)
        torch.argmax(out, dim=-1, out=indices[start : start + rows])
    return indices


def _check(x: Tensor, codebook: Tensor, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if x.ndim != 2 or codebook.ndim != 2 or x.shape[1] != codebook.shape[1]:
        raise ValueError(
            "expected x (N, D) and codebook (K, D) of one width, "
            f"got {tuple(x.shape)} and {tuple(codebook.shape)}"
        )
    if len(codebook) == 0:
        raise ValueError("codebook has no rows")
    if x.device != codebook.device:
        raise ValueError(f"x is on {x.device}, codebook on {codebook.device}; move one")
    if not (x.is_floating_point() and codebook.is_floating_point()):
        raise ValueError(f"x and codebook must be float, got {x.dtype} and {codebook.dtype}")


# --- what the generic tests and the benchmark run ----------------------------------------------

_SHAPES = {  # (N, K, D)
    "test": ((1, 1, 4), (17, 8300, 7), (127, 300, 32), (129, 65, 100)),
    "bench": ((65_536, 32_768, 32), (65_536, 16_384, 256), (270_000, 1024, 128)),
    "cpu": ((65_536, 16_384, 256),),
}
_N_CODEBOOKS = {"test": 3, "bench": 8, "cpu": 0}


def examples(size: str, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Example]:
    """Calls at "test", "bench" or "cpu" size: both metrics, the residual loop, sums by code."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = {"generator": generator, "device": device}
    found = []
    for n, k, d in _SHAPES[size]:
        name = f"{n}x{d} K{k}"
        x = torch.randn(n, d, **draw).to(dtype)
        book = torch.randn(k, d, **draw).to(dtype)
        flops = 2.0 * n * k * d
        n_bytes = float((x.numel() + book.numel()) * 4 + 8 * n)
        for metric in METRICS:
            call, plain = _example(metric)
            inputs = {"x": x, "codebook": book}
            label = f"{metric} {name}"
            found.append(Example(label, call, inputs, plain, (), flops, n_bytes, exact=True))
        depth = _N_CODEBOOKS[size]
        if depth and d <= _TRITON_RESIDUAL and k <= 1024:
            books = (
                torch.randn(depth, k, d, **draw)
                * 0.7 ** torch.arange(depth, device=device)[:, None, None]
            )
            inputs = {"x": x, "codebooks": books.to(dtype)}
            rest = ((), depth * flops, n_bytes)
            found.append(
                Example(f"residual Q{depth} {name}", residual_codes, inputs, _residual_plain, *rest,
                        exact=True)
            )  # fmt: skip
            codes = torch.randint(0, k, (n,), **draw)
            call = _example_sums(codes, k)
            found.append(Example(f"sums {name}", call, {"x": x}, call, exact=True))
    return found


def _example(metric: str) -> tuple[Any, Any]:
    def call(x: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
        return nearest_code(x, codebook, metric=metric, distances=True)

    def plain(x: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
        if metric == "cosine":
            x, codebook = (torch.nn.functional.normalize(t, dim=-1) for t in (x, codebook))
        smallest = (x[:, None] - codebook).square().sum(-1).min(1)
        return smallest.indices, smallest.values

    return call, plain


def _residual_plain(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    left, codes = x, []
    for book in codebooks:
        codes.append((left[:, None] - book).square().sum(-1).argmin(1))
        left = left - book[codes[-1]]
    return torch.stack(codes, 1), x - left


def _example_sums(codes: Tensor, n_codes: int) -> Any:
    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        return ema_sums(x, codes, n_codes)

    return call
