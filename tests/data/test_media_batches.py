"""Batches of media: shares of a mixture, purity, what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from polyglyph.config import build
from polyglyph.data.media_batches import SOURCES, MediaBatches, MediaDataConfig, schedule
from polyglyph.errors import ConfigError, InputError
from polyglyph.lookup import resolve


def batches_of(modality: str = "image", seed: int = 3, **data: object) -> MediaBatches:
    config = build(MediaDataConfig, {"batch_size": 3, **data}, "the test")
    return MediaBatches(modality, config, seed)


@pytest.mark.parametrize("weights", [(1,), (7, 1), (12, 1, 1), (2, 3, 5), (4, 4)])
def test_every_source_has_its_exact_share_of_a_period_and_comes_evenly(
    weights: tuple[int, ...],
) -> None:
    order = schedule(weights)
    assert Counter(order) == dict(enumerate(weights))
    for i, weight in enumerate(weights):
        places = [k for k, source in enumerate(order) if source == i]
        steps = np.diff([*places, places[0] + len(order)])
        assert max(steps) - min(steps) <= 2 + len(order) // (2 * weight)
        # Any stretch holds the share of the source, give or take one.
        for length in range(1, len(order) + 1):
            count = sum(k < length for k in places)
            assert abs(count - length * weight / len(order)) <= 1


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    mixture = {"shapes": 2, "leaves": 1}
    one, other = batches_of(mixture=mixture), batches_of(mixture=mixture)
    due = [one.batch(step) for step in range(4)]
    for step in (3, 0, 2, 1):
        assert np.array_equal(other.batch(step), due[step])
    assert not np.array_equal(due[0], due[1])
    assert not np.array_equal(batches_of(seed=4, mixture=mixture).batch(0), due[0])


def test_item_i_of_a_run_is_the_same_whatever_the_batch_size() -> None:
    mixture = {"shapes": 3, "leaves": 2}
    small = np.concatenate([batches_of(mixture=mixture).batch(step) for step in range(4)])
    large = np.concatenate(
        [batches_of(mixture=mixture, batch_size=6).batch(step) for step in range(2)]
    )
    assert np.array_equal(small, large)


def test_items_come_from_the_source_that_the_schedule_names() -> None:
    found = batches_of(mixture={"leaves": 1, "shapes": 2}, batch_size=6).batch(1)
    sources = [resolve(SOURCES[name]) for name in ("leaves", "shapes")]
    order = schedule((1, 2))
    for i, item in enumerate(found):
        index = 6 + i
        assert np.array_equal(item, sources[order[index % 3]]("image", 3, index))


@pytest.mark.parametrize(
    ("modality", "mixture", "shape", "dtype"),
    [
        ("image", {"shapes": 1, "leaves": 1}, (3, 72, 72, 3), np.uint8),
        ("video", {"shapes": 1, "leaves": 1}, (3, 8, 72, 72, 3), np.uint8),
        ("audio", {"shapes": 1, "tones": 1}, (3, 1, 16_000), np.float32),
    ],
)
def test_a_batch_has_one_shape_and_type(
    modality: str, mixture: dict[str, int], shape: tuple[int, ...], dtype: type
) -> None:
    batch = batches_of(modality, mixture=mixture).batch(0)
    assert batch.shape == shape and batch.dtype == dtype


def test_a_source_of_no_weight_is_left_out() -> None:
    mixture = {"tones": 0, "shapes": 1}  # tones have no pictures
    assert np.array_equal(batches_of(mixture=mixture).batch(1), batches_of().batch(1))


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown data source 'leafs'; did you mean 'leaves'"):
        batches_of(mixture={"leafs": 1})


def test_a_source_without_the_modality_is_refused_with_what_it_has() -> None:
    batches = batches_of("video", mixture={"tones": 1})
    with pytest.raises(InputError, match=r"source 'tones' has no video; expected one of audio"):
        batches.batch(0)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({}, "no source has a weight"),
        ({"shapes": 0}, "no source has a weight"),
        ({"shapes": -1}, "greater than or equal to 0"),
        ({"shapes": 0.5}, "integer"),
    ],
)
def test_a_mixture_of_nothing_is_refused(mixture: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"the test: key 'mixture.*{message}"):
        batches_of(mixture=mixture)
