"""Speech: the same samples whatever was said before; errors in one line."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from polyglyph.data.shapes.speech import (
    MAX_CHARACTERS,
    SAMPLE_RATE,
    Speaker,
    speech,
    speech_samples,
)
from polyglyph.errors import InputError, MachineError, MissingExtraError


def test_a_text_gives_the_same_samples_whatever_was_said_before():
    pytest.importorskip("espeakng_loader")
    texts = ["six sizzling snakes", "Größe 12 €", "a red circle"]
    first = [speech_samples(text) for text in texts]
    again = [speech_samples(text) for text in [*texts[::-1], *texts[::-1]]][-1:2:-1]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
        assert one.dtype == np.float32 and 0.05 < np.abs(one).max() <= 1
    assert not np.array_equal(first[0], first[1])


def test_speech_is_audio_of_one_channel_and_longer_for_more_words():
    pytest.importorskip("espeakng_loader")
    short, long = speech("red"), speech("a red circle above a blue square")
    assert short.sample_rate == SAMPLE_RATE and short.samples.shape[0] == 1
    assert 0.2 < short.duration_s < long.duration_s < 5


def test_speakers_differ_and_a_voice_that_is_not_there_spoils_nothing():
    pytest.importorskip("espeakng_loader")
    plain = speech_samples("red ring")
    with pytest.raises(MachineError, match="no voice named xx-none"):
        speech_samples("red ring", Speaker("xx-none"))
    assert np.array_equal(speech_samples("red ring"), plain)
    slow = speech_samples("red ring", Speaker("en-us+f3", words_a_minute=100, pitch=80))
    assert len(slow) > 1.2 * len(plain)


@pytest.mark.parametrize("text", ["", " \n", "a\0b", "x" * (MAX_CHARACTERS + 1)])
def test_texts_that_cannot_be_spoken_are_refused(text):
    with pytest.raises(InputError, match="speech"):
        speech_samples(text)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"polyglyph\[speech\]"):
        speech_samples("a red circle")
