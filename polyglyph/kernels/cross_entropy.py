"""Linear head and cross-entropy in one, sliced by slot: a position reads only its slot's rows.

Where the grammar allows an image code, only the image rows of the output matrix enter the
softmax, so sliced(x) = full(x with -inf outside the slot), exactly. Logits exist for one chunk of
rows at a time; gradients are formed in the forward pass, as in Liger (arXiv:2410.10989) and
Cut Cross-Entropy (arXiv:2411.09009). z-loss: PaLM (arXiv:2204.02311). Knows ids and slots only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
# Logits of one chunk: 8 MB of fp32. 64 MB is 1.35 times slower on a CPU: it leaves the cache.
CHUNK_ELEMENTS = 1 << 21
Ranges = tuple[tuple[int, int], ...]  # sorted half-open id ranges, never empty ones


@dataclass(frozen=True)
class SlicedLoss:
    """What one call gives. Only `loss` carries a gradient."""

    loss: Tensor  # () sum of weight * (cross-entropy + z * lse^2), over the normaliser
    normaliser: Tensor  # () sum of the weights that carry loss, or what the caller gave
    z_loss: Tensor  # () weighted mean of lse^2, without its coefficient
    slot_losses: Tensor  # (n_slots,) sums of weight * cross-entropy
    slot_weights: Tensor  # (n_slots,) sums of weights
    slot_counts: Tensor  # (n_slots,) int64, positions that carry loss


@dataclass(frozen=True)
class HeadSlice:
    """The logits of the rows of a batch that share a slot."""

    rows: Tensor  # (b,) int64, indices into the batch
    ids: Tensor  # (n,) int64, the ids of the columns, ascending
    logits: Tensor  # (b, n) fp32


def sliced_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    slots: Tensor,
    slot_table: Tensor | np.ndarray,
    weights: Tensor | None = None,
    *,
    z_loss: float = 0.0,
    full_slots: Iterable[int] | Tensor = (),
    normaliser: Tensor | float | None = None,
) -> SlicedLoss:
    """Weighted mean of -log softmax over each position's slot, plus z_loss * lse^2.

    hidden (N, D), weight (V, D), targets (N,) ids, slots (N,) rows of slot_table (n_slots, 4, 2):
    half-open id ranges padded with (0, 0). weights (N,), default 1. Slots in `full_slots` (indices
    or a bool tensor) use all V rows. A position carries no loss and stays out of the normaliser
    when its target is -100, its weight 0 or its slot holds one id. The mean is over the sum of
    weights unless `normaliser` is given (gradient accumulation, several ranks). No position: 0.

    Products run in the autocast dtype, softmax in fp32 (fp64 for fp64 input); deterministic. First
    order only. ValueError when a target lies outside its slot, naming the position.
    """
    _check_shapes(hidden, weight, targets, slots, weights)
    table = torch.as_tensor(slot_table, device=hidden.device).long()
    plan = _make_plan(targets, slots, table, weights, len(weight), full_slots)
    total = plan.weights.sum()
    if normaliser is None:
        normaliser = total
    normaliser = torch.as_tensor(normaliser, dtype=total.dtype, device=total.device)
    scale = torch.where(normaliser == 0, 0.0, 1.0 / normaliser)
    needs = [torch.is_grad_enabled() and t.requires_grad for t in (hidden, weight)]
    loss, nll, lse = _SlicedLoss.apply(hidden, weight, plan, scale, z_loss, needs)
    zeros = nll.new_zeros(len(table))
    weighted = nll * plan.weights
    return SlicedLoss(
        loss=loss,
        normaliser=normaliser,
        z_loss=(lse.square() * plan.weights).sum() * scale,
        slot_losses=zeros.index_add(0, plan.slots, weighted),
        slot_weights=zeros.index_add(0, plan.slots, plan.weights.to(zeros.dtype)),
        slot_counts=torch.bincount(plan.slots, minlength=len(table)),
    )


def full_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    z_loss: float = 0.0,
    normaliser: Tensor | float | None = None,
) -> SlicedLoss:
    """`sliced_cross_entropy` with one slot that holds all V ids."""
    table = torch.zeros(1, 4, 2, dtype=torch.int32)
    table[0, 0, 1] = len(weight)
    slots = torch.zeros_like(targets)
    return sliced_cross_entropy(
        hidden, weight, targets, slots, table, weights, z_loss=z_loss, normaliser=normaliser
    )


def sliced_logits(
    hidden: Tensor, weight: Tensor, slots: Tensor, slot_table: Tensor | np.ndarray
) -> list[HeadSlice]:
    """Logits of every row over its own slot, rows of one slot together (for decoding).

    hidden (B, D), weight (V, D), slots (B,), slot_table (n_slots, 4, 2). Reads only the legal rows
    of the head; every row is in exactly one of the slices.
    """
    table = torch.as_tensor(slot_table).tolist()
    slices = []
    for slot, group in _groups(slots.tolist()).items():
        ranges = _merge(table[slot])
        if not ranges:
            raise ValueError(f"slot {slot} of row {group[0]} holds no id")
        rows = torch.tensor(group, device=hidden.device)
        part = hidden if len(group) == len(hidden) else hidden.index_select(0, rows)
        head = _rows_of(weight, ranges)
        logits = torch.nn.functional.linear(part.to(head.dtype), head).float()
        ids = [torch.arange(start, stop, device=hidden.device) for start, stop in ranges]
        slices.append(HeadSlice(rows, torch.cat(ids), logits))
    return slices


@dataclass(frozen=True)
class _Plan:
    """The positions that carry loss, sorted so that those of one head slice are neighbours."""

    order: Tensor  # (n,) positions
    columns: Tensor  # (n,) index of the target in its slice
    slots: Tensor  # (n,)
    weights: Tensor  # (n,) fp32
    groups: list[tuple[int, int, Ranges]]  # begin and end in `order`, the slice's ranges


def _make_plan(
    targets: Tensor,
    slots: Tensor,
    table: Tensor,
    weights: Tensor | None,
    vocabulary_size: int,
    full_slots: Iterable[int] | Tensor,
) -> _Plan:
    slots = slots.long()
    _check_slots(slots, targets, table, vocabulary_size)
    starts, stops = table[..., 0], table[..., 1]
    sizes = (stops - starts).clamp_min(0)  # (n_slots, 4)
    position_starts, position_stops = starts[slots], stops[slots]  # (N, 4)
    target = targets.long().unsqueeze(1)
    inside = (target >= position_starts) & (target < position_stops)  # (N, 4)
    known = targets != IGNORE
    _check_targets(known & ~inside.any(1), targets, slots, table)
    active = known & (sizes.sum(1)[slots] > 1)
    if weights is None:
        weights = torch.ones(len(targets), device=targets.device)
    weights = weights.to(torch.float32)
    active &= weights != 0

    is_full = _as_mask(full_slots, len(table), slots.device)
    n_slots = len(table)
    key = torch.where(is_full[slots], n_slots, slots)
    # Column in the slice: ids of the ranges before the target's own, plus the offset inside it.
    before = sizes.cumsum(1) - sizes
    column = ((target - position_starts + before[slots]) * inside).sum(1)
    column = torch.where(is_full[slots], targets.long(), column)
    chosen = active.nonzero().squeeze(1)
    order = chosen[torch.argsort(key[chosen], stable=True)]
    counts = torch.bincount(key[order], minlength=n_slots + 1).tolist()
    return _Plan(
        order, column[order], slots[order], weights[order],
        _group_bounds(counts, table.tolist(), vocabulary_size),
    )  # fmt: skip


def _group_bounds(
    counts: list[int], table: list[list[list[int]]], vocabulary_size: int
) -> list[tuple[int, int, Ranges]]:
    groups, begin = [], 0
    for key, count in enumerate(counts):
        if count:
            ranges = _merge(table[key]) if key < len(table) else ((0, vocabulary_size),)
            groups.append((begin, begin + count, ranges))
            begin += count
    return groups


class _SlicedLoss(torch.autograd.Function):
    """(loss, nll, lse) with the gradients formed while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        plan: _Plan,
        scale: Tensor,
        z_loss: float,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        compute = hidden.dtype
        if torch.is_autocast_enabled(device) and compute != torch.float64:
            compute = torch.get_autocast_dtype(device)
        exact = torch.float64 if compute == torch.float64 else torch.float32
        with torch.autocast(device, enabled=False):
            h = hidden.index_select(0, plan.order).to(compute)
            head = weight.to(compute)
            nll = torch.empty(len(h), dtype=exact, device=h.device)
            lse = torch.empty_like(nll)
            grad_h = torch.empty_like(h) if needs[0] else None
            grad_w = torch.zeros_like(weight, dtype=exact) if needs[1] else None
            coefficients = (plan.weights * scale).to(exact)
            for begin, end, ranges in plan.groups:
                rows = max(1, CHUNK_ELEMENTS // sum(stop - start for start, stop in ranges))
                w = _rows_of(head, ranges)
                for start in range(begin, end, rows):
                    part = slice(start, min(start + rows, end))
                    grad = _chunk(
                        h[part], w, plan.columns[part], coefficients[part],
                        z_loss, nll[part], lse[part], any(needs),
                    )  # fmt: skip
                    if grad_h is not None:
                        torch.mm(grad, w, out=grad_h[part])
                    if grad_w is not None:
                        _accumulate(grad_w, grad, h[part], ranges)
            loss = ((nll + z_loss * lse.square()) * coefficients).sum()
        ctx.n_positions, ctx.order, ctx.hidden_dtype = len(hidden), plan.order, hidden.dtype
        ctx.grads = (grad_h, None if grad_w is None else grad_w.to(weight.dtype))
        ctx.mark_non_differentiable(nll, lse)
        return loss, nll, lse

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w = ctx.grads
        if grad_h is not None:
            full = grad_h.new_zeros(ctx.n_positions, grad_h.shape[1], dtype=ctx.hidden_dtype)
            scaled = (grad_h * grad_loss).to(ctx.hidden_dtype)
            grad_h = full.index_copy_(0, ctx.order, scaled)
        if grad_w is not None:
            grad_w = grad_w * grad_loss
        return grad_h, grad_w, None, None, None, None


def _chunk(
    h: Tensor,
    w: Tensor,
    columns: Tensor,
    coefficients: Tensor,
    z_loss: float,
    nll: Tensor,
    lse: Tensor,
    needs_grad: bool,
) -> Tensor:
    """Fill nll and lse of one chunk; return d loss / d logits (b, n) in h's dtype."""
    logits = torch.mm(h, w.t())
    log_p = torch.log_softmax(logits, -1, dtype=nll.dtype)
    columns = columns.unsqueeze(1)
    picked = log_p.gather(1, columns)
    torch.neg(picked.squeeze(1), out=nll)
    torch.add(logits.gather(1, columns).squeeze(1).to(nll.dtype), nll, out=lse)
    if not needs_grad:
        return log_p
    p = log_p.exp_()
    factor = coefficients if z_loss == 0.0 else coefficients * (1.0 + 2.0 * z_loss * lse)
    p.mul_(factor.unsqueeze(1))
    p.scatter_add_(1, columns, -coefficients.unsqueeze(1))
    return p.to(h.dtype)


def _accumulate(grad_w: Tensor, grad: Tensor, h: Tensor, ranges: Ranges) -> None:
    """grad_w[ranges] += grad.T @ h, without a copy of the slice where dtypes agree."""
    column = 0
    for start, stop in ranges:
        part = grad[:, column : column + stop - start].t()
        if h.dtype == grad_w.dtype:
            grad_w[start:stop].addmm_(part, h)
        else:
            grad_w[start:stop] += torch.mm(part, h)
        column += stop - start


def _rows_of(weight: Tensor, ranges: Ranges) -> Tensor:
    """The rows of a slot: a view when it is one range."""
    parts = [weight[start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _merge(ranges: Iterable[Iterable[int]]) -> Ranges:
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


def _groups(keys: list[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def _as_mask(full_slots: Iterable[int] | Tensor, n_slots: int, device: torch.device) -> Tensor:
    if isinstance(full_slots, Tensor) and full_slots.dtype == torch.bool:
        return full_slots.to(device)
    mask = torch.zeros(n_slots, dtype=torch.bool, device=device)
    indices = torch.as_tensor(list(full_slots), dtype=torch.int64, device=device)
    return mask.index_fill_(0, indices, True)


def _check_shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, slots: Tensor, weights: Tensor | None
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "expected hidden (N, D) and weight (V, D) of one width, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    for name, tensor in (("targets", targets), ("slots", slots), ("weights", weights)):
        if tensor is not None and tensor.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be ({len(hidden)},), got {tuple(tensor.shape)}")
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}; move one")


def _check_slots(slots: Tensor, targets: Tensor, table: Tensor, vocabulary_size: int) -> None:
    if table.ndim != 3 or table.shape[2] != 2:
        raise ValueError(f"slot_table must be (n_slots, 4, 2), got {tuple(table.shape)}")
    if len(slots) == 0:
        return
    if table.min() < 0 or table.max() > vocabulary_size:
        raise ValueError(f"slot_table reaches id {int(table.max())} of {vocabulary_size}")
    bad = (slots < 0) | (slots >= len(table))
    bad &= targets != IGNORE
    if bad.any():
        position = int(bad.nonzero()[0])
        raise ValueError(f"position {position}: slot {int(slots[position])} of {len(table)}")


def _check_targets(bad: Tensor, targets: Tensor, slots: Tensor, table: Tensor) -> None:
    if bad.any():
        position = int(bad.nonzero()[0])
        slot = int(slots[position])
        raise ValueError(
            f"position {position}: target {int(targets[position])} lies outside slot {slot}, "
            f"which holds {_merge(table[slot].tolist())}"
        )
