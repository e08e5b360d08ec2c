"""Scenes: pure, legal, and without held-out pairs in training."""

from __future__ import annotations

from collections import Counter

import numpy as np

from polyglyph.data.shapes.clip import clip
from polyglyph.data.shapes.picture import BACKGROUND, RGB, depth, mask, picture
from polyglyph.data.shapes.scene import (
    CELLS,
    COLORS,
    HELD_OUT,
    N_FRAMES,
    SHAPES,
    SIDE,
    Scene,
    Thing,
    box,
    is_legal,
    make_scene,
    path,
)


def test_a_scene_depends_on_seed_split_and_index_only():
    forward = [make_scene(7, i) for i in range(31)]
    backward = [make_scene(7, i) for i in reversed(range(31))][::-1]
    assert forward == backward
    assert forward != [make_scene(8, i) for i in range(31)]
    assert forward != [make_scene(7, i, "test") for i in range(31)]


def test_training_scenes_hold_every_pair_but_the_held_out():
    pairs = {(t.color, t.shape) for i in range(1500) for t in make_scene(1, i).things}
    assert pairs == {(c, s) for c in COLORS for s in SHAPES} - HELD_OUT


def test_held_out_scenes_hold_a_held_out_pair_and_only_on_request():
    for i in range(101):
        asked = make_scene(1, i, "test", held_out=True)
        assert sum((t.color, t.shape) in HELD_OUT for t in asked.things) == 1
        assert not any((t.color, t.shape) in HELD_OUT for t in make_scene(1, i, "test").things)


def test_scenes_have_one_to_three_distinct_things_in_distinct_cells():
    counts: Counter[int] = Counter()
    for i in range(600):
        things = make_scene(2, i).things
        counts[len(things)] += 1
        assert len({(t.color, t.shape) for t in things}) == len(things)
        assert [t.cell[::-1] for t in things] == sorted(t.cell[::-1] for t in things)
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 150
    assert all(len(make_scene(2, i, n_objects=3).things) == 3 for i in range(20))


def test_motions_are_legal_at_every_frame_by_drawing_each_thing_alone():
    for i in range(60):
        scene = make_scene(3, i)
        assert is_legal(scene)
        alone = [clip(Scene((thing,))).astype(int) - BACKGROUND for thing in scene.things]
        covered = sum((np.abs(c).sum(-1) > 120).astype(int) for c in alone)
        assert covered.max() == 1
        for frames in alone:
            area = (np.abs(frames).sum(-1) > 0).sum((1, 2))
            assert area.min() > 0.75 * area.max()  # nothing is cut by the picture's edge


def test_a_motion_changes_once_and_only_alone():
    changed = 0
    for i in range(400):
        things = make_scene(4, i).things
        changing = [t for t in things if t.motion[0] != t.motion[1]]
        assert not changing or len(things) == 1
        changed += len(changing)
    assert changed > 15
    twice = Thing("ring", "red", "big", (1, 1), ("up", "left"))
    assert is_legal(Scene((twice,)))
    assert not is_legal(Scene((twice, Thing("ring", "blue", "big", (2, 2)))))


def test_leaving_the_picture_and_bumping_are_illegal():
    assert not is_legal(Scene((Thing("ring", "red", "small", (0, 1), ("up", "up")),)))
    one = Thing("ring", "red", "big", (1, 0), ("right", "right"))
    assert is_legal(Scene((one,)))
    assert not is_legal(Scene((one, Thing("cross", "red", "big", (1, 1)))))
    assert is_legal(Scene((one, Thing("cross", "red", "big", (1, 1), ("right", "right")))))


def test_the_picture_is_the_first_frame_and_its_things_fill_their_boxes():
    for cell in CELLS:
        scene = Scene((Thing("square", "green", "small", cell),))
        pixels = picture(scene)
        assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
        assert np.array_equal(pixels, clip(scene)[0]) and len(clip(scene)) == N_FRAMES
        x0, y0, x1, y1 = (round(v * SIDE) for v in box(scene.things[0]))
        inside = np.all(pixels == RGB["green"], -1)
        assert inside[y0:y1, x0:x1].all() and inside.sum() == 14 * 14


def test_masks_and_depth_cover_what_the_picture_shows():
    scene = make_scene(5, 9, n_objects=3)
    lit = np.abs(picture(scene).astype(int) - BACKGROUND).sum(-1) > 0
    masks = sum(mask(scene, i)[..., 0].astype(int) for i in range(3))
    near = depth(scene)[..., 0]
    assert np.array_equal(masks > 0, near > 0)
    assert (lit & (masks == 0)).sum() == 0
    greys = {"small": 110, "big": 230}
    for thing in scene.things:
        y, x = (int(v) for v in path(thing.cell, thing.motion)[0])
        around = near[y - 7 : y + 7, x - 7 : x + 7]
        assert around.max() == greys[thing.size]
