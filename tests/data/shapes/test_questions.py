"""Questions have one answer, phrases one referent, and regions lie where the pixels are."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from polyglyph.data.shapes.picture import BACKGROUND, picture
from polyglyph.data.shapes.questions import FAMILIES, NUMBERS, phrase, question
from polyglyph.data.shapes.regions import box_of, overlap, point_of, time_of
from polyglyph.data.shapes.scene import SIDE, Scene, Thing, make_scene
from polyglyph.data.shapes.sound import N_STEPS, STEP, sound


def _ask(n: int, modality: str):
    for i in range(n):
        scene = make_scene(31, i)
        yield scene, question(scene, random.Random(i), modality)


def test_all_families_are_asked_and_motion_of_clips_only():
    image = Counter(q.family for _, q in _ask(400, "image"))
    video = Counter(q.family for _, q in _ask(400, "video"))
    assert set(video) == set(FAMILIES) and set(image) == set(FAMILIES) - {"motion"}


def test_yes_and_no_are_about_as_frequent():
    answers = Counter(q.answer for _, q in _ask(3000, "image") if q.family in ("there", "beside"))
    assert set(answers) == {"yes", "no"}
    assert 0.3 < answers["yes"] / sum(answers.values()) < 0.7


def test_counts_agree_with_the_scene_word_by_word():
    for scene, asked in _ask(600, "image"):
        if asked.family != "count":
            continue
        word = asked.text.split()[2]
        word = {"crosses": "cross"}.get(word, word.rstrip("s"))
        named = [" ".join((t.size, t.color, t.shape)).split() for t in scene.things]
        n = len(named) if word == "thing" else sum(word in words for words in named)
        assert asked.answer == NUMBERS[n], asked


def test_a_phrase_fits_one_thing_only():
    for i in range(300):
        scene = make_scene(32, i)
        index = i % len(scene.things)
        words = phrase(scene, index, random.Random(i)).split()[1:]
        names = [{t.size, t.color, t.shape, "thing"} for t in scene.things]
        assert [set(words) <= name for name in names].index(True) == index
        assert sum(set(words) <= name for name in names) == 1


def test_boxes_and_points_lie_where_the_pixels_are():
    for i in range(30):
        scene = make_scene(33, i)
        for index, thing in enumerate(scene.things):
            lit = np.abs(picture(Scene((thing,))).astype(int) - BACKGROUND).sum(-1) > 60
            rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
            seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SIDE
            assert np.abs(box_of(scene, index) - seen).max() <= 1.01 / SIDE
            assert np.allclose(point_of(scene, index), (seen[:2] + seen[2:]) / 2, atol=1.01 / SIDE)


def test_times_hold_the_energy_of_their_thing():
    scene = Scene((Thing("ring", "red", "big", (0, 0)), Thing("ring", "blue", "small", (0, 2))))
    wave = sound(scene)
    (a0, a1), (b0, b1) = (np.round(time_of(scene, i) * len(wave)).astype(int) for i in (0, 1))
    assert a0 == 0 and a1 == b0 and b1 == N_STEPS * STEP
    assert np.sum(wave[a0:a1] ** 2) > 5 * np.sum(wave[b0:b1] ** 2) > 0


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
        ([0, 0, 0.5, 1], [0.25, 0, 0.75, 1], 1 / 3),
        ([0, 0, 0.2, 0.2], [0.5, 0.5, 1, 1], 0.0),
        ([0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.5, 0.5], 0.0),
        ([0, 0.5], [0.25, 0.5], 0.5),
        ([0, 0.5], [0, 0, 1, 1], 0.0),
    ],
)
def test_overlap_is_intersection_over_union(one, other, share):
    assert overlap(np.array(one), np.array(other)) == pytest.approx(share)
