"""The tables that the Triton kernels of cross_entropy follow, followed here in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.kernels.cross_entropy_blocks import (
    UNIT,
    as_groups,
    backward_passes,
    forward_work,
)

M, N, V = 8, 16, 133
GROUPS = as_groups(
    [
        (0, 21, [(0, 70)]),
        (21, 24, [(3, 5), (40, 41), (60, 100), (132, 133)]),
        (24, 200, [(0, V)]),
        (200, 201, [(96, 112)]),
    ]
)


def legal() -> np.ndarray:
    """(rows, V) bool"""
    found = np.zeros((201, V), bool)
    for group in np.asarray(GROUPS).reshape(-1, 10):
        for start, stop in group[2:].reshape(-1, 2):
            found[group[0] : group[1], start:stop] = True
    return found


@pytest.mark.parametrize("split", [1, 3, 100])
def test_every_legal_logit_is_in_one_part_of_its_row(split: int) -> None:
    work = forward_work(GROUPS, V, M, N, split)
    seen = np.zeros((201, V + N), int)
    numbers: list[set[int]] = [set() for _ in range(201)]
    for begin, end, _, first, stop, part in work.jobs:
        assert 0 < end - begin <= M and 0 < stop - first <= split
        seen[begin:end, first * N : stop * N] += 1
        for row in range(begin, end):
            assert part not in numbers[row]
            numbers[row].add(part)
    assert (seen[:, :V][legal()] == 1).all() and seen.max() == 1
    assert [sorted(n) for n in numbers] == [list(range(n)) for n in work.parts]


def test_how_a_row_is_split_does_not_depend_on_the_other_rows() -> None:
    alone = forward_work(as_groups([(0, 1, [(0, V)])]), V, M, N, 3)
    among = forward_work(GROUPS, V, M, N, 3)
    of_row = among.jobs[(among.jobs[:, 0] <= 100) & (among.jobs[:, 1] > 100)]
    assert alone.jobs[:, 3:].tolist() == of_row[:, 3:].tolist()


@pytest.mark.parametrize("most", [1, 8000, 1 << 20])
def test_following_the_passes_gives_both_products(most: int) -> None:
    generator = np.random.default_rng(0)
    hidden, weight = generator.normal(size=(201, 5)), generator.normal(size=(V, 5))
    dlogits = generator.normal(size=(201, V)) * legal()
    wide = np.pad(dlogits, ((0, M), (0, N)))
    padded = np.pad(weight, ((0, N), (0, 0)))
    grad_hidden, grad_weight = np.zeros_like(hidden), np.full((V + N, 5), np.nan)
    passes = backward_passes(GROUPS, V, M, N, most)
    assert len(passes) == {1: 9, 8000: 5, 1 << 20: 1}[most]
    assert most == 1 or max(one.n_elements for one in passes) <= most
    for one in passes:
        buffer = np.full(one.n_elements, np.nan)
        for begin, end, _, tile, offset, stride in one.logit_jobs:
            for lane in range(M):
                place = (offset + lane * stride) * UNIT
                assert np.isnan(buffer[place : place + N]).all()
                row = wide[begin + lane, tile * N : tile * N + N]
                buffer[place : place + N] = row if begin + lane < end else 0
        assert not np.isnan(buffer).any()
        for begin, end, row, first, stop in one.hidden_jobs:
            for offset, stride, id, n in one.hidden_panels[first:stop]:
                for lane in range(end - begin):
                    place = (offset + (row + lane) * stride) * UNIT
                    grad_hidden[begin + lane] += buffer[place : place + n] @ padded[id : id + n]
        for tile, first, stop in one.weight_jobs:
            total = np.zeros((N, 5))
            for offset, stride, begin, end in one.weight_panels[first:stop]:
                for row in range(begin, end):
                    place = (offset + (row - begin) * stride) * UNIT
                    total += np.outer(buffer[place : place + N], hidden[row])
            assert np.isnan(grad_weight[tile * N : tile * N + N]).all()
            grad_weight[tile * N : tile * N + N] = total
    np.testing.assert_allclose(grad_hidden, dlogits @ weight, atol=1e-12)
    np.testing.assert_allclose(grad_weight[:V], dlogits.T @ hidden, atol=1e-12)
