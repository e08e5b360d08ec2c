"""Captions say the truth, parse back, and their constraints tell right from wrong."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from polyglyph.data.shapes.captions import canonical, caption, parse_caption
from polyglyph.data.shapes.check import Observed, observe
from polyglyph.data.shapes.claims import Claim, constraints_of
from polyglyph.data.shapes.scene import COLORS, OBSERVABLE, SHAPES, make_scene
from polyglyph.errors import InputError

MEDIA = ("image", "video", "audio")


@pytest.mark.parametrize("modality", MEDIA)
def test_every_wording_parses_and_holds_of_its_scene(modality):
    words = set()
    for i in range(700):
        scene = make_scene(21, i)
        text = caption(scene, random.Random(i), modality)
        words |= set(text.replace(",", "").split())
        result = parse_caption(text).check(observe(scene, modality), OBSERVABLE[modality])
        assert result.ok, (text, result.detail)
    assert len(words) < 60


@pytest.mark.parametrize("modality", MEDIA)
def test_the_canonical_wording_says_every_attribute(modality):
    for i in range(200):
        scene = make_scene(22, i, "test")
        truth = observe(scene, modality)
        said = parse_caption(canonical(scene, modality))
        assert said.check(truth, OBSERVABLE[modality], complete=True).ok
        assert len(said.things) == len(scene.things)


def test_a_caption_says_only_what_the_medium_shows():
    for i in range(200):
        scene = make_scene(23, i)
        image = caption(scene, random.Random(i), "image")
        audio = caption(scene, random.Random(i), "audio")
        assert "moving" not in image and "still" not in image and "rising" not in image
        assert "top" not in audio and "centre" not in audio and "above" not in audio


def _change(truth: list[Observed], attribute: str) -> list[Observed]:
    options = {
        "shape": SHAPES,
        "color": COLORS,
        "size": ("small", "big"),
        "cell": [(r, c) for r in range(3) for c in range(3)],
        "motion": [("left", "left"), ("up", "up")],
        "rise": [("level", "level"), ("up", "up")],
    }[attribute]
    now = getattr(truth[0], attribute)
    other = next(o for o in options if o != now and o not in {t.cell for t in truth})
    return [replace(truth[0], **{attribute: other}), *truth[1:]]


@pytest.mark.parametrize("modality", MEDIA)
def test_one_wrong_attribute_is_found_and_named(modality):
    for i in range(40):
        scene = make_scene(24, i)
        said = parse_caption(canonical(scene, modality))
        truth = observe(scene, modality)
        for attribute in OBSERVABLE[modality]:
            if attribute == "order":
                continue
            result = said.check(_change(truth, attribute), OBSERVABLE[modality], complete=True)
            assert not result.ok and result.detail
            right, total = result.by_attribute[attribute]
            assert right < total


def test_a_wrong_number_of_things_is_wrong():
    truth = observe(make_scene(25, 1, n_objects=2), "image")
    said = constraints_of(truth)
    assert said.check(truth, OBSERVABLE["image"]).ok
    assert not said.check(truth[:1], OBSERVABLE["image"]).ok
    assert not said.check([], OBSERVABLE["image"]).ok
    assert not said.check([*truth, replace(truth[0], cell=(2, 2))], OBSERVABLE["image"]).ok


def test_the_order_of_a_sound_counts():
    scene = make_scene(26, 3, n_objects=3)
    said, truth = parse_caption(canonical(scene, "audio")), observe(scene, "audio")
    assert said.check(truth, OBSERVABLE["audio"], complete=True).ok
    assert not said.check(truth[::-1], OBSERVABLE["audio"], complete=True).ok
    unordered = parse_caption(canonical(scene, "audio").replace(" then", ""))
    assert not unordered.check(truth, OBSERVABLE["audio"], complete=True).ok


def test_what_a_wish_leaves_open_may_be_anything_but_an_answer_must_say_it():
    said = parse_caption("a red circle above a blue square")
    one, other = Observed("circle", "red", "big", (0, 2)), Observed("square", "blue", "big", (2, 0))
    assert said.check([other, one], OBSERVABLE["image"]).ok
    assert not said.check([other, one], OBSERVABLE["image"], complete=True).ok
    swapped = [replace(one, cell=(2, 0)), replace(other, cell=(0, 2))]
    assert not said.check(swapped, OBSERVABLE["image"]).ok


def test_sentences_that_people_type_are_read():
    said = parse_caption("A small green triangle left of a big red circle.")
    assert said.relations == ((0, "left", 1),)
    assert said.things[0] == Claim("triangle", "green", "small")
    said = parse_caption("a big red circle, then a small blue square moving up")
    assert said.relations == ((0, "before", 1),)
    assert said.things[1].said("rise") == ("up", "up")
    said = parse_caption("There is a tiny magenta disc in the top left corner and a large ring")
    assert said.things == (Claim("circle", "purple", "small", (0, 0)), Claim("ring", size="big"))
    said = parse_caption("a ring to the left of a cross which is above a square moving left")
    assert said.relations == ((0, "left", 1), (1, "above", 2))
    assert said.things[2].motion == ("left", "left")
    said = parse_caption("a ring still then moving up in the middle")
    assert said.things[0].motion == ("still", "up") and said.things[0].cell == (1, 1)


@pytest.mark.parametrize(
    "text", ["", "two dogs", "a a", "moving", "a red circle left of", "above a ring", "at at", "\0"]
)
def test_other_texts_are_refused_in_one_line(text):
    with pytest.raises(InputError, match="words about shapes") as caught:
        parse_caption(text)
    assert "\n" not in str(caught.value)


def test_a_babble_of_many_things_is_judged_quickly():
    said = parse_caption(", ".join(["a red circle"] * 40))
    result = said.check(observe(make_scene(27, 1), "image"), OBSERVABLE["image"], complete=True)
    assert not result.ok
