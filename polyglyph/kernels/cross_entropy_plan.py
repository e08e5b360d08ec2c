"""Which rows of the head each position of a cross-entropy reads, and in what order they go.

Positions that carry loss are sorted so that those of one slice are neighbours; a slice is a slot's
id ranges, or all ids. Checks what comes in. Knows nothing of logits or gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100
Ranges = tuple[tuple[int, int], ...]  # sorted half-open id ranges, never empty ones


@dataclass(frozen=True)
class Plan:
    """The positions that carry loss, sorted so that those of one head slice are neighbours."""

    order: Tensor  # (n,) positions
    targets: Tensor  # (n,) ids
    slots: Tensor  # (n,)
    weights: Tensor  # (n,) fp32
    groups: list[tuple[int, int, Ranges]]  # begin and end in `order`, the slice's ranges


def make_plan(
    targets: Tensor,
    slots: Tensor,
    table: Tensor,
    weights: Tensor | None,
    vocabulary_size: int,
    full_slots: Iterable[int] | Tensor,
) -> Plan:
    known = targets != IGNORE
    slots = slots.long().where(known, 0)  # padding may name any slot
    _check_slots(slots, table, vocabulary_size)
    starts, stops = table[..., 0], table[..., 1]
    sizes = (stops - starts).clamp_min(0).sum(1)  # (n_slots,)
    target = targets.long().unsqueeze(1)
    inside = ((target >= starts[slots]) & (target < stops[slots])).any(1)
    _check_targets(known & ~inside, targets, slots, table)
    active = known & (sizes[slots] > 1)
    if weights is None:
        weights = torch.ones(len(targets), device=targets.device)
    weights = weights.detach().to(torch.float32)
    active &= weights != 0

    n_slots = len(table)
    key = torch.where(_as_mask(full_slots, n_slots, slots.device)[slots], n_slots, slots)
    chosen = active.nonzero().squeeze(1)
    order = chosen[torch.argsort(key[chosen], stable=True)]
    counts = torch.bincount(key[order], minlength=n_slots + 1).tolist()
    return Plan(
        order, targets.long()[order], slots[order], weights[order],
        _group_bounds(counts, table.tolist(), vocabulary_size),
    )  # fmt: skip


def _group_bounds(
    counts: list[int], table: list[list[list[int]]], vocabulary_size: int
) -> list[tuple[int, int, Ranges]]:
    groups, begin = [], 0
    for key, count in enumerate(counts):
        if count:
            ranges = merge(table[key]) if key < len(table) else ((0, vocabulary_size),)
            groups.append((begin, begin + count, ranges))
            begin += count
    return groups


def merge(ranges: Iterable[Iterable[int]]) -> Ranges:
    """Drop the padding and join neighbours, so that more slots are one view."""
    merged: list[tuple[int, int]] = []
    for start, stop in ranges:
        if stop <= start:
            continue
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _as_mask(full_slots: Iterable[int] | Tensor, n_slots: int, device: torch.device) -> Tensor:
    if isinstance(full_slots, Tensor) and full_slots.dtype == torch.bool:
        return full_slots.to(device)
    mask = torch.zeros(n_slots, dtype=torch.bool, device=device)
    indices = torch.as_tensor(list(full_slots), dtype=torch.int64, device=device)
    return mask.index_fill_(0, indices, True)


def check_shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, slots: Tensor, weights: Tensor | None
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "expected hidden (N, D) and weight (V, D) of one width, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    for name, tensor in (("targets", targets), ("slots", slots)):
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {tensor.dtype}")
    if weight.device != hidden.device:
        raise ValueError(f"weight is on {weight.device}, hidden on {hidden.device}; move one")
    for name, vector in (("targets", targets), ("slots", slots), ("weights", weights)):
        if vector is not None and vector.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be ({len(hidden)},), got {tuple(vector.shape)}")
        if vector is not None and vector.device != hidden.device:
            raise ValueError(f"{name} is on {vector.device}, hidden on {hidden.device}; move one")


def _check_slots(slots: Tensor, table: Tensor, vocabulary_size: int) -> None:
    if table.ndim != 3 or table.shape[1] > 4 or table.shape[2] != 2:
        raise ValueError(f"slot_table must be (n_slots, 4, 2), got {tuple(table.shape)}")
    if len(slots) == 0:
        return
    if table.numel() and (table.min() < 0 or table.max() > vocabulary_size):
        raise ValueError(f"slot_table reaches id {int(table.max())} of {vocabulary_size}")
    bad = (slots < 0) | (slots >= len(table))
    if bad.any():
        position = int(bad.nonzero()[0])
        raise ValueError(f"position {position}: slot {int(slots[position])} of {len(table)}")


def _check_targets(bad: Tensor, targets: Tensor, slots: Tensor, table: Tensor) -> None:
    if bad.any():
        position = int(bad.nonzero()[0])
        slot = int(slots[position])
        raise ValueError(
            f"position {position}: target {int(targets[position])} lies outside slot {slot}, "
            f"which holds {merge(table[slot].tolist())}"
        )
