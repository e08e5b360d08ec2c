from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polyglyph.data.packing import pack_rows


def best_fit(lengths: list[int], room: int, order: list[int]) -> list[list[int]]:
    """The same by trying every open row; of equally full ones the one that got full last."""
    rows: list[list[int]] = []
    changed: list[int] = []
    for clock, document in enumerate(order):
        left = [room - sum(lengths[d] for d in row) for row in rows]
        fitting = [i for i, free in enumerate(left) if free >= lengths[document]]
        if fitting:
            row = min(fitting, key=lambda i: (left[i], -changed[i]))
            rows[row].append(document)
            changed[row] = clock
        else:
            rows.append([document])
            changed.append(clock)
    return rows


@given(st.lists(st.integers(1, 13), max_size=40), st.randoms(use_true_random=False))
def test_rows_are_those_of_an_exhaustive_best_fit(lengths: list[int], random) -> None:
    order = list(range(len(lengths)))
    random.shuffle(order)
    plan = pack_rows(np.array(lengths, np.int64), 13, np.array(order, np.int64))
    assert [plan.row(i).tolist() for i in range(plan.n_rows)] == best_fit(lengths, 13, order)


@given(st.lists(st.integers(1, 97), min_size=1, max_size=300))
def test_every_document_stands_once_and_no_row_overflows(lengths: list[int]) -> None:
    plan = pack_rows(np.array(lengths), 97, np.arange(len(lengths)))
    assert sorted(plan.documents.tolist()) == list(range(len(lengths)))
    sums = [sum(lengths[d] for d in plan.row(i)) for i in range(plan.n_rows)]
    assert max(sums) <= 97
    assert plan.n_ids == sum(sums) and plan.padding == 1 - sum(sums) / (97 * len(sums))


def test_short_documents_among_long_ones_leave_little_padding() -> None:
    rng = np.random.default_rng(5)
    lengths = np.concatenate([rng.integers(90, 130, 700), rng.integers(8, 30, 700)])
    plan = pack_rows(lengths, 512, rng.permutation(len(lengths)))
    assert plan.padding < 0.02
