"""What stops a codec run: each guard says its sentence, and only when it is due."""

from __future__ import annotations

import math

import pytest
import torch

from polyglyph.errors import InputError, PolyglyphError
from polyglyph.train.guards import UNSIGNED_STEPS, Guards, check_finite


def test_a_loss_that_is_not_finite_is_named_with_its_step() -> None:
    check_finite("loss", 3.0, 1)
    for value in (math.nan, math.inf):
        with pytest.raises(PolyglyphError, match=rf"loss became {value} at step 7; the last"):
            check_finite("loss", value, 7)


@pytest.mark.parametrize("scale", [127.5, 32768.0])
def test_integers_where_fractions_are_due_stop_at_once(scale: float) -> None:
    batch = torch.linspace(-1, 1, 60).reshape(1, 3, 4, 5)
    Guards().check_batch(batch * 1.4, 1)
    with pytest.raises(InputError, match=r"training media \(step 3\) are due in \[-1, 1\]"):
        Guards().check_batch(batch * scale, 3)


def test_pixels_of_0_to_1_stop_after_some_batches_but_bright_pictures_do_not() -> None:
    bright, signed = torch.full((2, 3, 4, 4), 0.9), torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)
    guards = Guards()
    for step in range(UNSIGNED_STEPS - 1):
        guards.check_batch(bright, step)
    guards.check_batch(signed, 99)
    for step in range(2 * UNSIGNED_STEPS):
        guards.check_batch(bright, step)
    other = Guards()
    with pytest.raises(PolyglyphError, match=r"multiply them by 2 and subtract 1"):
        for step in range(UNSIGNED_STEPS):
            other.check_batch(bright, step)
    silent = Guards()
    for step in range(2 * UNSIGNED_STEPS):
        silent.check_batch(torch.zeros(1, 1, 9), step)


def test_collapse_is_called_after_200_steps_of_low_use() -> None:
    good = torch.arange(64).reshape(64, 1).expand(64, 2)
    bad = torch.stack([torch.arange(64), torch.zeros(64, dtype=torch.int64)], dim=1)
    guards = Guards()
    guards.check_collapse(bad, 64, 150, 150)
    guards.check_collapse(good, 64, 10, 160)  # one good window starts the count again
    guards.check_collapse(bad, 64, 199, 359)
    with pytest.raises(PolyglyphError, match=r"codebook collapse: .* for 200 steps \(step 360\)"):
        guards.check_collapse(bad, 64, 1, 360)


def test_the_counts_are_saved() -> None:
    guards = Guards()
    guards.low_use, guards.unsigned, guards.is_signed = 5, 6, True
    other = Guards()
    other.load_numbers({**guards.numbers(), "step": 3})
    assert other.numbers() == guards.numbers()
