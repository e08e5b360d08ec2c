"""Builds the arrays of an Automaton from nodes, sets of ids and edges.

Knows neither modalities nor layouts: it partitions the ids into classes, lays out the slots, and
works out how a small budget narrows them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyglyph import constraint
from polyglyph.constraint import (
    BEGIN,
    DEAD,
    END,
    FRAME_MAJOR,
    INIT,
    KIND,
    LIMITED,
    N_EDGE,
    N_LAYOUT,
    N_RANGES,
    NEXT,
    NO_LIMIT,
    OPEN_ORDER,
    STATIC,
    Automaton,
    Tables,
)
from polyglyph.errors import ConfigError


@dataclass
class Edge:
    ids: np.ndarray
    fields: np.ndarray  # (N_EDGE,)
    need: int  # legal from this budget on, under static narrowing; 0: always
    limited: bool  # one of the ids that a LIMITED or OPEN_ORDER node narrows


@dataclass
class Node:
    name: str
    codebook: int = 0
    kind: int = STATIC
    layout: int = 0
    axis: int = 0
    shift: int = 0
    base: int = 0
    rest: int = 0
    edges: list[Edge] = field(default_factory=list)


class Builder:
    """Collects nodes and edges; `build` turns them into an Automaton."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.values = np.zeros(vocabulary_size, np.int32)
        self.nodes = [Node("nothing"), Node("end")]
        self.layouts: list[np.ndarray] = []
        assert (DEAD, END) == (0, 1)

    def node(self, name: str, **fields: Any) -> int:
        self.nodes.append(Node(name, **fields))
        return len(self.nodes) - 1

    def layout(self) -> int:
        """A new row of the layout table, filled in by the caller; returns its index."""
        self.layouts.append(np.full(N_LAYOUT, -1, np.int32))
        return len(self.layouts) - 1

    def edge(
        self,
        node: int,
        ids: np.ndarray,
        next: int,
        *,
        need: int = 0,
        limited: bool = False,
        **columns: Any,
    ) -> None:
        """From `node` on any of `ids` to `next`; `columns` by the names of the edge table."""
        fields = np.zeros(N_EDGE, np.int32)
        fields[NEXT] = next
        for name, value in columns.items():
            fields[getattr(constraint, name.upper())] = value
        self.nodes[node].edges.append(Edge(np.asarray(ids, np.int64), fields, need, limited))

    def begin(self, node: int, ids: np.ndarray, next: int, counters: tuple, need: int) -> None:
        """An edge that sets the three counters (column, row, frame)."""
        self.edge(node, ids, next, need=need, op=BEGIN)
        self.nodes[node].edges[-1].fields[INIT:] = counters

    def build(self, start: int) -> Automaton:
        class_of, n_classes = self._classes()
        edge = np.zeros((len(self.nodes), n_classes), np.int32)
        edges = [np.zeros(N_EDGE, np.int32)]  # edge 0: to DEAD
        for index, node in enumerate(self.nodes):
            for e in node.edges:
                classes = np.unique(class_of[e.ids])
                assert not edge[index, classes].any(), f"{node.name}: one id, two successors"
                edge[index, classes] = len(edges)
                edges.append(e.fields)
        slots, slot_names, node_slot = self._slots()
        levels, narrow, lowest, thresholds = self._levels()
        tables = Tables(
            class_of=class_of,
            value_of=self.values,
            edge=edge,
            edges=np.stack(edges),
            layouts=np.stack(self.layouts or [np.zeros(N_LAYOUT, np.int32)]),
            node_slot=node_slot,
            node_codebook=np.array([n.codebook for n in self.nodes], np.int32),
            node_narrow=narrow,
            node_lowest=lowest,
            thresholds=thresholds,
            levels=levels,
            slots=slots,
            has_order=any(row[KIND] != FRAME_MAJOR for row in self.layouts),
        )
        return Automaton(tables, tuple(slot_names), start, self.vocabulary_size)

    def _classes(self) -> tuple[np.ndarray, int]:
        """The coarsest partition of the ids that every edge's set is a union of."""
        label = np.zeros(self.vocabulary_size, np.int64)
        seen: set[bytes] = set()
        for node in self.nodes:
            for e in node.edges:
                key = e.ids.tobytes()
                if key in seen:
                    continue
                seen.add(key)
                label *= 2
                label[e.ids] += 1
                if len(seen) % 40 == 0:  # before 63 doublings overflow
                    label = np.unique(label, return_inverse=True)[1].astype(np.int64)
        classes, label = np.unique(label, return_inverse=True)
        return label.astype(np.int32), len(classes)

    def _slots(self) -> tuple[np.ndarray, list[str], np.ndarray]:
        found: dict[bytes, int] = {}
        slots: list[np.ndarray] = []
        names: list[str] = []
        node_slot = np.zeros(len(self.nodes), np.int32)
        for index, node in enumerate(self.nodes):
            ranges = _ranges(np.concatenate([e.ids for e in node.edges] or [np.zeros(0, int)]))
            if len(ranges) > N_RANGES:
                raise ConfigError(
                    f"slot {node.name!r} has {len(ranges)} ranges of ids, at most {N_RANGES} are "
                    "possible; permute the rows of the vocabulary so that its ids stand together"
                )
            padded = _padded(ranges)
            key = padded.tobytes()
            if key not in found:
                found[key] = len(slots)
                slots.append(padded)
                names.append(node.name)
            node_slot[index] = found[key]
        return np.stack(slots), names, node_slot

    def _levels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What of each node's slot stays open at which budget, as rows of ranges by level."""
        rows: list[np.ndarray] = []
        blocks: dict[bytes, tuple[int, int]] = {}
        narrow = np.zeros((len(self.nodes), 8), np.int32)
        lowest = np.zeros(len(self.nodes), np.int32)
        steps: list[list[int]] = []
        for index, node in enumerate(self.nodes):
            if node.kind == STATIC:
                needs = sorted({e.need for e in node.edges if e.need > 0})
                block = [_padded(self._open_at(node, need)) for need in [0, *needs]]
            else:
                needs = []
                block = self._limited_block(node)
            if node.kind == LIMITED:
                values = [self.values[e.ids].min() for e in node.edges if e.limited]
                lowest[index] = min(values)
            key = np.stack(block).tobytes()
            if key not in blocks:
                blocks[key] = (len(rows), len(block) - 1)
                rows.extend(block)
            first, top = blocks[key]
            more = (node.layout, node.axis, node.shift, node.base, node.rest)
            narrow[index] = (node.kind, first, top, *more)
            steps.append(needs)
        width = max(1, *(len(s) for s in steps))
        thresholds = [s + [NO_LIMIT] * (width - len(s)) for s in steps]
        return np.stack(rows), narrow, lowest, np.array(thresholds, np.int32)

    def _open_at(self, node: Node, budget: int) -> np.ndarray:
        """Ranges of the edges that `budget` leaves open.

        Where closing ids between open ones leaves more than four ranges, the costliest of the
        open ones close too: the text stays legal, and that happens only next to the end.
        """
        edges = sorted((e for e in node.edges if e.need <= budget), key=lambda e: e.need)
        while True:
            ranges = _ranges(np.concatenate([e.ids for e in edges] or [np.zeros(0, int)]))
            if len(ranges) <= N_RANGES:
                return ranges
            edges.pop()

    def _limited_block(self, node: Node) -> list[np.ndarray]:
        always = [e.ids for e in node.edges if not e.limited]
        base = np.concatenate(always or [np.zeros(0, np.int64)])
        ids = np.concatenate([e.ids for e in node.edges if e.limited])
        if node.kind == OPEN_ORDER:
            return [_padded(_ranges(base)), _padded(_ranges(np.concatenate([base, ids])))]
        ids = ids[np.argsort(self.values[ids], kind="stable")]
        # Numbers whose ids are scattered may need too many ranges for a part of them: the largest
        # of that part close with it.
        sets = [np.concatenate([base, ids[:n]]) for n in range(len(ids) + 1)]
        return [_padded(_ranges(one)[:N_RANGES]) for one in sets]


def _ranges(ids: np.ndarray) -> np.ndarray:
    """Sorted half-open ranges (n, 2) of a set of ids."""
    ids = np.unique(ids)
    if not len(ids):
        return np.zeros((0, 2), np.int32)
    cuts = np.flatnonzero(np.diff(ids) != 1)
    starts = ids[np.concatenate([[0], cuts + 1])]
    ends = ids[np.concatenate([cuts, [len(ids) - 1]])] + 1
    return np.stack([starts, ends], 1).astype(np.int32)


def _padded(ranges: np.ndarray) -> np.ndarray:
    assert len(ranges) <= N_RANGES
    return np.concatenate([ranges, np.zeros((N_RANGES - len(ranges), 2), np.int32)])
