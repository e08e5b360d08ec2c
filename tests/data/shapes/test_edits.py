"""Edits change what they name and nothing else; pushes end at their goal."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from polyglyph.data.shapes.check import read_picture
from polyglyph.data.shapes.edits import KINDS, edit
from polyglyph.data.shapes.picture import picture
from polyglyph.data.shapes.pusher import film, push, reaches, replay
from polyglyph.data.shapes.scene import CENTRES, HELD_OUT, make_scene


def test_each_edit_differs_from_the_scene_in_one_thing():
    kinds: Counter[str] = Counter()
    for i in range(400):
        scene = make_scene(41, i).at_rest()
        made = edit(scene, random.Random(i))
        kinds[made.kind] += 1
        before, after = set(scene.things), set(made.after.things)
        assert len(before - after) <= 1 and len(after - before) <= 1 and before != after
        assert 1 <= len(after) <= 3
        assert len({(t.color, t.shape) for t in after}) == len(after)
        assert not {(t.color, t.shape) for t in after} & HELD_OUT
    assert set(kinds) == set(KINDS)


def test_an_edit_names_the_change():
    for i in range(200):
        scene = make_scene(42, i).at_rest()
        made = edit(scene, random.Random(i))
        for thing in set(scene.things) ^ set(made.after.things):
            if made.kind in ("remove", "add"):
                assert thing.shape in made.instruction and thing.color in made.instruction
        if made.kind == "recolor":
            (new,) = set(made.after.things) - set(scene.things)
            assert made.instruction.endswith(new.color)


def test_a_push_ends_at_its_goal_and_others_do_not():
    for i in range(60):
        made = push(make_scene(43, i, n_objects=1), random.Random(i))
        assert made.actions.shape == (8, 2) and np.abs(made.actions).max() <= 1
        assert reaches(made, made.actions)
        assert not reaches(made, -made.actions) and not reaches(made, 0 * made.actions)
        assert not reaches(made, np.full_like(made.actions, np.nan))


def test_the_clip_of_a_push_shows_the_thing_where_the_actions_put_it():
    for i in range(20):
        made = push(make_scene(44, i, n_objects=1), random.Random(i))
        frames = film(made)
        assert frames.shape == (8, 72, 72, 3) and frames.dtype == np.uint8
        end = replay(made.thing, made.actions)[-1]
        assert np.allclose(end, [CENTRES[made.goal[0]], CENTRES[made.goal[1]]], atol=0.01)
        seen = [t for t in read_picture(frames[-1]) if t.cell == made.goal]
        assert [(t.shape, t.color) for t in seen] == [(made.thing.shape, made.thing.color)]
        assert not np.array_equal(frames[0], picture(make_scene(44, i, n_objects=1)))
