"""Linear head and cross-entropy in one, sliced by slot: a position reads only its slot's rows.

Where the grammar allows an image code, only the image rows of the output matrix enter the
softmax, so sliced(x) = full(x with -inf outside the slot), exactly. On the CPU logits exist for one
chunk of rows at a time and gradients are formed in the forward pass, as in Liger
(arXiv:2410.10989); on a GPU they exist by tiles and are formed twice, as in Cut Cross-Entropy
(arXiv:2411.09009), with the exact gradient. z-loss: PaLM (arXiv:2204.02311). Knows ids and slots
only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.contract import Example
from polyglyph.kernels.cross_entropy_plan import (
    IGNORE,
    Plan,
    Ranges,
    check_shapes,
    make_plan,
)

# Logits of a chunk of rows: 64 MB of fp32. Fewer rows would read the head and its gradient more
# often than the products last: with 11 rows of V = 184,320 that is most of the time.
CHUNK_ELEMENTS = 1 << 24
# ... of which this many are worked on at a time: 2 MB, so that they stay in the cache.
TILE_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class SlicedLoss:
    """What one call gives. Only `loss` carries a gradient."""

    loss: Tensor  # () sum of weight * (cross-entropy + z * lse^2), over the normaliser
    normaliser: Tensor  # () sum of the weights that carry loss, or what the caller gave
    z_loss: Tensor  # () weighted mean of lse^2, without its coefficient
    slot_losses: Tensor  # (n_slots,) sums of weight * cross-entropy
    slot_weights: Tensor  # (n_slots,) sums of weights
    slot_counts: Tensor  # (n_slots,) int64, positions that carry loss


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
    """Weighted mean of -log softmax over each position's slot, plus z_loss * lse^2:
    sum_i w_i (lse_i - h_i . W[t_i] + z lse_i^2) / sum_i w_i, lse_i over the ids of slot i.

    hidden (N, D), weight (V, D), targets (N,) ids, slots (N,) rows of slot_table (n_slots, 4, 2):
    half-open id ranges padded with (0, 0). weights (N,), default 1. Slots in `full_slots` (indices
    or a bool tensor) use all V rows. A position carries no loss and stays out of the normaliser
    when its target is -100, its weight 0 or its slot holds one id. The mean is over the sum of
    weights unless `normaliser` is given (gradient accumulation, several ranks). No position: 0.

    Products run in the autocast dtype, else hidden's; softmax and sums in fp32 (fp64 for fp64
    input). Deterministic: no atomics, sums in a fixed order. First order only. hidden and weight
    may be strided; N may be 0. ValueError, naming the argument, for shapes, dtypes and devices that
    do not fit, and when a target lies outside its slot, naming the position.
    """
    check_shapes(hidden, weight, targets, slots, weights)
    table = torch.as_tensor(slot_table, device=hidden.device).long()
    plan = make_plan(targets, slots, table, weights, len(weight), full_slots)
    total = plan.weights.sum()
    if normaliser is None:
        normaliser = total
    normaliser = torch.as_tensor(normaliser, dtype=total.dtype, device=total.device)
    scale = torch.where(normaliser == 0, 0.0, 1.0 / normaliser)
    # fp64, of which the Triton form knows nothing, stays with torch.
    if hidden.dtype != torch.float64 and backend.pick("cross_entropy", hidden) == "triton":
        loss, nll, lse = _triton_form(hidden, weight, plan, scale, z_loss)
    else:
        needs = [torch.is_grad_enabled() and t.requires_grad for t in (hidden, weight)]
        compute = _product_dtype(hidden)
        loss, nll, lse = _SlicedLoss.apply(hidden, weight, plan, scale, z_loss, compute, needs)
    # Not index_add: on a GPU its order isn't fixed.
    of_slot = plan.slots == torch.arange(len(table), device=plan.slots.device)[:, None]
    return SlicedLoss(
        loss=loss,
        normaliser=normaliser,
        z_loss=(lse.square() * plan.weights).sum() * scale,
        slot_losses=torch.where(of_slot, nll * plan.weights, 0.0).sum(1),
        slot_weights=torch.where(of_slot, plan.weights.to(nll.dtype), 0.0).sum(1),
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


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _triton_form(
    hidden: Tensor, weight: Tensor, plan: Plan, scale: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nll, lse): the kernels give lse and the target's logit, the rest is (n,) vectors."""
    from polyglyph.kernels.cross_entropy_triton import cross_entropy_triton

    compute = _product_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        h = hidden.index_select(0, plan.order).to(compute)
        lse, picked = cross_entropy_triton(h, weight, plan.targets, plan.groups)
        nll = lse - picked
        coefficients = (plan.weights * scale.detach()).to(lse.dtype)
        loss = ((nll + z_loss * lse.square()) * coefficients).sum()
    return loss, nll.detach(), lse.detach()


class _SlicedLoss(torch.autograd.Function):
    """(loss, nll, lse) with the gradients formed while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        plan: Plan,
        scale: Tensor,
        z_loss: float,
        compute: torch.dtype,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight)
        ctx.rest = (plan, scale, z_loss, compute, needs)
        loss, nll, lse, ctx.gradients = _losses(hidden, weight, *ctx.rest)
        ctx.mark_non_differentiable(nll, lse)
        return loss, nll, lse

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # They are given away, so that none is copied; a second backward pass forms them anew.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _losses(*ctx.saved_tensors, *ctx.rest)[3]
        if grad_loss.device.type != "cpu" or grad_loss != 1:
            gradients = [None if grad is None else grad.mul_(grad_loss) for grad in gradients]
        return *gradients, None, None, None, None, None


def _losses(
    hidden: Tensor,
    weight: Tensor,
    plan: Plan,
    scale: Tensor,
    z_loss: float,
    compute: torch.dtype,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """loss (), nll and lse (n,), and the gradients of hidden and weight, None where not needed."""
    exact = torch.float64 if compute == torch.float64 else torch.float32
    with torch.autocast(hidden.device.type, enabled=False):
        h = hidden.index_select(0, plan.order).to(compute)
        coefficients = (plan.weights * scale).to(exact)
        nll, lse = torch.empty_like(coefficients), torch.empty_like(coefficients)
        grad_h = torch.zeros_like(h, dtype=exact) if needs[0] else None
        grad_w = torch.zeros_like(weight, dtype=exact) if needs[1] else None
        for begin, end, ranges in plan.groups:
            size = sum(stop - start for start, stop in ranges)
            n_chunks = -(-(end - begin) * size // CHUNK_ELEMENTS)
            n_rows = -(-(end - begin) // n_chunks)
            pieces = _cut(ranges, max(1, TILE_ELEMENTS // n_rows))
            for start in range(begin, end, n_rows):
                part = slice(start, min(start + n_rows, end))
                tiles, nll[part], lse[part] = _exponentials(
                    h[part], weight, plan.targets[part], pieces, exact
                )
                if any(needs):
                    _accumulate(
                        tiles, h[part], weight, coefficients[part], z_loss, lse[part],
                        None if grad_h is None else grad_h[part], grad_w,
                    )  # fmt: skip
        loss = ((nll + z_loss * lse.square()) * coefficients).sum()
        if grad_h is not None:
            full = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
            grad_h = full.index_copy_(0, plan.order, grad_h.to(hidden.dtype))
    return loss, nll, lse, [grad_h, None if grad_w is None else grad_w.to(weight.dtype)]


class _Tile(NamedTuple):
    """exp(logits - top) of a chunk's rows over the ids from `start`."""

    start: int
    values: Tensor  # (b, c)
    top: Tensor  # (b,)
    column: Tensor  # (b,) of the target, held inside the tile
    inside: Tensor  # (b,) bool: whether the target is


def _exponentials(
    h: Tensor, weight: Tensor, targets: Tensor, pieces: Ranges, exact: torch.dtype
) -> tuple[list[_Tile], Tensor, Tensor]:
    """The tiles of one chunk of rows, its nll and its lse (b,). One exp for both directions."""
    tiles: list[_Tile] = []
    parts = []
    picked = torch.zeros(len(h), dtype=exact, device=h.device)
    for start, stop in pieces:
        values = torch.mm(h, weight[start:stop].to(h.dtype).t()).to(exact)
        column = (targets - start).clamp(0, stop - start - 1)
        inside = (targets >= start) & (targets < stop)
        picked = torch.where(inside, values.gather(1, column[:, None]).squeeze(1), picked)
        top = values.amax(1)
        values.sub_(top[:, None]).exp_()
        parts.append(top + values.sum(1).log_())
        tiles.append(_Tile(start, values, top, column, inside))
    lse = parts[0] if len(parts) == 1 else torch.stack(parts).logsumexp(0)
    return tiles, lse - picked, lse


def _accumulate(
    tiles: list[_Tile],
    h: Tensor,
    weight: Tensor,
    coefficients: Tensor,
    z_loss: float,
    lse: Tensor,
    grad_h: Tensor | None,
    grad_w: Tensor | None,
) -> None:
    """Turn the tiles into d loss / d logits and add their products to both gradients."""
    factor = coefficients * (1.0 + 2.0 * z_loss * lse)
    for start, values, top, column, inside in tiles:
        values.mul_((factor * (top - lse).exp_())[:, None])
        values.scatter_add_(1, column[:, None], torch.where(inside, -coefficients, 0.0)[:, None])
        grad = values.to(h.dtype)
        stop = start + values.shape[1]
        if grad_h is not None:
            _add_product(grad_h, grad, weight[start:stop].to(h.dtype))
        if grad_w is not None:
            _add_product(grad_w[start:stop], grad.t(), h)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a copy where dtypes agree."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b)


def _cut(ranges: Ranges, most: int) -> Ranges:
    """The ranges in pieces of `most` ids."""
    return tuple(
        (first, min(first + most, stop))
        for start, stop in ranges
        for first in range(start, stop, most)
    )


def _rows_of(weight: Tensor, ranges: Ranges) -> Tensor:
    """The rows of a slot: a view when it is one range."""
    parts = [weight[start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# --- what the generic tests and the benchmark run ----------------------------------------------

_SHAPES = {  # (N, D, V)
    "test": ((1, 17, 41), (17, 33, 129), (127, 64, 300), (129, 24, 1100)),
    "bench": ((16_384, 4096, 184_320), (16_384, 1024, 184_320)),
    "cpu": ((512, 512, 184_320),),
}
_TEXT = 0.822  # of the ids: 151,552 of 184,320
_VISUAL = 0.75  # of the positions


def examples(size: str, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Example]:
    """Calls at "test", "bench" or "cpu" size: three quarters of the positions are codes of images,
    the others text over the whole head, and the same with everything over the whole head."""
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    for n, width, vocabulary_size in _SHAPES[size]:
        draw = {"generator": generator, "device": device}
        hidden = torch.randn(n, width, **draw).to(dtype)
        weight = (torch.randn(vocabulary_size, width, **draw) * (2 / width**0.5)).to(dtype)
        table = _example_table(vocabulary_size, size == "test").to(device)
        slots = (torch.rand(n, **draw) < _VISUAL).long()
        if size == "test":
            slots = torch.randint(0, len(table), (n,), **draw)
        sizes = (table[..., 1] - table[..., 0]).sum(1)
        drawn = (torch.rand(n, **draw) * sizes[slots]).long()
        targets = _nth_id(table, slots, drawn)
        if size == "test":
            targets[::9] = IGNORE
        weights = torch.rand(n, **draw) + 0.5
        inputs = {"hidden": hidden, "weight": weight, "weights": weights}
        fixed = (targets, slots, table)
        for name, full in (("sliced", (0,)), ("whole head", range(len(table)))):
            read = torch.tensor([vocabulary_size if s in full else k for s, k in enumerate(sizes)])
            ours, plain = _example_call(*fixed, full), _example_reference(*fixed, full)
            n_flops = 2.0 * width * float(read[slots.cpu()].sum())
            n_bytes = float((hidden.numel() + weight.numel()) * hidden.element_size())
            label = f"{name} {n}x{width}x{vocabulary_size}"
            gradients = ("hidden", "weight")
            found.append(Example(label, ours, inputs, plain, gradients, n_flops, n_bytes))
    return found


def _example_table(vocabulary_size: int, is_test: bool) -> Tensor:
    text = int(_TEXT * vocabulary_size)
    table = torch.zeros(5 if is_test else 2, 4, 2, dtype=torch.int64)
    table[0, 0] = torch.tensor([0, text])
    table[1, 0] = torch.tensor([text, vocabulary_size])
    if is_test:  # four ranges, one id, and two short ranges
        last = torch.tensor([vocabulary_size - 1, vocabulary_size])
        table[2] = torch.stack(
            [
                torch.tensor([1, 5]),
                torch.tensor([7, text]),
                torch.tensor([text + 1, text + 4]),
                last,
            ]
        )
        table[3, 0] = torch.tensor([5, 6])
        table[4, :2] = torch.stack([torch.tensor([0, 3]), last])
    return table


def _nth_id(table: Tensor, slots: Tensor, n: Tensor) -> Tensor:
    """The n-th id of each position's slot."""
    sizes = (table[..., 1] - table[..., 0])[slots]  # (N, 4)
    before = sizes.cumsum(1) - sizes
    inside = (n[:, None] >= before) & (n[:, None] < before + sizes)
    return ((table[slots][..., 0] + n[:, None] - before) * inside).sum(1)


def _example_call(targets: Tensor, slots: Tensor, table: Tensor, full: Iterable[int]) -> Any:
    def call(hidden: Tensor, weight: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        found = sliced_cross_entropy(
            hidden, weight, targets, slots, table, weights, z_loss=0.01, full_slots=full
        )
        return found.loss, found.z_loss, found.slot_losses

    return call


def _example_reference(targets: Tensor, slots: Tensor, table: Tensor, full: Iterable[int]) -> Any:
    def call(hidden: Tensor, weight: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        ids = torch.arange(len(weight), device=weight.device)
        legal = ((ids >= table[..., :1]) & (ids < table[..., 1:])).any(1)  # (n_slots, V)
        carries = (targets != IGNORE) & (legal.sum(1)[slots] > 1)
        legal[list(full)] = True
        logits = (hidden @ weight.t()).masked_fill(~legal[slots], -torch.inf)
        lse = logits.logsumexp(1)
        nll = lse - logits.gather(1, targets.clamp_min(0)[:, None]).squeeze(1)
        weights = torch.where(carries, weights, 0)
        nll = torch.where(carries, nll, 0)
        z_loss = (lse.square() * weights).sum() / weights.sum()
        sums = [(nll * weights)[slots == slot].sum() for slot in range(len(table))]
        return (nll * weights).sum() / weights.sum() + 0.01 * z_loss, z_loss, torch.stack(sums)

    return call
