"""The readers of pictures, clips and sounds: perfect on ground truth, steady under damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from polyglyph.data.shapes.check import UNKNOWN, observe, read_clip, read_picture
from polyglyph.data.shapes.check_sound import read_sound
from polyglyph.data.shapes.clip import clip
from polyglyph.data.shapes.picture import BACKGROUND, picture
from polyglyph.data.shapes.scene import COLORS, RISES, SHAPES, SIZES, Scene, Thing, make_scene
from polyglyph.data.shapes.sound import GLIDE_HZ, LEVEL, PITCH_HZ, sound

_MEDIA = {
    "image": (picture, read_picture, 500),
    "video": (clip, read_clip, 200),
    "audio": (sound, read_sound, 300),
}


def _soften(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    soft = pixels.astype(np.float32)
    for axis in (-3, -2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    return np.clip(soft * 0.9 + rng.normal(0, 10, soft.shape), 0, 255).astype(np.uint8)


def _muffle(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (0.85 * wave + rng.normal(0, 0.01, wave.shape)).astype(np.float32)


def _wrong(modality: str, damage: Callable | None) -> list[int]:
    show, read, n = _MEDIA[modality]
    rng = np.random.default_rng(0)
    wrong = []
    for i in range(n):
        scene = make_scene(11, i, "test", held_out=i % 3 == 0)
        shown = show(scene) if damage is None else damage(show(scene), rng)
        seen = [replace(thing, fit=1.0) for thing in read(shown)]
        if seen != observe(scene, modality):
            wrong.append(i)
    return wrong


@pytest.mark.parametrize("modality", sorted(_MEDIA))
def test_ground_truth_is_read_without_a_mistake(modality):
    assert _wrong(modality, None) == []


@pytest.mark.parametrize("modality", sorted(_MEDIA))
def test_paled_soft_and_noisy_media_are_still_read(modality):
    wrong = _wrong(modality, _muffle if modality == "audio" else _soften)
    assert len(wrong) <= 0.02 * _MEDIA[modality][2]


def test_every_kind_of_thing_is_told_apart_in_every_medium():
    for shape in SHAPES:
        for color in COLORS:
            for size in SIZES:
                scene = Scene((Thing(shape, color, size, (1, 1), ("up", "up")),))
                for modality, (show, read, _) in _MEDIA.items():
                    (seen,) = read(show(scene))
                    assert (seen.shape, seen.color, seen.size) == (shape, color, size), modality


@pytest.mark.parametrize("level", [0, 24, 128, 255])
def test_flat_pictures_hold_no_shape_of_ours(level):
    flat = np.full((72, 72, 3), level, np.uint8)
    assert all(thing.shape in (UNKNOWN, "square", "circle") for thing in read_picture(flat))
    assert read_picture(np.broadcast_to(np.array(BACKGROUND, np.uint8), (72, 72, 3))) == []


def test_a_smear_counts_as_an_unknown_thing():
    pixels = picture(Scene(())).copy()
    pixels[2:20:4, 2:20] = 200
    (seen,) = read_picture(pixels)
    assert seen.shape == UNKNOWN and seen.cell == (0, 0)


def test_garbage_is_read_as_something_without_a_crash():
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (5, 37, 91, 3), dtype=np.uint8)
    assert isinstance(read_picture(noise[0]), list)
    assert isinstance(read_clip(noise), list)
    assert isinstance(read_sound(rng.normal(0, 9, (2, 777)).astype(np.float32)), list)
    assert isinstance(read_sound(np.full(16_000, np.nan, np.float32)), list)
    assert read_sound(np.zeros(0, np.float32)) == []


def test_a_picture_of_another_size_is_read_alike():
    scene = make_scene(12, 4, n_objects=3)
    double = picture(scene).repeat(2, 0).repeat(2, 1)
    assert [t.cell for t in read_picture(double)] == [t.cell for t in scene.things]
    assert read_picture(double) == read_picture(picture(scene))


def test_a_tone_has_the_pitch_and_loudness_of_its_thing():
    for color in COLORS:
        for size in SIZES:
            wave = sound(Scene((Thing("circle", color, size, (1, 1)),)))[:14_720]
            peak = np.abs(np.fft.rfft(wave, 1 << 18)).argmax() * 16_000 / (1 << 18)
            assert abs(peak / PITCH_HZ[color] - 1) < 0.003
            assert abs(np.sqrt(np.mean(wave**2)) / LEVEL[size] - 1) < 0.03
    assert 20 * np.log10(LEVEL["big"] / LEVEL["small"]) >= 8


def test_sounds_stay_below_their_peak_and_glide_through_the_pitch():
    for i in range(60):
        assert np.abs(sound(make_scene(13, i))).max() <= 0.9
    for rise in RISES:
        motion = "still" if rise == "level" else rise
        wave = sound(Scene((Thing("circle", "red", "big", (1, 1), (motion, motion)),)))[:14_720]
        crossings = np.flatnonzero((wave[:-1] < 0) & (wave[1:] >= 0))
        hz = 16_000 / np.diff(crossings)
        step = GLIDE_HZ * {"level": 0, "up": 1, "down": -1}[rise]
        assert np.allclose(np.median(hz[2:15]), PITCH_HZ["red"] - step, atol=1)
        assert np.allclose(np.median(hz[len(hz) // 2 - 5 :][:10]), PITCH_HZ["red"], atol=1)
        assert np.allclose(np.median(hz[-15:-2]), PITCH_HZ["red"] + step, atol=1)
