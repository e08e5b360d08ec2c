"""Action codec: bins per dimension, ranges in the meta, half a bin of error."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.errors import FormatError, InputError
from polyglyph.media import Action
from polyglyph.tokenizers.action import ActionConfig, ActionTokenizer
from polyglyph.tokenizers.base import ActionMeta, CodeGrid

SCALE = np.array([0.5, 3.0, 200.0])


def random_actions(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(-1, 1, (11, 3)) * SCALE).astype(np.float32)


@pytest.mark.parametrize("n_bins", [5, 64])
def test_a_round_trip_is_off_by_at_most_half_a_bin_of_each_dimension(n_bins: int) -> None:
    fixed = ActionConfig(n_bins=n_bins, low=(-0.5, -3, -200), high=(0.5, 3, 200))
    free = ActionConfig(n_bins=n_bins, low=(), high=())
    for config in (fixed, free):
        tokenizer = ActionTokenizer(config)
        values = random_actions(1)
        grid = tokenizer.encode(Action(values))
        back = tokenizer.decode(grid).values
        width = (np.array(grid.meta.high) - np.array(grid.meta.low)) / n_bins
        assert grid.codes.shape == (1, 11, 3)
        assert (np.abs(back - values) <= width / 2 + 1e-5 * SCALE).all()


def test_one_range_serves_any_number_of_dimensions_and_clips_beyond() -> None:
    tokenizer = ActionTokenizer()
    grid = tokenizer.encode(Action(np.array([[-9.0, 0.0, 9.0, 1.0, -1.0]], np.float32)))
    assert grid.codes[0, 0].tolist() == [0, 32, 63, 63, 0]
    assert grid.meta == ActionMeta((-1.0,) * 5, (1.0,) * 5) == tokenizer.default_meta((1, 5))


def test_a_constant_dimension_decodes_to_itself() -> None:
    tokenizer = ActionTokenizer(ActionConfig(low=(), high=()))
    values = np.full((4, 2), 7.0, np.float32)
    back = tokenizer.decode(tokenizer.encode(Action(values))).values
    assert np.allclose(back, values, atol=1e-4)


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((0, 2)), np.array([[np.nan, 0.0]]), np.zeros((2, 2))]
)
def test_bad_actions_are_refused(values: np.ndarray) -> None:
    tokenizer = ActionTokenizer(ActionConfig(low=(0, 0, 0), high=(1, 1, 1)))
    with pytest.raises(InputError):
        tokenizer.encode(Action(values.astype(np.float32)))


def test_ranges_that_do_not_fit_the_grid_are_refused() -> None:
    grid = CodeGrid("action", np.zeros((1, 2, 3), np.int32), ActionMeta((0.0,), (1.0,)))
    with pytest.raises(FormatError, match="3 dimensions"):
        ActionTokenizer().decode(grid)


def test_a_saved_codec_loads_equal(tmp_path) -> None:
    tokenizer = ActionTokenizer(ActionConfig(n_bins=9, low=(0.0, -1.0), high=(1.0, 2.5)))
    tokenizer.save(tmp_path)
    loaded = ActionTokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.config == tokenizer.config
