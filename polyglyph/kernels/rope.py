"""Rotary position embedding (arXiv:2104.09864), halves rotated against each other as in Llama.

In one dimension, or with the pairs of a head shared out among the axes of a grid or a clip (time,
height, width; arXiv:2409.12191). Positions come as tables of cosines and sines; knows nothing of
attention or documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example

TRITON_WIDTH = 512  # the widest head of the Triton form
_MAX_AXES = 3


def rope_tables(
    length: int, d_head: int, theta: float, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (length, d_head / 2) fp32. Angles are formed in fp64: position times
    frequency in fp32 is off by 1e-3 at position 10,000."""
    if d_head % 2:
        raise ValueError(f"d_head must be even, got {d_head}")
    exponent = torch.arange(0, d_head, 2, dtype=torch.float64, device=device) / d_head
    positions = torch.arange(length, dtype=torch.float64, device=device)
    angles = torch.outer(positions, theta**-exponent)
    return angles.cos().float(), angles.sin().float()


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    sections: Sequence[int] | None = None,
) -> Tensor:
    """Rotate x (B, N, T, K): (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of K.

    Without positions, cos and sin are those of each step: (T, K/2) or (B, T, K/2). With them they
    are tables (L, K/2), and positions int (T,) or (B, T) say which row a step reads. With sections
    (at most three numbers of pairs that add up to K/2, an axis each) positions are (A, T) or
    (A, B, T): the first sections[0] pairs turn by the first axis' position, and so on.

    Computed in fp32 (fp64 for fp64), returned in x's dtype. Deterministic; gradients by x only.
    ValueError for wrong shapes and dtypes, and for positions outside the tables; the Triton form,
    which would have to wait for the device to see them, gives NaN there.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be (B, N, T, K), got {tuple(x.shape)}")
    check_angles((x.shape[0], x.shape[2], x.shape[3]), x, cos, sin, positions, sections)
    if runs_triton("rope", x, x.shape[3]):
        from polyglyph.kernels.rope_triton import rope_triton

        return rope_triton(x, cos, sin, positions, sections)
    cos, sin = widen(*at_positions(cos, sin, positions, sections), x.dtype)
    return torch.addcmul(wide(x) * cos, swap(wide(x)), sin).to(x.dtype)


def at_positions(
    cos: Tensor, sin: Tensor, positions: Tensor | None, sections: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """The tables' rows at the positions, (T, K/2) or (B, T, K/2); arguments as in `rope`."""
    if positions is None:
        return cos, sin
    if not positions.is_cuda and positions.numel():  # a look at the values costs a GPU a stop
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= cos.shape[0]:
            raise ValueError(
                f"positions must lie in 0..{cos.shape[0] - 1}, the tables' rows, got {low}..{high}"
            )
    if not sections:
        return cos[positions], sin[positions]
    return tuple(
        torch.cat(
            [part[at] for part, at in zip(table.split(list(sections), -1), positions, strict=True)],
            -1,
        )
        for table in (cos, sin)
    )


def runs_triton(kernel: str, x: Tensor, width: int) -> bool:
    """fp64, of which the Triton form knows nothing, and very wide heads stay with torch."""
    fits = x.dtype != torch.float64 and width <= TRITON_WIDTH
    return fits and backend.pick(kernel, x) == "triton"


def check_angles(
    sizes: tuple[int, int, int],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    sections: Sequence[int] | None,
) -> None:
    """ValueError where the arguments of `rope` or `heads` don't fit (B, T, K) = sizes."""
    batch, length, width = sizes
    if not x.is_floating_point():
        raise ValueError(f"expected a floating point tensor to rotate, got {x.dtype}")
    if cos.shape != sin.shape or cos.device != x.device or sin.device != x.device:
        raise ValueError(
            f"cos and sin must have one shape on {x.device}, got {tuple(cos.shape)} on "
            f"{cos.device} and {tuple(sin.shape)} on {sin.device}"
        )
    if positions is not None:
        _check_positions(sizes, x, cos, positions, sections)
        return
    if sections:
        raise ValueError("sections need positions, a row of them per axis")
    fits = cos.shape in ((length, width // 2), (batch, length, width // 2), (1, length, width // 2))
    if width % 2 or not fits:
        raise ValueError(
            f"expected cos and sin (T, K/2) or (B, T, K/2) for T = {length}, K = {width}, "
            f"got {tuple(cos.shape)}"
        )


def _check_positions(
    sizes: tuple[int, int, int],
    x: Tensor,
    cos: Tensor,
    positions: Tensor,
    sections: Sequence[int] | None,
) -> None:
    batch, length, width = sizes
    if width % 2 or cos.ndim != 2 or cos.shape[1] != width // 2:
        raise ValueError(
            f"with positions, cos and sin must be (L, K/2) for K = {width}, got {tuple(cos.shape)}"
        )
    if positions.dtype not in (torch.int32, torch.int64) or positions.device != x.device:
        raise ValueError(
            f"positions must be int32 or int64 on {x.device}, got {positions.dtype} "
            f"on {positions.device}"
        )
    axes: tuple[int, ...] = ()
    if sections:
        if len(sections) > _MAX_AXES or sum(sections) != width // 2 or min(sections) < 0:
            raise ValueError(
                f"sections must be at most {_MAX_AXES} numbers of pairs that add up to K/2 = "
                f"{width // 2}, got {tuple(sections)}"
            )
        axes = (len(sections),)
    if positions.shape not in ((*axes, length), (*axes, batch, length)):
        raise ValueError(
            f"positions must be {(*axes, length)} or {(*axes, batch, length)}, "
            f"got {tuple(positions.shape)}"
        )


def swap(x: Tensor) -> Tensor:
    """The two halves of the last axis exchanged."""
    return x.roll(x.shape[-1] // 2, -1)


def widen(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tables over the whole head, the sign in the sine: (T, K) or (B, 1, T, K)."""
    tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = (table.to(wide) for table in tables)
    return (cos, sin) if cos.ndim == 2 else (cos.unsqueeze(1), sin.unsqueeze(1))


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# --- what the generic tests and the benchmark run --------------------------------------------

_SHAPES = {
    "test": ((1, 1, 1, 2), (1, 3, 17, 6), (2, 9, 127, 10)),
    "bench": ((4, 32, 4096, 128), (16, 16, 1024, 64)),
    "cpu": ((4, 4, 1024, 64),),
}


def examples(size: str, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Example]:
    """Calls at "test", "bench" or "cpu" size: by step, by position, and by three axes."""
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    for shape in _SHAPES[size]:
        (batch, _, length, width), half = shape, shape[3] // 2
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        cos, sin = rope_tables(length + 5, width, 10_000.0, device)
        drawn = {"generator": generator, "device": device}
        rows = torch.randint(length + 5, (batch, length), **drawn)
        axes = torch.randint(length + 5, (3, batch, length), **drawn)
        sections = (half - 2 * (half // 3), half // 3, half // 3)
        forms: dict[str, dict[str, Any]] = {
            "": {"cos": cos[:length], "sin": sin[:length]},
            " positions": {"cos": cos, "sin": sin, "positions": rows},
            " axes": {"cos": cos, "sin": sin, "positions": axes, "sections": sections},
        }
        name = "x".join(map(str, shape))
        n_bytes = 2.0 * x.numel() * x.element_size()
        found += [
            Example(name + form, rope, {"x": x, **inputs}, _plain, ("x",), n_bytes=n_bytes)
            for form, inputs in forms.items()
        ]
    return found


def _plain(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    sections: Sequence[int] | None = None,
) -> Tensor:
    """Complex numbers, turned pair by pair."""
    turn = torch.complex(cos.double(), sin.double())
    if positions is not None:
        rows = positions if sections else positions[None]
        turns = turn.split(list(sections or (turn.shape[-1],)), -1)
        turn = torch.cat([t[at] for t, at in zip(turns, rows, strict=True)], -1)
    turn = turn if turn.ndim == 2 else turn[:, None]
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)
