"""Which rows of the head each position reads, and in what order."""

from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.cross_entropy_plan import IGNORE, make_plan, merge

# Four slots over 30 ids: two ranges, one id, a range, neighbours.
TABLE = torch.tensor(
    [
        [[0, 5], [20, 24], [0, 0], [0, 0]],
        [[7, 8], [0, 0], [0, 0], [0, 0]],
        [[8, 20], [0, 0], [0, 0], [0, 0]],
        [[0, 5], [5, 9], [0, 0], [0, 0]],
    ]
)


def test_neighbours_become_one_range_and_padding_goes() -> None:
    assert merge([[0, 5], [5, 9], [0, 0], [12, 13]]) == ((0, 9), (12, 13))
    assert merge([[0, 0]]) == ()


def test_positions_of_one_slice_are_neighbours_and_the_rest_is_left_out() -> None:
    slots = torch.tensor([2, 0, 1, 3, 0, 2, 2])
    targets = torch.tensor([9, 21, 7, 6, 3, IGNORE, 19])
    weights = torch.tensor([1.0, 1, 1, 0, 2, 1, 1])
    plan = make_plan(targets, slots, TABLE, weights, 30, ())
    # One id (2), a weight of 0 (3) and the ignored target (5) carry no loss.
    assert plan.order.tolist() == [1, 4, 0, 6]
    assert plan.targets.tolist() == [21, 3, 9, 19] and plan.weights.tolist() == [1, 2, 1, 1]
    assert plan.groups == [(0, 2, ((0, 5), (20, 24))), (2, 4, ((8, 20),))]


def test_full_slots_read_every_row_and_come_last() -> None:
    slots, targets = torch.tensor([0, 2, 0]), torch.tensor([1, 8, 22])
    for full in ([0], torch.tensor([True, False, False, False])):
        plan = make_plan(targets, slots, TABLE, None, 30, full)
        assert plan.order.tolist() == [1, 0, 2]
        assert plan.groups == [(0, 1, ((8, 20),)), (1, 3, ((0, 30),))]


def test_a_target_outside_its_slot_is_named_by_its_position() -> None:
    with pytest.raises(ValueError, match="position 1"):
        make_plan(torch.tensor([8, 8]), torch.tensor([2, 0]), TABLE, None, 30, ())
