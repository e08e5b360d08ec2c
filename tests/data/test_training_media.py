"""Single media for codec training: pure, of the world's sizes, of the kinds that are said."""

from __future__ import annotations

import importlib.util
import random

import numpy as np
import pytest

from polyglyph.data import training_media as module
from polyglyph.data.media_batches import SOURCES
from polyglyph.data.shapes.check import read_clip, read_picture
from polyglyph.data.shapes.check_sound import read_sound
from polyglyph.data.shapes.picture import draw
from polyglyph.data.shapes.scene import HELD_OUT, make_scene
from polyglyph.errors import InputError
from polyglyph.lookup import resolve

KINDS = [
    ("shapes", "image"),
    ("shapes", "video"),
    ("shapes", "audio"),
    ("leaves", "image"),
    ("leaves", "video"),
    ("tones", "audio"),
    ("speech", "audio"),
    ("rich", "image"),
    ("music", "audio"),
    ("voices", "audio"),
]
FORMS = {
    "image": ((72, 72, 3), np.uint8),
    "video": ((8, 72, 72, 3), np.uint8),
    "audio": ((1, 16_000), np.float32),
}


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(kind))
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    source, modality = request.param
    if source in ("speech", "voices") and importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip("the extra `speech` is not installed")
    return source, modality


def make(kind: tuple[str, str], seed: int, index: int) -> np.ndarray:
    return resolve(SOURCES[kind[0]])(kind[1], seed, index)


def test_shape_type_and_range_are_those_of_the_modality(kind: tuple[str, str]) -> None:
    shape, dtype = FORMS[kind[1]]
    for index in (0, 5, 1_000_003):
        item = make(kind, 2, index)
        assert item.shape == shape and item.dtype == dtype
        assert item.std() > 1e-3, "there is something to see or hear"
        if dtype == np.float32:
            assert np.isfinite(item).all() and abs(item).max() <= 1


def test_a_medium_is_a_pure_function_of_seed_and_index(kind: tuple[str, str]) -> None:
    due = {index: make(kind, 2, index) for index in (0, 1, 70)}
    module._spoken.cache_clear()
    random.seed(9)
    np.random.seed(9)
    for index in (70, 0, 1):
        assert np.array_equal(make(kind, 2, index), due[index])
    assert not np.array_equal(due[0], due[1])
    assert not np.array_equal(make(kind, 3, 0), due[0])


def test_every_source_is_tried_here() -> None:
    assert {source for source, _ in KINDS} == set(SOURCES)
    for name in SOURCES:
        with pytest.raises(InputError, match=f"source '{name}' has no region; expected one of"):
            resolve(SOURCES[name])("region", 0, 0)


def test_pictures_of_the_world_are_at_rest_in_five_of_eight_and_moving_in_two() -> None:
    rest = later = 0
    for index in range(64):
        scene = make_scene(1 + module._SEED_OFFSET, index)
        item = module.shapes("image", 1, index)
        if np.array_equal(item, draw(scene)):
            rest += 1  # a scene that stands still counts here at any frame
        elif any(np.array_equal(item, draw(scene, frame)) for frame in range(1, 8)):
            later += 1
    assert rest >= 40 and later >= 4 and rest + later == 56


def test_media_of_the_world_show_training_scenes_that_the_checkers_read() -> None:
    for index in range(0, 5):
        clip = module.shapes("video", 4, index)
        assert np.array_equal(clip[0], module.shapes("image", 4, index))
        readings = [
            read_picture(clip[0]),
            read_clip(clip),
            read_sound(module.shapes("audio", 4, index)),
        ]
        for things in readings:
            assert len(things) == len(readings[0]) > 0
            assert not {(t.color, t.shape) for t in things} & HELD_OUT


def test_clips_of_leaves_slide_by_whole_pixels_at_one_speed() -> None:
    speeds = set()
    for index in range(6):
        clip = module.leaves("video", 0, index)
        step = next(
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.array_equal(np.roll(clip[0], (dy, dx), (0, 1)), clip[1])
        )
        for f in range(8):
            moved = np.roll(clip[0], (step[0] * f, step[1] * f), (0, 1))
            assert np.array_equal(clip[f], moved)
        speeds.add(step)
    assert len(speeds) > 1


def test_leaves_are_of_many_colours_and_tones_of_many_levels() -> None:
    pictures = np.stack([module.leaves("image", 0, i) for i in range(8)])
    assert pictures.min() < 30 and pictures.max() > 225
    levels = [module.tones("audio", 0, i).std() for i in range(8)]
    assert max(levels) > 3 * min(levels)
