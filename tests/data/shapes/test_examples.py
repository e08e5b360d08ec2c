"""Tasks: the target passes its own verdict, another scene's does not, and scores are fair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyglyph.data.shapes.check import observe
from polyglyph.data.shapes.examples import (
    SHOW,
    TASKS,
    check_prompt,
    check_reconstruction,
    make_example,
    shared,
    tally,
    verdict,
)
from polyglyph.data.shapes.picture import picture
from polyglyph.data.shapes.scene import Scene, Thing, make_scene
from polyglyph.data.shapes.sound import sound
from polyglyph.errors import InputError


@pytest.mark.parametrize("task", TASKS)
def test_the_target_of_an_example_is_right(task):
    rows = []
    for i in range(60):
        example = make_example(task, 51, i, "test", held_out=i % 2 == 0)
        rows.append(verdict(example, example.target[1]))
    summary = tally(rows)
    assert summary["ok"] == summary["share"] == 1.0 and summary["n"] == 60
    assert all(value == 1.0 for value in summary["attributes"].values())


@pytest.mark.parametrize("task", TASKS)
def test_the_target_of_another_example_is_wrong(task):
    ok = 0
    for i in range(40):
        other = make_example(task, 52, i + 1, "test").target[1]
        ok += verdict(make_example(task, 52, i, "test"), other).ok
    assert ok <= (6 if task in ("image_question_to_text", "image_phrase_to_region") else 1)


def test_an_edit_that_changes_nothing_or_too_much_is_wrong():
    for i in range(30):
        example = make_example("image_instruction_to_image", 53, i)
        assert not verdict(example, picture(example.scene)).ok
        elsewhere = example.wanted.with_thing(0, size="small").with_thing(0, color="white")
        if elsewhere != example.wanted:
            assert not verdict(example, picture(elsewhere)).ok


def test_media_are_compared_on_what_both_carry():
    assert shared("image", "audio") == ("shape", "color", "size", "order")
    assert "rise" not in shared("text", "video") and "rise" in shared("text", "audio")
    assert "motion" not in shared("video", "image")
    example = make_example("image_to_audio", 54, 2, n_objects=3)
    still = sound(example.scene.at_rest())
    assert verdict(example, still).ok  # a picture does not tell the motion


def test_garbled_texts_score_nothing_and_do_not_crash():
    for text in ("", "blue blue of", "a red", "\ufffd\0"):
        result = verdict(make_example("image_to_text", 55, 3), text)
        assert not result.ok and result.right == 0 and result.total > 3


def test_a_prompt_of_a_person_is_checked_against_each_medium():
    one = Thing("triangle", "green", "small", (2, 0), ("up", "up"))
    other = Thing("circle", "red", "big", (0, 1))
    text = "a small green triangle left of a big red circle"
    right = Scene((one, other))
    wrong = Scene((replace(one, cell=(2, 2)), other))
    for modality, show in SHOW.items():
        assert check_prompt(text, modality, show(right)).ok
        assert not check_prompt(text, modality, show(wrong)).ok
    with pytest.raises(InputError, match="photograph"):
        check_prompt("a photograph of a cat", "image", picture(right))


def test_a_reconstruction_is_right_only_with_every_attribute():
    for i in range(20):
        scene = make_scene(57, i)
        assert check_reconstruction(scene, "image", picture(scene)).ok
        smaller = "small" if scene.things[0].size == "big" else "big"
        other = picture(scene.with_thing(0, size=smaller))
        assert not check_reconstruction(scene, "image", other).ok
        assert len(observe(scene, "audio")) == len(scene.things)
        assert not check_reconstruction(scene, "audio", np.zeros(16_000, np.float32)).ok


def test_an_unknown_task_is_named():
    with pytest.raises(InputError, match="did you mean 'text_to_image'"):
        make_example("text_to_imag", 1, 1)
