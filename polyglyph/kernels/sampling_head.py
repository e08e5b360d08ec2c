"""The sliced head for decoding: logits of every row over the ids that may follow it.

Where the grammar allows an image code only the image rows of the output matrix are read; rows of
a batch stand at different slots. Guidance (arXiv:2207.12598) is mixed on the slice. Temperature,
top-k and top-p are not: they work on the result. Knows ids and slots only."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example


@dataclass(frozen=True)
class HeadSlice:
    """The logits of the rows of a batch that share a slot."""

    rows: tuple[int, ...]  # indices into the batch, ascending
    ranges: tuple[tuple[int, int], ...]  # of the columns' ids, ascending
    logits: Tensor  # (b, n) fp32 (fp64 for an fp64 head)

    def ids_of(self, columns: Sequence[int]) -> list[int]:
        """The ids of columns of `logits`."""
        ends = list(accumulate(stop - start for start, stop in self.ranges))
        return [self.ranges[bisect(ends, c)][1] + c - ends[bisect(ends, c)] for c in columns]


@dataclass(frozen=True)
class Group:
    """The rows that share a slot, and what the slot allows."""

    rows: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]  # half-open, ascending, neither empty nor touching
    guidance: float  # 1: none

    @property
    def n_columns(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


def sampling_head(
    hidden: Tensor,
    weight: Tensor,
    slots: Tensor | np.ndarray,
    slot_table: Tensor | np.ndarray,
    guidance: Sequence[float] | None = None,
) -> list[HeadSlice]:
    """hidden @ weight[ids of the row's slot].T in fp32, rows of one slot together.

    hidden (B, D), weight (V, D), slots (B,) rows of slot_table (n_slots, 4, 2): sorted half-open
    id ranges padded with (0, 0); both best on the host. Every row is in one of the slices, which
    come in the order of their first rows.

    guidance, one number per slot: hidden is (2 B, D) with the unconditional rows behind, and rows
    of a slot whose g isn't 1 get log p_u + g (log p_c - log p_u), both normalised over the slice.
    A slot with g = 1 gets the plain logits and doesn't read its unconditional rows.

    torch rounds logits to the head's dtype first, the Triton form doesn't; neither has atomics.
    No gradient in the Triton form. ValueError names the argument that is wrong.
    """
    groups = _group(hidden, weight, slots, slot_table, guidance)
    n_rows = sum(len(group.rows) for group in groups)
    # fp64, of which the Triton form knows nothing, stays with torch.
    if weight.dtype != torch.float64 and backend.pick("sampling_head", hidden) == "triton":
        from polyglyph.kernels.sampling_head_triton import sampling_head_triton

        logits = sampling_head_triton(hidden, weight, groups, n_rows)
    else:
        logits = [_logits(hidden, weight, group, n_rows) for group in groups]
    return [
        HeadSlice(group.rows, group.ranges, part)
        for group, part in zip(groups, logits, strict=True)
    ]


def mix_guidance(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598) on slices of logits (b, n).

    log p = log p_u + guidance (log p_c - log p_u), both normalised over the slice.
    """
    conditional, unconditional = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    return torch.lerp(unconditional, conditional, guidance)


def _logits(hidden: Tensor, weight: Tensor, group: Group, n_rows: int) -> Tensor:
    """torch's form of one group: a product per range, so that no row of the head is copied
    (a third to four fifths of the time, the more the larger the slot)."""
    rows = list(group.rows)
    if group.guidance != 1.0:
        rows += [row + n_rows for row in rows]
    part = hidden if len(rows) == len(hidden) else hidden[rows]
    part = part.to(weight.dtype)
    pieces = [linear(part, weight[start:stop]) for start, stop in group.ranges]
    logits = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
    if logits.dtype != torch.float64:
        logits = logits.float()
    if group.guidance != 1.0:
        conditional, unconditional = logits.split(len(group.rows))
        logits = mix_guidance(conditional, unconditional, group.guidance)
    return logits


def _group(
    hidden: Tensor,
    weight: Tensor,
    slots: Tensor | np.ndarray,
    slot_table: Tensor | np.ndarray,
    guidance: Sequence[float] | None,
) -> list[Group]:
    _check_tensors(hidden, weight)
    table, places = _on_host(slot_table), _on_host(slots)
    if table.ndim != 3 or table.shape[2] != 2:
        raise ValueError(f"slot_table must be (n_slots, 4, 2), got {table.shape}")
    streams = 1 if guidance is None else 2
    if places.ndim != 1 or len(places) * streams != len(hidden):
        raise ValueError(
            f"slots must be ({len(hidden) // streams},) for hidden of {len(hidden)} rows"
            f"{' with guidance' if streams == 2 else ''}, got {places.shape}"
        )
    if guidance is not None and len(guidance) != len(table):
        raise ValueError(f"guidance must have a number per slot, {len(table)}, got {len(guidance)}")
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(places.tolist()):
        if not 0 <= slot < len(table):
            raise ValueError(f"slots: row {row} names slot {slot} of {len(table)}")
        rows.setdefault(slot, []).append(row)
    groups = []
    for slot, members in rows.items():
        ranges = _merge(table[slot].tolist())
        if not ranges:
            raise ValueError(f"slot_table: slot {slot} of row {members[0]} holds no id")
        if ranges[0][0] < 0 or ranges[-1][1] > len(weight):
            raise ValueError(
                f"slot_table: slot {slot} spans ids {ranges[0][0]} to {ranges[-1][1] - 1}, "
                f"the head has {len(weight)}"
            )
        strength = 1.0 if guidance is None else float(guidance[slot])
        groups.append(Group(tuple(members), ranges, strength))
    return groups


def _merge(ranges: list[list[int]]) -> tuple[tuple[int, int], ...]:
    """Without the padding, neighbours joined: fewer products. ValueError when not ascending."""
    merged: list[tuple[int, int]] = []
    for start, stop in ranges:
        if stop <= start:
            continue
        if merged and merged[-1][1] > start:
            raise ValueError(f"slot_table: ranges must ascend without overlap, got {ranges}")
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _on_host(x: Tensor | np.ndarray) -> np.ndarray:
    return x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _check_tensors(hidden: Tensor, weight: Tensor) -> None:
    if hidden.ndim != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be (B, D) floats, got {tuple(hidden.shape)} {hidden.dtype}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1] or not weight.is_floating_point():
        raise ValueError(
            f"weight must be (V, {hidden.shape[1]}) floats as hidden {tuple(hidden.shape)} has it, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
    if weight.device != hidden.device:
        raise ValueError(f"weight is on {weight.device}, hidden on {hidden.device}; move one")


# --- what the generic tests and the benchmark run -----------------------------------------------


def _definition(
    hidden: Tensor, weight: Tensor, slots: Tensor, slot_table: Tensor, guidance: Any = None
) -> tuple[Tensor, ...]:
    """The full head with -inf outside the slot, then the slot's columns."""
    full = hidden @ weight.t()
    allowed = torch.zeros(len(slot_table), len(weight), dtype=torch.bool, device=weight.device)
    for slot, ranges in enumerate(slot_table.tolist()):
        for start, stop in ranges:
            allowed[slot, start:stop] = True
    slices = []
    for slot in dict.fromkeys(slots.tolist()):
        rows = (slots == slot).nonzero().squeeze(1)
        masked = full.masked_fill(~allowed[slot], -torch.inf)
        logits = masked[rows]
        if guidance is not None and guidance[slot] != 1.0:
            log_p = masked.log_softmax(1).masked_fill(~allowed[slot], 0.0)
            other = log_p[rows + len(slots)]
            logits = other + guidance[slot] * (log_p[rows] - other)
        slices.append(logits[:, allowed[slot]])
    return tuple(slices)


def _call(**inputs: Any) -> tuple[Tensor, ...]:
    return tuple(piece.logits for piece in sampling_head(**inputs))


_TABLE = (
    ((0, 129), (0, 0), (0, 0), (0, 0)),
    ((0, 1), (3, 20), (130, 257), (300, 301)),
    ((129, 160), (0, 0), (0, 0), (0, 0)),
)
# name, V, D, slot of each row, slot table, guidance
_TEST = (
    ("one slot", 257, 48, (0, 0, 0), _TABLE[:1], None),
    ("three slots of up to four ranges", 301, 127, (1, 0, 2, 1, 1), _TABLE, None),
    ("guidance in some", 301, 65, (1, 0, 0, 1, 2), _TABLE, (0.0, 2.5, 1.0)),
    ("20 rows", 301, 17, (1,) * 20, _TABLE, (1.0, 1.5, 1.0)),
)
_VISUAL = (((7, 8), (151_552, 184_320), (0, 0), (0, 0)),)
_IMAGE = (((5, 6), (9_000, 17_192), (0, 0), (0, 0)),)
_CPU = (("V 60,000 D512 B4, a slot of 8,193", 60_000, 512, (0,) * 4, _IMAGE, None),)
_BENCH = tuple(
    (f"V 184,320 D4096 B{n} visual{', guided' if g else ''}", 184_320, 4096, (0,) * n, _VISUAL, g)
    for n, g in ((1, None), (8, None), (8, (3.0,)))
)
_SIZES: dict[str, tuple[Any, ...]] = {"test": _TEST, "cpu": _CPU, "bench": _BENCH}


def examples(size: str, dtype: torch.dtype, device: torch.device, seed: int) -> list[Example]:
    generator = torch.Generator(device).manual_seed(seed)
    made = []
    for name, n_ids, width, slots, table, guidance in _SIZES[size]:
        n_rows = len(slots) * (1 if guidance is None else 2)
        shapes = {"hidden": (n_rows, width), "weight": (n_ids, width)}
        inputs: dict[str, Any] = {
            key: torch.randn(shape, generator=generator, dtype=dtype, device=device)
            for key, shape in shapes.items()
        }
        inputs["weight"] *= width**-0.5
        inputs |= {"slots": torch.tensor(slots), "slot_table": torch.tensor(table)}
        inputs["guidance"] = guidance
        n_columns = [sum(max(0, stop - start) for start, stop in ranges) for ranges in table]
        made.append(
            Example(
                name, _call, inputs, _definition,
                n_flops=2.0 * width * sum(n_columns[slot] for slot in slots) * n_rows / len(slots),
                n_bytes=float(width * sum(n_columns[s] for s in set(slots)) * dtype.itemsize),
            )
        )  # fmt: skip
    return made
