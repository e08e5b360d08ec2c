"""The automaton that says which ids may stand at each position, stepped for a batch at once.

Plain arrays: a table of nodes, edges on the class of an id, and counters. Knows no modality and
no dialect; whoever builds the table (the grammar) gives every node its meaning. Tables live in
numpy; stepping takes numpy arrays or torch tensors and stays on their device.

The state of a row is int32 (node, row, column, frame, codebook, budget). A counter holds its total
in the upper 15 bits and what is done in the lower 15 (`PACK`); total 0 means without end. Orders
that interleave codebooks count plainly: row holds the number of frames (0 while it is open),
column the step. `budget` is the number of ids that may still be written, the last one included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyglyph.errors import ParseError

Array = Any  # np.ndarray or torch.Tensor; a union of the two would fit none of their methods

PACK = 15
MAX_COUNT = (1 << PACK) - 1
NO_LIMIT = np.iinfo(np.int32).max
N_RANGES = 4
DEAD, END = 0, 1  # nodes that every automaton has

# What taking an edge does beside going to its node.
GOTO, BEGIN, READ, ADVANCE, ORDER = range(5)
# Columns of the edge table. LEVEL: 0 column, 1 row, 2 frame: the counter that READ sets or ADVANCE
# starts at. SHIFT and BASE: where READ keeps its number, and 10 for decimal digits. FIX: this id
# decides the number of frames. INIT: three counters (column, row, frame) that BEGIN sets.
OP, NEXT, LAYOUT, LEVEL, SHIFT, BASE, CODEBOOK, FIX, INIT = range(9)
N_EDGE = INIT + 3
# Columns of the layout table. CARRY: node of the separator after column and row (-1: none) and of
# the end; LAST: is the separator there after the last one too; CELL: node of codebook 0.
QS, CARRY, LAST, CELL, START, KIND, TAIL = 0, 1, 4, 6, 7, 8, 9
N_LAYOUT = 10
FRAME_MAJOR, COARSE_FIRST, DELAYED = range(3)
# How the budget narrows a node's slot.
STATIC, LIMITED, OPEN_ORDER = range(3)


def body_length(layout: Any, frame: Any, row: Any, column: Any) -> Any:
    """Ids of a body of these sizes, separators included; `layout` is a row of the layout table."""
    line = column * layout[..., QS]
    sep, last = layout[..., CARRY] >= 0, layout[..., LAST]
    plane = row * line + sep * (row - 1 + last)
    sep, last = layout[..., CARRY + 1] >= 0, layout[..., LAST + 1]
    return frame * plane + sep * (frame - 1 + last)


@dataclass
class Tables:
    """The automaton's arrays, in numpy or on one device."""

    class_of: Any  # (V,) class of an id
    value_of: Any  # (V,) the number that a size id or a digit stands for
    edge: Any  # (n_nodes, n_classes) -> edge; edge 0 leads to DEAD
    edges: Any  # (n_edges, N_EDGE)
    layouts: Any  # (n_layouts, N_LAYOUT)
    node_slot: Any  # (n_nodes,)
    node_codebook: Any  # (n_nodes,)
    node_narrow: Any  # (n_nodes, 8): kind, first level, top level, layout, axis, shift, base, rest
    node_lowest: Any  # (n_nodes,) lowest number that a LIMITED node's ids stand for
    thresholds: Any  # (n_nodes, K) budgets from which the next level is open
    levels: Any  # (n_levels, 4, 2) ranges
    slots: Any  # (n_slots, 4, 2)


@dataclass
class Automaton:
    """Slots and successors of every node. Built by whoever knows what the nodes mean."""

    tables: Tables
    slot_names: tuple[str, ...]
    start: int  # the first node
    vocabulary_size: int
    _on_device: dict[str, Tables] = field(default_factory=dict, repr=False)

    @property
    def n_nodes(self) -> int:
        return len(self.tables.node_slot)

    @property
    def slots(self) -> np.ndarray:
        """int32 (n_slots, 4, 2): half-open sorted ranges, padded with (0, 0)."""
        return self.tables.slots

    @property
    def slot_size(self) -> np.ndarray:
        """(n_slots,) ids per slot."""
        return (self.slots[:, :, 1] - self.slots[:, :, 0]).sum(1)

    def initial(self, budget: int = NO_LIMIT) -> np.ndarray:
        """State (6,) before the first id, with room for `budget` ids in all."""
        return np.array([self.start, 0, 0, 0, 0, min(budget, NO_LIMIT)], np.int32)

    def slot_of(self, states: Array) -> Array:
        """Slot (B,) of each state (B, 6), as the table has it: the budget plays no part."""
        return self._tables(states).node_slot[states[:, 0]]

    def is_end(self, states: Array) -> Array:
        """bool (B,): the row's last id is written."""
        return states[:, 0] == END

    def is_dead(self, states: Array) -> Array:
        """bool (B,): an id was taken that its slot does not hold."""
        return states[:, 0] == DEAD

    def allowed_ranges(self, states: Array) -> Array:
        """int32 (B, 4, 2): the slot, without ids after which the budget could not be kept.

        Whoever stays inside ends within the budget. All (0, 0) where nothing fits any more.
        """
        t = self._tables(states)
        xp = _namespace(states)
        node, budget = states[:, 0], states[:, 5]
        narrow = t.node_narrow[node]
        kind = narrow[:, 0]
        level = (budget[:, None] >= t.thresholds[node]).sum(1)
        level = xp.where(kind == LIMITED, _limit(t, states, narrow), level)
        level = xp.where(kind == OPEN_ORDER, _open_order(t, states, narrow), level)
        level = xp.minimum(level.clip(0, None), narrow[:, 2])
        return t.levels[narrow[:, 1] + level]

    def allowed_mask(self, states: Array, vocabulary_size: int | None = None) -> Array:
        """bool (B, V): the ids of `allowed_ranges`."""
        xp = _namespace(states)
        ids = _arange(states, vocabulary_size or self.vocabulary_size)
        ranges = self.allowed_ranges(states)
        mask = xp.zeros_like(states[:, :1] + ids[None] == 0)
        for i in range(N_RANGES):
            mask = mask | ((ids >= ranges[:, i, :1]) & (ids < ranges[:, i, 1:]))
        return mask

    def forced(self, states: Array) -> Array:
        """The id (B,) where only one is allowed, otherwise -1."""
        xp = _namespace(states)
        ranges = self.allowed_ranges(states)
        single = (ranges[..., 1] - ranges[..., 0]).sum(1) == 1
        # Ranges are sorted and stand first: a single id is the start of range 0.
        return xp.where(single, ranges[:, 0, 0], xp.zeros_like(ranges[:, 0, 0]) - 1)

    def step(self, states: Array, ids: Array) -> Array:
        """States (B, 6) int32 after the ids (B,); a wrong id leads to DEAD, END stays END."""
        t = self._tables(states)
        xp = _namespace(states)
        inside = (ids >= 0) & (ids < self.vocabulary_size)
        ids = xp.where(inside, ids, xp.zeros_like(ids))
        edge = xp.where(inside, t.edge[states[:, 0], t.class_of[ids]], DEAD)
        edge = xp.where(states[:, 0] == END, t.edge[END, 0], edge)
        e = t.edges[edge]
        op, node = e[:, OP], e[:, NEXT]
        layout = t.layouts[e[:, LAYOUT]]
        counters = [states[:, 2], states[:, 1], states[:, 3]]  # column, row, frame
        value = t.value_of[ids]
        for i, counter in enumerate(counters):
            read = (((counter >> e[:, SHIFT]) * e[:, BASE]) + value) << e[:, SHIFT]
            counter = xp.where((op == READ) & (e[:, LEVEL] == i), read, counter)
            counters[i] = xp.where(op == BEGIN, e[:, INIT + i], counter)
        node, counters = _advance(xp, e, layout, node, counters)
        if (self.tables.layouts[:, KIND] != FRAME_MAJOR).any():
            node, counters = _order(xp, e, layout, node, counters)
        column, row, frame = counters
        after = [node, row, column, frame, t.node_codebook[node], states[:, 5] - 1]
        return xp.stack(after, 1)

    def walk(self, ids: np.ndarray, state: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Steps one row through ids (T,): the slots int32 (n,) of the first n ids, and n.

        n = T if every id was legal. After the end only the filler that its slot holds is legal.
        """
        states = (self.initial() if state is None else state)[None]
        slots = np.zeros(len(ids), np.int32)
        for i, one in enumerate(np.asarray(ids, np.int64)):
            slots[i] = slot = self.slot_of(states)[0]
            ended = states[0, 0] == END
            states = self.step(states, ids[i : i + 1])
            if states[0, 0] == DEAD or (ended and not self.holds(slot, int(one))):
                return slots[:i], i
        return slots, len(ids)

    def holds(self, slot: int, id: int) -> bool:
        """True if the slot contains the id."""
        return bool(((self.slots[slot, :, 0] <= id) & (id < self.slots[slot, :, 1])).any())

    def slots_of_ids(self, ids: np.ndarray) -> np.ndarray:
        """Slot int32 (T,) of every position, by walking. ParseError at the first illegal id.

        For checking and spelling; the grammar's `slots_of` gives the same, some hundred times
        as fast, for ids that are known to be legal.
        """
        slots, n = self.walk(ids)
        if n < len(ids):
            slot = self.slot_after(ids[:n])
            raise refusal(n, f"id {int(ids[n])}", self.slot_names[slot], self.slots[slot])
        return slots

    def slot_after(self, ids: np.ndarray, state: np.ndarray | None = None) -> int:
        """The slot of the position behind ids that are all legal."""
        states = (self.initial() if state is None else state)[None]
        for i in range(len(ids)):
            states = self.step(states, ids[i : i + 1])
        return int(self.slot_of(states)[0])

    def _tables(self, like: Array) -> Tables:
        if isinstance(like, np.ndarray):
            return self.tables
        key = str(like.device)
        if key not in self._on_device:
            import torch

            arrays = vars(self.tables).items()
            moved = {k: torch.as_tensor(v, device=like.device) for k, v in arrays}
            self._on_device[key] = Tables(**moved)
        return self._on_device[key]


def refusal(position: int, what: str, slot: str, ranges: np.ndarray) -> ParseError:
    """The error for `what` (an id, or "the end") at `position`, where `slot` was due."""
    spans = [(int(a), int(b)) for a, b in ranges if b > a]
    allowed = ", ".join(f"{a}" if b == a + 1 else f"{a}..{b - 1}" for a, b in spans) or "nothing"
    text = f"{what} at position {position} does not fit: expected {slot} (ids {allowed})"
    return ParseError(text, position=position, slot=slot, allowed=allowed)


def _advance(
    xp: Any, e: Array, layout: Array, node: Array, counters: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """The odometer: adds one at the edge's level and carries up through what is exhausted."""
    counters = list(counters)
    moving = e[:, OP] == ADVANCE
    for level in range(3):
        active = moving & (e[:, LEVEL] <= level)
        counter = counters[level]
        total = counter >> PACK
        done = counter & MAX_COUNT
        full = (total > 0) & (done + 1 >= total)
        again = active & ~full
        node = xp.where(again, layout[:, CELL], node)
        counters[level] = xp.where(active, xp.where(full, counter - done, counter + 1), counter)
        stop = active & full & (layout[:, CARRY + level] >= 0)
        if level < 2:
            above = counters[level + 1]
            is_last = (above >> PACK) == (above & MAX_COUNT) + 1
            stop = stop & ~(is_last & (layout[:, LAST + level] == 0))
        node = xp.where(stop, layout[:, CARRY + level], node)
        moving = moving & ~again & ~stop
    return node, counters


def _order(
    xp: Any, e: Array, layout: Array, node: Array, counters: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """Coarse-first and delayed: the next (step, codebook) from this one and the frame count."""
    step, frames, other = counters
    here = e[:, OP] == ORDER
    coarse = layout[:, KIND] == COARSE_FIRST
    codebook, n_codebooks = e[:, CODEBOOK], layout[:, QS]
    fix = here & (e[:, FIX] == 1)
    frames = xp.where(fix, step, frames)
    step = xp.where(fix & coarse, 0, step)
    is_open = frames == 0
    # Coarse-first: a step is a frame; after the last frame the next codebook starts over.
    wrap = ~is_open & (step + 1 == frames)
    step_c = xp.where(wrap, 0, step + 1)
    codebook_c = codebook + wrap
    # Delayed: step s holds codebooks max(0, s - frames + 1) .. min(s, Q - 1), of frames s - q.
    within = codebook < xp.minimum(step, n_codebooks - 1)
    step_d = xp.where(within, step, step + 1)
    first = xp.where(is_open, 0, (step_d - frames + 1).clip(0, None))
    codebook_d = xp.where(within, codebook + 1, first)
    at_choice = is_open & (coarse | ~within)
    codebook = xp.where(coarse, codebook_c, codebook_d)
    after = xp.where(at_choice, layout[:, START], layout[:, CELL] + codebook)
    after = xp.where(codebook >= n_codebooks, layout[:, CARRY + 2], after)
    step = xp.where(here, xp.where(coarse, step_c, step_d), step)
    return xp.where(here, after, node), [step, frames, other]


def _limit(t: Tables, states: Array, narrow: Array) -> Array:
    """Level of a LIMITED node: how many of its numbers still leave room for what must follow.

    A body's length is affine in the size being read; sizes not yet read count as one.
    """
    xp = _namespace(states)
    layout = _wide(t.layouts[narrow[:, 3]])
    shift, base, rest = (narrow[:, i] for i in (5, 6, 7))
    # Orders that interleave codebooks keep their one size plainly, in `row`.
    plain = shift == 0
    axis = xp.where(plain, 0, narrow[:, 4])
    registers = [states[:, 2], states[:, 1], states[:, 3]]
    sizes, so_far = [], states[:, 0] * 0
    for i, register in enumerate(registers):
        known = (register >> PACK).clip(1, None)
        sizes.append(_wide(xp.where(axis == i, xp.zeros_like(known) + 1, known)))
        so_far = xp.where(axis == i, register >> shift, so_far)
    sizes = [xp.where(plain, xp.zeros_like(s) + 1, s) for s in sizes]
    so_far = xp.where(plain, states[:, 1], so_far)
    bumped = [size + _wide(axis == i) for i, size in enumerate(sizes)]
    one = body_length(layout, sizes[2], sizes[1], sizes[0])
    slope = (body_length(layout, bumped[2], bumped[1], bumped[0]) - one).clip(1, None)
    room = _wide(states[:, 5]) - 1 - _wide(rest) - one
    largest = xp.where(room >= 0, 1 + room // slope, xp.zeros_like(room))
    lowest = t.node_lowest[states[:, 0]]
    limit = largest - _wide(so_far) * _wide(base) - _wide(lowest) + 1
    return limit.clip(0, NO_LIMIT)


def _open_order(t: Tables, states: Array, narrow: Array) -> Array:
    """Level of an OPEN_ORDER node: 1 if one more frame can still be completed, else 0."""
    xp = _namespace(states)
    layout = _wide(t.layouts[narrow[:, 3]])
    step, q = _wide(states[:, 2]), layout[:, QS]
    m = xp.minimum(step, q)
    written = xp.where(layout[:, KIND] == COARSE_FIRST, step, m * step - m * (m - 1) // 2)
    need = (step + 1) * q - written + layout[:, TAIL]
    return _wide(_wide(states[:, 5]) >= need)


def _namespace(like: Array) -> Any:
    if isinstance(like, np.ndarray):
        return np
    import torch

    return torch


def _wide(x: Array) -> Array:
    return x.astype(np.int64) if isinstance(x, np.ndarray) else x.long()


def _arange(like: Array, n: int) -> Array:
    if isinstance(like, np.ndarray):
        return np.arange(n, dtype=np.int32)
    return _namespace(like).arange(n, device=like.device, dtype=like.dtype)
