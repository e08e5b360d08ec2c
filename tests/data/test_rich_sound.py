"""Music and voices for the richer audio codec: pure, in range, of many kinds; what is held out
never trains."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from polyglyph.data import rich_sound as module
from polyglyph.data.media_batches import SOURCES, MediaBatches, MediaDataConfig
from polyglyph.data.rich_sound import HELD_OUT_SENTENCES, HELD_OUT_SPEAKERS, music, voices
from polyglyph.errors import InputError
from polyglyph.lookup import resolve

SPEAKS = importlib.util.find_spec("espeakng_loader") is not None
needs_speech = pytest.mark.skipif(not SPEAKS, reason="the extra `speech` is not installed")
BOTH = [pytest.param("music"), pytest.param("voices", marks=needs_speech)]


def make(name: str, seed: int, index: int) -> np.ndarray:
    return resolve(SOURCES[name])("audio", seed, index)


@pytest.mark.parametrize("name", BOTH)
def test_a_sound_is_a_pure_function_of_seed_and_index(name: str) -> None:
    due = {index: make(name, 3, index) for index in (5, 69, 0)}
    module._utterance.cache_clear()
    for index in (0, 5, 69):
        assert np.array_equal(make(name, 3, index), due[index])
    assert not np.array_equal(make(name, 4, 5), due[5])
    assert not np.array_equal(due[5], due[0])


@pytest.mark.parametrize("name", BOTH)
def test_sounds_are_a_second_in_range_and_seldom_silent(name: str) -> None:
    n = 96 if name == "music" else 24
    sounds = [make(name, 0, index) for index in range(n)]
    for sound in sounds:
        assert sound.shape == (1, 16_000) and sound.dtype == np.float32
        assert np.isfinite(sound).all() and abs(sound).max() <= 0.98
    levels = np.array([sound.std() for sound in sounds])
    assert (levels > 3e-3).mean() > 0.9
    assert levels.max() > 3 * levels.min(), "loud and soft ones"


def test_music_has_tones_and_noise() -> None:
    """By the flatness of the spectrum: geometric over arithmetic mean of its power."""
    flatness = []
    for index in range(60):
        power = np.abs(np.fft.rfft(make("music", 0, index)[0] * np.hanning(16_000))) ** 2 + 1e-9
        flatness.append(np.exp(np.log(power).mean()) / power.mean())
    assert min(flatness) < 1e-4 and max(flatness) > 0.02


@needs_speech
def test_a_batch_has_several_speakers() -> None:
    config = MediaDataConfig(mixture={"voices": 3, "music": 1}, batch_size=8)
    batch = MediaBatches("audio", config, 0).batch(0)
    assert batch.shape == (8, 1, 16_000) and batch.dtype == np.float32
    assert len({module.speaker(0, number) for number in range(8)}) == 8


def test_held_out_voices_and_sentences_never_train() -> None:
    trained = {module.speaker(0, number).voice for number in range(3000)}
    assert len(trained) > 500
    held = {speaker.voice for speaker in HELD_OUT_SPEAKERS[1:]}
    assert len(held) == 5 and not held & trained
    variants = {name.split("+")[1] for name in held if "+" in name}
    assert not variants & set(module._VARIANTS.split())
    said = " ".join(module.sentences(0, number) for number in range(300)).lower()
    assert not any(sentence.lower()[:-1] in said for sentence in HELD_OUT_SENTENCES)
    assert len(set(HELD_OUT_SENTENCES)) == 24


@needs_speech
def test_every_voice_is_one_of_espeak_ng() -> None:
    for name in (*dict.fromkeys(module._LANGUAGES.split()), "en-us+whisper"):
        said = module.speech_samples("one", module.Speaker(name))
        assert len(said) > 2000 and said.std() > 1e-3, name


@needs_speech
def test_held_out_speech_is_what_its_speaker_says() -> None:
    from polyglyph.data.shapes.speech import speech

    first = module.held_out_speech(0)
    plain = speech(HELD_OUT_SENTENCES[0])
    assert abs(len(first) / 16_000 - plain.duration_s) < 1e-3, "the library's own voice"
    other = module._said(HELD_OUT_SENTENCES[0], HELD_OUT_SPEAKERS[1])
    assert len(other) != len(first)


@pytest.mark.parametrize("source", [music, voices])
def test_other_modalities_are_refused(source) -> None:
    with pytest.raises(InputError, match="has no image; expected one of audio"):
        source("image", 0, 0)
