"""Opus as a peer: aligned, as long as what went in, with the bits of its packets."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.errors import InputError
from polyglyph.eval.metrics import mel_distance, si_sdr
from polyglyph.eval.opus import at_no_fewer_bits, through_opus


def tone(n: int = 16_001, rate: int = 16_000) -> np.ndarray:
    """A vowel-like sound whose pitch glides."""
    t = np.arange(n) / rate
    phase = 2 * np.pi * (140 * t + 20 * t**2)
    wave = sum(np.sin(k * phase) / k for k in range(1, 15))
    return (0.15 * wave * (1 - np.cos(2 * np.pi * 3 * t))).astype(np.float32)


@pytest.mark.parametrize("application", ["voip", "audio"])
@pytest.mark.parametrize("frame_ms", [20, 60])
def test_a_sound_comes_back_in_place(application: str, frame_ms: int) -> None:
    sound = tone()
    made = through_opus(sound, 16_000, 32_000, application, frame_ms)
    assert made.samples.shape == sound.shape and made.samples.dtype == np.float32
    at = [si_sdr(np.roll(made.samples, shift), sound) for shift in (-8, -4, 0, 4, 8)]
    assert int(np.argmax(at)) == 2 and at[2] > 3, "no delay is left"


def test_bits_are_about_what_was_asked() -> None:
    sound = tone(48_000)
    for bitrate in (8_000, 24_000):
        made = through_opus(sound, 16_000, bitrate)
        assert 0.4 < made.n_bits / 3 / bitrate < 1.4  # it is a variable rate


def test_more_bits_are_nearer() -> None:
    sound = tone(32_000)
    few, many = (through_opus(sound, 16_000, rate).samples for rate in (6_000, 40_000))
    assert mel_distance(many, sound, 16_000) < mel_distance(few, sound, 16_000)


def test_at_no_fewer_bits_is_the_least_rate_that_reaches_them() -> None:
    sounds, due = [tone(), tone(9_000)], [7_000.0, 3_000.0]
    found = at_no_fewer_bits(sounds, due, 16_000)
    for opus, n_bits, sound in zip(found, due, sounds, strict=True):
        assert n_bits <= opus.n_bits < 2.5 * n_bits
        assert opus.samples.shape == sound.shape


def test_rates_and_bits_that_opus_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="Opus takes 8000"):
        through_opus(tone(), 44_100, 16_000)
    with pytest.raises(InputError, match="doesn't reach"):
        at_no_fewer_bits([tone(4_000)], [1e6], 16_000)
