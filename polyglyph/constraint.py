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
    has_order: bool  # does any layout interleave codebooks?

    def to(self, device: Any) -> Tables:
        """These tables as tensors on a torch device."""
        import torch

        arrays = vars(self).items()
        moved = {
            k: torch.as_tensor(v, device=device) if isinstance(v, np.ndarray) else v
            for k, v in arrays
        }
        return Tables(**moved)


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
        host = _host(states)
        if host is not states:
            return _like(states, allowed_ranges(self.tables, np, host))
        return allowed_ranges(self._tables(states), _namespace(states), states)

    def allowed_mask(self, states: Array, vocabulary_size: int | None = None) -> Array:
        """bool (B, V): the ids of `allowed_ranges`."""
        n = vocabulary_size or self.vocabulary_size
        ranges = self.allowed_ranges(states)
        xp, host = _namespace(states), _host(states) is not states or _namespace(states) is np
        ids = xp.arange(n) if xp is np else xp.arange(n, device=states.device)
        mask = None
        for i in range(N_RANGES):
            low, high = ranges[:, i, :1], ranges[:, i, 1:]
            if i and host and not high.any():
                break  # ranges are padded at their end
            inside = (ids >= low) & (ids < high)
            mask = inside if mask is None else mask | inside
        return mask

    def forced(self, states: Array) -> Array:
        """The id (B,) where only one is allowed, otherwise -1."""
        ranges = self.allowed_ranges(states)
        single = (ranges[..., 1] - ranges[..., 0]).sum(1) == 1
        # Ranges are sorted and stand first: a single id is the start of range 0.
        return _namespace(states).where(single, ranges[:, 0, 0], -1)

    def step(self, states: Array, ids: Array) -> Array:
        """States (B, 6) int32 after the ids (B,); a wrong id leads to DEAD, END stays END."""
        host = _host(states)
        if host is not states:
            return _like(states, step(self.tables, np, host, _host(ids)))
        return step(self._tables(states), _namespace(states), states, ids)

    def walk(
        self, ids: np.ndarray, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps one row through ids (T,) as far as they are legal.

        Returns the slots int32 (n,) of the n legal ids, n = T if all are, and the state (6,)
        behind them. After the end only the filler that its slot holds is legal.
        """
        states = (self.initial() if state is None else state)[None]
        slots = np.zeros(len(ids), np.int32)
        for i in range(len(ids)):
            slots[i] = slot = self.slot_of(states)[0]
            after = self.step(states, ids[i : i + 1])
            ended = states[0, 0] == END
            if after[0, 0] == DEAD or (ended and not self.holds(slot, int(ids[i]))):
                return slots[:i], states[0]
            states = after
        return slots, states[0]

    def holds(self, slot: int, id: int) -> bool:
        """True if the slot contains the id."""
        return bool(((self.slots[slot, :, 0] <= id) & (id < self.slots[slot, :, 1])).any())

    def slots_of_ids(self, ids: np.ndarray) -> np.ndarray:
        """Slot int32 (T,) of every position, by walking. ParseError at the first illegal id.

        For checking and spelling; the grammar's `slots_of` gives the same, some hundred times
        as fast, for ids that are known to be legal.
        """
        slots, state = self.walk(ids)
        n = len(slots)
        if n < len(ids):
            slot = int(self.slot_of(state[None])[0])
            raise refusal(n, f"id {int(ids[n])}", self.slot_names[slot], self.slots[slot])
        return slots

    def _tables(self, like: Array) -> Tables:
        if isinstance(like, np.ndarray):
            return self.tables
        key = str(like.device)
        if key not in self._on_device:
            self._on_device[key] = self.tables.to(like.device)
        return self._on_device[key]


def refusal(position: int, what: str, slot: str, ranges: np.ndarray) -> ParseError:
    """The error for `what` (an id, or "the end") at `position`, where `slot` was due."""
    spans = [(int(a), int(b)) for a, b in ranges if b > a]
    allowed = ", ".join(f"{a}" if b == a + 1 else f"{a}..{b - 1}" for a, b in spans) or "nothing"
    text = f"{what} at position {position} does not fit: expected {slot} (ids {allowed})"
    return ParseError(text, position=position, slot=slot, allowed=allowed)


def step(t: Tables, xp: Any, states: Array, ids: Array) -> Array:
    """`Automaton.step` on tables and states that live on one device, in numpy or torch."""
    host = xp is np  # where looking at values is free, steps that no row takes are left out
    n_ids = len(t.class_of)
    inside = (ids >= 0) & (ids < n_ids)
    ids = xp.where(inside, ids, 0)
    edge = xp.where(inside, t.edge[states[:, 0], t.class_of[ids]], DEAD)
    edge = xp.where(states[:, 0] == END, t.edge[END].max(), edge)
    e = t.edges[edge]
    op, node = e[:, OP], e[:, NEXT]
    counters = [states[:, 2], states[:, 1], states[:, 3]]  # column, row, frame
    if not host or ((op == READ) | (op == BEGIN)).any():
        value = t.value_of[ids]
        for i, counter in enumerate(counters):
            read = (((counter >> e[:, SHIFT]) * e[:, BASE]) + value) << e[:, SHIFT]
            counter = xp.where((op == READ) & (e[:, LEVEL] == i), read, counter)
            counters[i] = xp.where(op == BEGIN, e[:, INIT + i], counter)
    layout = t.layouts[e[:, LAYOUT]]
    if not host or (op == ADVANCE).any():
        node, counters = _advance(xp, e, layout, node, counters)
    if t.has_order and (not host or (op == ORDER).any()):
        node, counters = _order(xp, e, layout, node, counters)
    column, row, frame = counters
    after = [node, row, column, frame, t.node_codebook[node], states[:, 5] - 1]
    return xp.stack(after, 1)


def allowed_ranges(t: Tables, xp: Any, states: Array) -> Array:
    """`Automaton.allowed_ranges` on tables and states that live on one device."""
    host = xp is np
    narrow = t.node_narrow[states[:, 0]]
    kind = narrow[:, 0]
    level = (states[:, 5:] >= t.thresholds[states[:, 0]]).sum(1)
    if not host or (kind == LIMITED).any():
        level = xp.where(kind == LIMITED, _limit(t, xp, states, narrow), level)
    if t.has_order and (not host or (kind == OPEN_ORDER).any()):
        level = xp.where(kind == OPEN_ORDER, _open_order(t, xp, states, narrow), level)
    level = xp.minimum(level, narrow[:, 2])
    return t.levels[narrow[:, 1] + level]


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


def _limit(t: Tables, xp: Any, states: Array, narrow: Array) -> Array:
    """Level of a LIMITED node: how many of its numbers still leave room for what must follow.

    A body's length is affine in the size being read; sizes not yet read count as one.
    """
    layout = _wide(t.layouts[narrow[:, 3]])
    shift, base, rest = (_wide(narrow[:, i]) for i in (5, 6, 7))
    # Orders that interleave codebooks keep their one size plainly, in `row`.
    plain = shift == 0
    axis = xp.where(plain, 0, narrow[:, 4])
    registers = [_wide(states[:, i]) for i in (2, 1, 3)]
    so_far = xp.where(plain, registers[1], 0)
    sizes = []
    for i, register in enumerate(registers):
        is_read = axis == i
        sizes.append(xp.where(is_read | plain, 1, (register >> PACK).clip(1, None)))
        so_far = xp.where(is_read & ~plain, register >> shift, so_far)
    bumped = [size + (axis == i) for i, size in enumerate(sizes)]
    one = body_length(layout, sizes[2], sizes[1], sizes[0])
    slope = (body_length(layout, bumped[2], bumped[1], bumped[0]) - one).clip(1, None)
    room = _wide(states[:, 5]) - 1 - rest - one
    largest = xp.where(room >= 0, 1 + room // slope, 0)
    limit = largest - so_far * base - t.node_lowest[states[:, 0]] + 1
    return limit.clip(0, NO_LIMIT)


def _open_order(t: Tables, xp: Any, states: Array, narrow: Array) -> Array:
    """Level of an OPEN_ORDER node: 1 if one more frame can still be completed, else 0."""
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


def _host(array: Array) -> Array:
    """The numpy view of a torch tensor in main memory; anything else as it is.

    numpy's small operations cost a fifth of torch's, and a step is sixty of them.
    """
    is_tensor = not isinstance(array, np.ndarray)
    return array.numpy() if is_tensor and array.device.type == "cpu" else array


def _like(states: Array, array: np.ndarray) -> Array:
    return _namespace(states).from_numpy(array)


def _wide(x: Array) -> Array:
    return x.astype(np.int64) if isinstance(x, np.ndarray) else x.long()
