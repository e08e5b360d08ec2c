"""Claims about building the automaton's arrays."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.constraint import END
from polyglyph.errors import ConfigError
from polyglyph.sequence.table import Builder


def ids(*values: int) -> np.ndarray:
    return np.array(values)


def test_overlapping_sets_are_split_into_classes_and_each_id_finds_its_edge() -> None:
    builder = Builder(12)
    a, b = builder.node("a"), builder.node("b")
    builder.edge(a, np.arange(8), a)
    builder.edge(a, ids(9), b)
    builder.edge(b, ids(2, 3), a)  # a part of the first set, where it means something else
    builder.edge(b, ids(0, 1, 4), END)
    automaton = builder.build(a)
    states = np.array([[a, 0, 0, 0, 0, 9]] * 12 + [[b, 0, 0, 0, 0, 9]] * 12, np.int32)
    after = automaton.step(states, np.tile(np.arange(12), 2))[:, 0]
    assert after[:12].tolist() == [a] * 8 + [0, b, 0, 0]
    assert after[12:].tolist() == [END, END, a, a, END, 0, 0, 0, 0, 0, 0, 0]
    slots = automaton.slots[automaton.slot_of(states[[0, 12]])]
    assert slots.tolist() == [
        [[0, 8], [9, 10], [0, 0], [0, 0]],
        [[0, 5], [0, 0], [0, 0], [0, 0]],
    ]


def test_more_than_sixty_sets_still_make_classes() -> None:
    builder = Builder(130)
    nodes = [builder.node(f"n{i}") for i in range(100)]
    for i, node in enumerate(nodes):
        builder.edge(node, np.arange(i, i + 3), nodes[(i + 1) % 100])
    automaton = builder.build(nodes[0])
    for i, node in enumerate(nodes):
        states = np.array([[node, 0, 0, 0, 0, 9]] * 130, np.int32)
        legal = automaton.step(states, np.arange(130))[:, 0] != 0
        assert np.flatnonzero(legal).tolist() == [i, i + 1, i + 2]


def test_nodes_of_equal_ids_share_a_slot() -> None:
    builder = Builder(4)
    a, b = builder.node("size"), builder.node("size too")
    for node in (a, b):
        builder.edge(node, ids(1, 2), END)
    automaton = builder.build(a)
    assert automaton.tables.node_slot[a] == automaton.tables.node_slot[b]
    assert automaton.slot_names.count("size") == 1 and "size too" not in automaton.slot_names


def test_a_slot_of_five_ranges_is_refused() -> None:
    builder = Builder(10)
    builder.edge(builder.node("scattered"), ids(0, 2, 4, 6, 8), END)
    with pytest.raises(ConfigError, match="'scattered' has 5 ranges of ids, at most 4"):
        builder.build(2)


def test_a_small_budget_closes_the_costliest_edges_and_never_needs_a_fifth_range() -> None:
    builder = Builder(11)
    node = builder.node("next")
    needs = [3, 9, 4, 9, 5, 9, 6, 9, 7, 9]  # every second one is open at 8: five ranges
    for id, need in enumerate(needs):
        builder.edge(node, ids(id), END, need=need)
    builder.edge(node, ids(10), END)
    automaton = builder.build(node)
    budgets = [1, 3, 4, 8, 9]
    states = np.array([[node, 0, 0, 0, 0, b] for b in budgets], np.int32)
    open_ids = [np.flatnonzero(row).tolist() for row in automaton.allowed_mask(states)]
    assert open_ids == [[10], [0, 10], [0, 2, 10], [0, 2, 4, 10], list(range(11))]
