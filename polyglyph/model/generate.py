"""Generation as pure functions over (model, ids, cache): prefill, decode_step, choose, generate.

An automaton says which ids may come next; only their rows of the output matrix are read. Rows
of a batch stand in different states, and each draws from its own generator. Guidance
(arXiv:2207.12598) is a second stream of rows in the same forward. Knows no modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from polyglyph.errors import InputError, PolyglyphError
from polyglyph.kernels.sampling_head import sampling_head
from polyglyph.model.kv_cache import KVCache
from polyglyph.model.sampling import Sampling, sample
from polyglyph.model.transformer import Transformer

States: TypeAlias = np.ndarray  # (B, 6) int32
Ids: TypeAlias = Sequence[int] | np.ndarray | Tensor


class Automaton(Protocol):
    """What generation needs of `polyglyph.constraint.Automaton`, on numpy arrays."""

    def slot_of(self, states: Any, /) -> Any: ...
    def allowed_ranges(self, states: Any, /) -> Any: ...
    def step(self, states: Any, ids: Any, /) -> Any: ...
    def is_end(self, states: Any, /) -> Any: ...


@torch.inference_mode()
def prefill(model: Transformer, prompts: list[list[int]], cache: KVCache) -> Tensor:
    """Read the prompts, of any lengths, into the rows of the cache; hidden (B, D) of their ends."""
    return decode_step(model, prompts, cache)


@torch.inference_mode()
def decode_step(model: Transformer, pending: list[list[int]], cache: KVCache) -> Tensor:
    """Read each row's next ids (at least one each) behind its cache; hidden (B, D) of the last.

    PolyglyphError naming the layer when the states are not finite.
    """
    counts = [len(ids) for ids in pending]
    device = cache.lengths.device
    padded = [ids + [0] * (max(counts) - len(ids)) for ids in pending]
    ids = torch.tensor(padded, dtype=torch.int64, device=device)
    hidden = model(ids, cache=cache)
    if min(counts) == max(counts):
        hidden = hidden[:, -1]
    else:
        last = torch.tensor(counts, device=device) - 1
        hidden = hidden[torch.arange(len(counts), device=device), last]
    if not torch.isfinite(hidden).all():
        raise PolyglyphError(
            f"the model's states are not finite from {_first_broken(model, ids, cache)} on; "
            "its weights are damaged or its dtype is too narrow"
        )
    cache.advance(counts)
    return hidden


def choose(
    hidden: Tensor,
    head: Tensor,
    ranges: np.ndarray,
    slots: np.ndarray,
    sampling: Mapping[int, Sampling] | Sampling,
    generators: list[torch.Generator],
    guided: bool = False,
) -> list[int]:
    """The next id of every row, drawn over the rows of `head` (V, D) that its ranges name.

    hidden (B, D), or (2 B, D) with the unconditional rows behind when `guided`; ranges (B, 4, 2);
    slots (B,), for the choice of a `Sampling`. Rows with equal ranges share one product.
    """
    groups: dict[tuple[int, bytes], list[int]] = {}
    for row, slot in enumerate(slots.tolist()):
        groups.setdefault((slot, ranges[row].tobytes()), []).append(row)
    settings = [
        sampling if isinstance(sampling, Sampling) else sampling.get(slot, Sampling())
        for slot, _ in groups
    ]
    table = np.stack([ranges[rows[0]] for rows in groups.values()])
    group_of_row = np.zeros(len(ranges), np.int64)
    for group, rows in enumerate(groups.values()):
        group_of_row[rows] = group
    guidance = [setting.guidance for setting in settings] if guided else None
    pieces = sampling_head(hidden, head, group_of_row, table, guidance)
    chosen = [0] * len(ranges)
    for rows, setting, piece in zip(groups.values(), settings, pieces, strict=True):
        uniforms = torch.zeros(len(rows), dtype=torch.float64)
        if setting.temperature > 0:
            for i, row in enumerate(rows):
                uniforms[i] = torch.rand((), generator=generators[row], dtype=torch.float64)
        columns = sample(piece.logits, setting, uniforms.to(piece.logits.device))
        for row, id in zip(rows, piece.ids_of(columns.tolist()), strict=True):
            chosen[row] = id
    return chosen


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Ids],
    automaton: Automaton,
    states: States | Tensor,
    *,
    max_new: int,
    seeds: Sequence[int],
    sampling: Mapping[int, Sampling] | Sampling | None = None,
    unconditional: Sequence[Ids] | None = None,
    stop: Callable[[States], Any] | None = None,
    on_ids: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """Continue every prompt until its stop condition holds; the new ids of each row.

    states (B, 6): the automaton's state behind each prompt. At most `max_new` ids per row, and
    never more than the context holds. `sampling`: one for all, or by slot index. `unconditional`:
    one prompt per row for guidance, read beside the row whose slot asks for it. `stop` maps
    states (b, 6) to bool (b,), default `automaton.is_end`. `on_ids(row, ids)` is called with each
    row's ids as they are written. Ids without an alternative are written without the head.

    The model runs in the dtype of its weights. In fp32 a row's ids don't depend on the other rows
    but for rounding. InputError for a prompt that leaves no room, and where nothing fits a budget.
    """
    rows = [_as_list(prompt) for prompt in prompts]
    others = None if unconditional is None else [_as_list(prompt) for prompt in unconditional]
    _check(model, rows, others, seeds, max_new)
    sampling = Sampling() if sampling is None else sampling
    batch = _start(model, rows, others if _is_guided(sampling) else None, states, max_new, seeds)
    is_done = automaton.is_end if stop is None else stop
    batch.drop(np.asarray(is_done(batch.states), bool))
    while batch.live:
        ranges = _write_forced(batch, automaton, is_done, on_ids)
        if not batch.live:
            break
        hidden = decode_step(model, batch.pending, batch.cache)
        batch.pending = [[] for _ in batch.pending]
        slots = np.asarray(automaton.slot_of(batch.states))
        generators = [batch.generators[row] for row in batch.live]
        ids = choose(
            hidden, model.head_weight, ranges, slots, sampling, generators, batch.streams == 2
        )
        batch.write(list(range(len(ids))), ids, automaton, on_ids)
        batch.drop(_finished(batch, is_done))
    return batch.written


@dataclass
class _Batch:
    """The rows still at work. Row i's unconditional stream is row i + len(live) of the cache."""

    live: list[int]  # indices into the prompts
    states: States  # (len(live), 6)
    pending: list[list[int]]  # ids not yet read, of each row of the cache
    cache: KVCache
    streams: int  # 2 with guidance, else 1
    room: list[int]  # ids that each prompt may still get
    generators: list[torch.Generator]
    written: list[list[int]]

    def write(
        self,
        rows: list[int],
        ids: list[int],
        automaton: Automaton,
        on_ids: Callable[[int, list[int]], None] | None,
    ) -> None:
        """Append one id to each of these rows and step their states."""
        index = np.array(rows)
        stepped = automaton.step(self.states[index], np.array(ids, np.int64))
        self.states[index] = stepped
        for row, id in zip(rows, ids, strict=True):
            for stream in range(self.streams):
                self.pending[row + stream * len(self.live)].append(id)
            prompt = self.live[row]
            self.written[prompt].append(id)
            self.room[prompt] -= 1
            if on_ids is not None:
                on_ids(prompt, [id])

    def drop(self, done: np.ndarray) -> None:
        """Take finished rows (bool, one per live row) out of the batch."""
        if not done.any():
            return
        keep = np.flatnonzero(~done).tolist()
        both = keep + [row + len(self.live) for row in keep] * (self.streams - 1)
        self.cache.keep(both)
        self.pending = [self.pending[row] for row in both]
        self.states = self.states[keep]
        self.live = [self.live[row] for row in keep]


def _start(
    model: Transformer,
    rows: list[list[int]],
    others: list[list[int]] | None,
    states: States | Tensor,
    max_new: int,
    seeds: Sequence[int],
) -> _Batch:
    both = rows + (others or [])
    context = model.config.context
    length = min(context, max(map(len, both), default=0) + max_new)
    weight = model.head_weight
    cache = KVCache(model.config, len(both), length, weight.device, weight.dtype)
    longest = [max(len(row), len(other)) for row, other in zip(rows, others or rows, strict=True)]
    return _Batch(
        live=list(range(len(rows))),
        states=np.array(torch.as_tensor(states).cpu().numpy(), dtype=np.int32),
        pending=[list(row) for row in both],
        cache=cache,
        streams=1 if others is None else 2,
        room=[min(max_new, context - n) for n in longest],
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        written=[[] for _ in rows],
    )


def _write_forced(
    batch: _Batch,
    automaton: Automaton,
    is_done: Callable[[States], Any],
    on_ids: Callable[[int, list[int]], None] | None,
) -> np.ndarray:
    """Write ids that have no alternative until every live row has a choice; their ranges."""
    while batch.live:
        ranges = np.asarray(automaton.allowed_ranges(batch.states))
        sizes = (ranges[..., 1] - ranges[..., 0]).sum(1)
        if (sizes == 0).any():
            prompt = batch.live[int(np.flatnonzero(sizes == 0)[0])]
            raise InputError(
                f"prompt {prompt}: nothing fits behind {len(batch.written[prompt])} new ids; "
                "give it a larger budget or a shorter prompt"
            )
        forced = np.flatnonzero(sizes == 1).tolist()
        if not forced:
            return ranges
        widths = ranges[forced, :, 1] - ranges[forced, :, 0]
        ids = ranges[forced, widths.argmax(1), 0].tolist()
        batch.write(forced, ids, automaton, on_ids)
        batch.drop(_finished(batch, is_done))
    return np.zeros((0, 4, 2), np.int32)


def _finished(batch: _Batch, is_done: Callable[[States], Any]) -> np.ndarray:
    full = np.array([batch.room[prompt] <= 0 for prompt in batch.live])
    return full | np.asarray(is_done(batch.states), bool)


def _is_guided(sampling: Mapping[int, Sampling] | Sampling) -> bool:
    settings = [sampling] if isinstance(sampling, Sampling) else sampling.values()
    return any(setting.guidance != 1.0 for setting in settings)


def _as_list(ids: Ids) -> list[int]:
    return [int(id) for id in (ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids)]


def _check(
    model: Transformer,
    rows: list[list[int]],
    others: list[list[int]] | None,
    seeds: Sequence[int],
    max_new: int,
) -> None:
    if max_new < 1:
        raise InputError(f"max_new must be at least 1, got {max_new}")
    if len(seeds) != len(rows):
        raise InputError(f"expected one seed per prompt, got {len(seeds)} for {len(rows)}")
    if others is not None and len(others) != len(rows):
        raise InputError(f"{len(others)} unconditional prompts for {len(rows)} prompts")
    context = model.config.context
    for row, ids in enumerate(rows + (others or [])):
        if not ids:
            raise InputError(f"prompt {row} is empty; it needs at least one id")
        if len(ids) >= context:
            raise InputError(
                f"prompt {row} has {len(ids)} ids, which leaves no room in the context of "
                f"{context}; shorten it or use smaller media"
            )
        if min(ids) < 0 or max(ids) >= model.config.vocabulary_size:
            raise InputError(
                f"prompt {row} holds an id outside 0..{model.config.vocabulary_size - 1}"
            )


def _first_broken(model: Transformer, ids: Tensor, cache: KVCache) -> str:
    """Run the same step once more and name the first part whose result is not finite."""
    broken: list[str] = []

    def watch(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, args: Any, result: Tensor) -> None:
            if not torch.isfinite(result).all():
                broken.append(name)

        return hook

    handles = [
        block.register_forward_hook(watch(f"layer {i}")) for i, block in enumerate(model.blocks)
    ]
    if not torch.isfinite(model.embedding[ids]).all():
        broken.append("the embedding")
    model(ids, cache=cache)
    for handle in handles:
        handle.remove()
    return broken[0] if broken else "the last norm"
