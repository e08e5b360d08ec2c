"""Procedural pictures for codecs that are to carry photographs: pure, of any side, and of the
statistics that are known of natural pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polyglyph.config import build
from polyglyph.data import rich_pictures as module
from polyglyph.data.media_batches import MediaBatches, MediaDataConfig
from polyglyph.data.rich_pictures import CANVAS, make_canvas, rich_picture
from polyglyph.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """From 32 canvases (32, 128, 128, 3)."""
    return np.stack([rich_picture("image", 3, index, 128) for index in range(32)])


def test_a_picture_is_a_pure_function_of_seed_and_index(pictures: np.ndarray) -> None:
    make_canvas.cache_clear()
    for index in (31, 2, 7):
        assert np.array_equal(rich_picture("image", 3, index, 128), pictures[index])
    assert not np.array_equal(rich_picture("image", 4, 2, 128), pictures[2])
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("side", [8, 37, 72, CANVAS])
def test_a_picture_has_the_side_asked_for(side: int) -> None:
    picture = rich_picture("image", 3, 5, side)
    assert picture.shape == (side, side, 3) and picture.dtype == np.uint8


def test_neighbours_in_a_batch_are_cuts_of_different_canvases() -> None:
    """And every canvas serves several items of its block."""
    block = module._BLOCK
    canvases = [i // block * module._CANVASES + i % module._CANVASES for i in range(2 * block)]
    for start in range(0, 2 * block - 16, 16):
        assert len(set(canvases[start : start + 16])) == 16
    assert len(set(canvases)) == 2 * module._CANVASES


def test_another_modality_and_a_side_beyond_the_canvas_are_refused() -> None:
    with pytest.raises(InputError, match="source 'rich' has no audio"):
        rich_picture("audio", 0, 0)
    with pytest.raises(InputError, match=f"at most {CANVAS} pixels a side, got 257"):
        rich_picture("image", 0, 0, CANVAS + 1)


def test_the_config_gives_rich_pictures_their_side_and_no_other_built_in_source() -> None:
    config = build(MediaDataConfig, {"source": "rich", "side": 24, "batch_size": 2}, "the test")
    batch = MediaBatches("image", config, 3).batch(1)
    assert np.array_equal(batch, [rich_picture("image", 3, i, 24) for i in (2, 3)])
    with pytest.raises(ConfigError, match="source 'leaves' has side = 72; leave side out"):
        build(MediaDataConfig, {"mixture": {"rich": 1, "leaves": 1}, "side": 24}, "the test")


def test_power_falls_with_frequency_as_in_natural_pictures(pictures: np.ndarray) -> None:
    """By about 1/f² (Burton and Moorhead, 1987; Field, 1987): the exponent of the mean power."""
    grey = pictures.astype(np.float64).mean(-1)
    window = np.hanning(128)[:, None] * np.hanning(128)
    centred = (grey - grey.mean((1, 2), keepdims=True)) * window
    power = (abs(np.fft.fft2(centred)) ** 2).mean(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    edges = np.geomspace(3 / 128, 0.4, 8)
    bands = [power[(f >= a) & (f < b)].mean() for a, b in itertools.pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(bands), 1)[0]
    assert -2.9 < slope < -1.5


def test_brightness_varies_more_than_colour_and_orange_to_blue_more_than_green(
    pictures: np.ndarray,
) -> None:
    red, green, blue = np.moveaxis(pictures.reshape(-1, 3).astype(np.float64), 1, 0)
    brightness = (red + green + blue).std() / 3**0.5
    daylight = (red - blue).std() / 2**0.5
    rest = (red - 2 * green + blue).std() / 6**0.5
    assert brightness > 1.5 * daylight > 2.0 * rest
    assert rest > 3, "not grey"


def test_patches_are_flat_and_busy_by_turns(pictures: np.ndarray) -> None:
    """Variances within 8 × 8 patches are spread over orders of magnitude, as photographs' are."""
    patches = pictures.reshape(32, 16, 8, 16, 8, 3).astype(np.float64).mean(-1)
    within = patches.var(axis=(2, 4)).flatten()
    low, middle, high = np.quantile(within, [0.1, 0.5, 0.9])
    assert low < 15 and middle < 600 and high > 10 * middle / 3 and high > 400
