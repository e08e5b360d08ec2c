"""Attention on a GPU: the tiles' sizes, the launches, and the operators torch.compile sees.

Sizes were chosen without a GPU, by what the compiler reports for sm_80 and sm_90 (no spills on
sm_90, by triton 3.6 and by 3.9; shared memory); their speed is unmeasured. Knows the kernels,
nothing of masks or models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.attention_tiles_triton import (
    delta_kernel,
    forward_kernel,
    keys_kernel,
    queries_kernel,
)
from polyglyph.kernels.contract import Compilation

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile, and how many warps and pipeline stages work on it."""

    m: int
    n: int
    warps: int
    stages: int


# fp32 is multiplied without tensor cores, whose sums take more registers: small tiles.
_FP32 = {
    "forward": {
        (32, True): Tile(64, 32, 8, 1),
        (64, True): Tile(64, 32, 8, 1),
        (128, True): Tile(32, 32, 8, 1),
    },
    "keys": {
        (32, True): Tile(32, 32, 8, 1),
        (64, True): Tile(32, 32, 8, 1),
        (128, True): Tile(16, 32, 8, 1),
    },
    "queries": {
        (32, True): Tile(32, 32, 8, 1),
        (64, True): Tile(32, 32, 8, 1),
        (128, True): Tile(32, 32, 8, 1),
    },
}
# Architecture -> kernel -> (head size rounded up, fp32 or not) -> tile. 80's are small, for the
# 99 KiB of shared memory of 86, 89 and 120. On 90 the sums of eight warps want 128 rows: with 64
# half of the warps would do the other half's work again.
TILES: dict[int | tuple[int, str], dict[str, dict[tuple[int, bool], Tile]]] = {
    80: {
        "forward": {
            **_FP32["forward"],
            (32, False): Tile(128, 64, 4, 3),
            (64, False): Tile(128, 64, 4, 3),
            (128, False): Tile(128, 64, 8, 2),
            (256, False): Tile(64, 32, 4, 2),
        },
        "keys": {
            **_FP32["keys"],
            (32, False): Tile(64, 128, 8, 2),
            (64, False): Tile(32, 128, 8, 2),
            (128, False): Tile(32, 128, 8, 2),
            (256, False): Tile(32, 64, 4, 1),
        },
        "queries": {
            **_FP32["queries"],
            (32, False): Tile(128, 64, 8, 2),
            (64, False): Tile(128, 64, 8, 2),
            (128, False): Tile(64, 64, 4, 2),
            (256, False): Tile(64, 32, 4, 1),
        },
    },
    90: {
        "forward": {
            **_FP32["forward"],
            (32, False): Tile(128, 64, 4, 3),
            (64, False): Tile(128, 128, 8, 2),
            (128, False): Tile(128, 64, 8, 3),
            (256, False): Tile(128, 32, 8, 2),
        },
        "keys": {
            **_FP32["keys"],
            (32, False): Tile(64, 128, 8, 2),
            (64, False): Tile(64, 128, 8, 2),
            (128, False): Tile(32, 128, 8, 2),
            (256, False): Tile(16, 128, 8, 2),
        },
        "queries": {
            **_FP32["queries"],
            (32, False): Tile(128, 64, 4, 3),
            (64, False): Tile(128, 128, 8, 2),
            (128, False): Tile(128, 64, 8, 2),
            (256, False): Tile(128, 32, 8, 1),
        },
    },
}
# Where triton 3.6 spills in 90's tiles: 32 bytes (keys, heads of 128), 28 and 428, the last for
# want of a pipeline, with which 3.9 in turn keeps a word on the stack.
TILES[90, backend.OLD] = {
    "forward": TILES[90]["forward"],
    "keys": TILES[90]["keys"]
    | {(128, False): Tile(16, 128, 8, 2), (64, False): Tile(32, 128, 8, 2)},
    "queries": TILES[90]["queries"] | {(256, False): Tile(128, 32, 8, 2)},
}
SMALLEST = 32
INTERPRETED = {"forward": Tile(64, 32, 4, 1), "keys": Tile(32, 64, 4, 1)}


def tile_of(
    kernel: str, d_head: int, dtype: torch.dtype, architecture: int, softcap: bool = False
) -> Tile:
    """The tile of "forward", "keys" or "queries"; architecture 80, 90, or 0: the interpreter."""
    if not architecture:
        return INTERPRETED.get(kernel, INTERPRETED["forward"])
    size = max(SMALLEST, triton.next_power_of_2(d_head)), dtype == torch.float32
    tile = backend.tuned(TILES, architecture)[kernel][size]
    if softcap and kernel == "keys" and size != (32, True):
        # The slopes take as many registers as the weights. In fp32, 16 rows of 32 are no better.
        tile = replace(tile, m=max(16, tile.m // 2))
    if softcap and kernel == "forward" and size == (128, True):
        tile = replace(tile, n=16)  # 32 keys spill 24 bytes
    return tile


def _architecture(device: torch.device) -> int:
    return 0 if INTERPRET else backend.architecture(device)


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of `attention`; bounds: `Packing.bounds`, None: causal over whole rows."""
    window = q.shape[2] if window is None else min(window, q.shape[2])
    if bounds is None:
        bounds = _causal_bounds(q.shape[0], q.shape[2], q.device)
    out, lse = forward_op(q, k, v, bounds, scale, window, softcap or 0.0)
    return out, lse


@torch.library.custom_op("polyglyph::attention", mutates_args=())
@backend.on_its_device
def forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    q, k, v = _rows(q), _rows(k), _rows(v)
    out, lse = _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    batch, n_heads, length, d_head = q.shape
    tile = tile_of("forward", d_head, q.dtype, _architecture(q.device), softcap > 0)
    n_tiles = triton.cdiv(length, tile.m)
    forward_kernel[(n_tiles * batch * n_heads,)](
        *(q, k, v, bounds, out, lse, *_strides(q, k, v)),
        *(n_heads, n_heads // k.shape[1], batch * length, length, n_tiles),
        *(window, scale, softcap),
        **_options(tile, d_head),
        **_variant(softcap),
    )
    return out, lse


@forward_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("polyglyph::attention_backward", mutates_args=())
@backend.on_its_device
def backward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    bounds: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, out, d_out = _rows(q), _rows(k), _rows(v), _rows(out), _rows(d_out)
    lse, d_lse = lse.contiguous(), d_lse.contiguous()
    dq, dk, dv = _empty(q), _empty(k), _empty(v)
    binary, delta = torch.empty_like(lse), torch.empty_like(lse)
    batch, n_heads, length, d_head = q.shape
    n_kv_heads, architecture = k.shape[1], _architecture(q.device)
    strides, sizes = _strides(q, k, v, d_out), (n_heads // n_kv_heads, batch * length, length)
    variant, rule = _variant(softcap), (window, scale, softcap)
    tile = _delta_tile(d_head)
    n_tiles = triton.cdiv(length, tile.m)
    delta_kernel[(n_tiles * batch * n_heads,)](
        *(out, d_out, lse, d_lse, binary, delta, *_strides(out, d_out)),
        *(n_heads, length, n_tiles),
        **_options(tile, d_head),
    )
    tile = tile_of("keys", d_head, q.dtype, architecture, softcap > 0)
    n_tiles = triton.cdiv(length, tile.n)
    for with_k, with_v in _halves(d_head):
        keys_kernel[(n_tiles * batch * n_kv_heads,)](
            *(q, k, v, d_out, bounds, binary, delta, dk, dv, *strides),
            *(n_kv_heads, *sizes, n_tiles, *rule),
            **_options(tile, d_head),
            **variant,
            WITH_K=with_k,
            WITH_V=with_v,
        )
    tile = tile_of("queries", d_head, q.dtype, architecture)
    n_tiles = triton.cdiv(length, tile.m)
    queries_kernel[(n_tiles * batch * n_heads,)](
        *(q, k, v, d_out, bounds, binary, delta, dq, *strides),
        *(n_heads, *sizes, n_tiles, *rule),
        **_options(tile, d_head),
        **variant,
    )
    return dq, dk, dv


@backward_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q), _empty(k), _empty(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bounds, *rule = inputs
    ctx.save_for_backward(q, k, v, *output, bounds)
    ctx.rule = rule


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, bounds = ctx.saved_tensors
    grads = backward_op(q, k, v, out, lse, d_out, d_lse, bounds, *ctx.rule)
    return *grads, None, None, None, None


forward_op.register_autograd(_differentiate, setup_context=_save)


def _causal_bounds(batch: int, length: int, device: torch.device) -> Tensor:
    """`Packing.bounds` of whole rows. Kernels that know the diagonal without reading it spilled 48
    bytes where those that read do not (dK and dV, heads of 128)."""
    place = torch.arange(length, dtype=torch.int32, device=device)
    rows = torch.stack(
        [torch.zeros_like(place), place, torch.full_like(place, length), place, place]
    )
    return rows.unsqueeze(1).expand(5, batch, length).contiguous()


def _rows(x: Tensor) -> Tensor:
    """x itself where its last dimension is dense and a tile's offsets are small."""
    return x if x.stride(3) == 1 and x.stride(2) < 1 << 23 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _empty(x: Tensor) -> Tensor:
    """Like x (B, N, T, K), laid out (B, T, N, K), which the next product reads as it lies."""
    batch, n_heads, length, d_head = x.shape
    return x.new_empty(batch, length, n_heads, d_head).transpose(1, 2)


def _delta_tile(d_head: int) -> Tile:
    return Tile(32 if d_head > 128 else 64, 0, 4, 1)


def _halves(d_head: int) -> list[tuple[bool, bool]]:
    """(with dK, with dV) of each launch: wide heads take two, at five products instead of four."""
    return [(True, True)] if d_head <= 128 else [(True, False), (False, True)]


def _options(tile: Tile, d_head: int) -> dict[str, Any]:
    sizes = {"D": d_head, "WIDTH": max(16, triton.next_power_of_2(d_head)), "BLOCK_M": tile.m}
    if tile.n:
        sizes["BLOCK_N"] = tile.n
    return {**sizes, "num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def _variant(softcap: float) -> dict[str, bool]:
    return {"SOFTCAP": softcap > 0, "INTERPRETED": INTERPRET}


def _compilation(
    name: str,
    kernel: Any,
    kind: str,
    d_head: int,
    tile: Tile,
    constants: dict[str, Any],
    architectures: tuple[int, ...] = (80, 90),
) -> Compilation:
    """`kernel` as it is launched for 16 heads over 4, laid out (B, T, N, K)."""
    options = _options(tile, d_head)
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages", "enable_fp_fusion")}
    heads = {"STRIDE_Q": 16, "STRIDE_K": 4, "STRIDE_V": 4, "STRIDE_O": 16, "STRIDE_D": 16}
    constants = options | {n: x * d_head for n, x in heads.items()} | constants
    constants = {n: x for n, x in constants.items() if n in kernel.arg_names}
    types = {"bounds": "*i32", "scale": "fp32", "softcap": "fp32"}
    types |= dict.fromkeys(("lse", "d_lse", "binary", "delta"), "*fp32")
    types |= dict.fromkeys(("q", "k", "v", "out", "d_out", "dq", "dk", "dv"), f"*{kind}")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {n: types.get(n, "i32") for n in kernel.arg_names}
    return Compilation(
        name=f"attention {name} d{d_head} {kind} sm_{'_'.join(map(str, architectures))}",
        kernel=kernel,
        signature=signature,
        constants=constants,
        divisible=tuple(n for n, t in signature.items() if t[0] == "*" or "stride" in n),
        architectures=architectures,
        # Products of fp32 don't go to the tensor cores.
        opcodes={} if kind == "fp32" or kernel is delta_kernel else {90: ("HGMMA",), 80: ("HMMA",)},
        **launch,
    )


def _forms(kind: str, d_head: int, architecture: int, cap: bool = False) -> Iterator[Compilation]:
    """The forward and both backward kernels of one dtype and head size."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind]
    variant: dict[str, Any] = {"SOFTCAP": cap, "INTERPRETED": False}
    kernels = {"forward": forward_kernel, "keys": keys_kernel, "queries": queries_kernel}
    for name, kernel in kernels.items():
        tile = tile_of(name, d_head, dtype, architecture, cap)
        for with_k, with_v in _halves(d_head) if name == "keys" else [(True, True)]:
            part = name + ("" if with_k == with_v else " dK" if with_k else " dV")
            part += " softcap" if cap else ""
            constants = variant | {"WITH_K": with_k, "WITH_V": with_v}
            yield _compilation(part, kernel, kind, d_head, tile, constants, (architecture,))


def _compilations() -> Iterator[Compilation]:
    """Every tile, with a softcap too where it costs registers (sm_90); fp16, whose registers are
    those of bf16, with heads of 128."""
    for architecture in (90, 80):
        for d_head in (128, 64, 256, 32):
            yield from _forms("bf16", d_head, architecture)
    for d_head in (128, 256):
        yield _compilation("delta", delta_kernel, "bf16", d_head, _delta_tile(d_head), {})
    for d_head in (128, 64, 256, 32):
        yield from _forms("bf16", d_head, 90, cap=True)
    yield from _forms("fp16", 128, 90)
    for architecture in (90, 80):
        for d_head in (128, 64, 32):
            yield from _forms("fp32", d_head, architecture)
    for d_head in (128, 64, 32):
        yield from _forms("fp32", d_head, 90, cap=True)


COMPILATIONS = list(_compilations())
