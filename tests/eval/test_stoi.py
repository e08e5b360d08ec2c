"""STOI against the figures of the package pystoi 0.4.1 (MIT) on the same signals."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.errors import InputError
from polyglyph.eval.stoi import stoi


def voice(rate: int, seconds: float = 2.0) -> np.ndarray:
    """(S,): a buzz of moving pitch with breath, in syllables."""
    t = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * (120 * t + 5 * np.sin(2 * np.pi * 0.9 * t))
    buzz = sum(
        np.sin(k * phase) / k * (1 + 0.8 * np.sin(2 * np.pi * k * t / 3)) for k in range(1, 25)
    )
    breath = 0.4 * np.random.default_rng(1).normal(size=t.shape)
    return 0.1 * (buzz + breath) * np.clip(np.sin(2 * np.pi * 3 * t) + 0.4, 0, 1)


def noisy(clean: np.ndarray, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(2).normal(size=clean.shape)
    return clean + noise * np.linalg.norm(clean) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)


@pytest.mark.parametrize(
    ("rate", "snr_db", "due"),
    [
        (10_000, 20.0, 0.99548),
        (10_000, 0.0, 0.74120),
        (16_000, 5.0, 0.88253),
        (24_000, -5.0, 0.66456),
    ],
)
def test_it_equals_the_package_of_the_field(rate: int, snr_db: float, due: float) -> None:
    clean = voice(rate)
    assert stoi(noisy(clean, snr_db), clean, rate) == pytest.approx(due, abs=2e-4)


def test_it_falls_with_noise_and_ignores_loudness() -> None:
    clean = voice(10_000)
    found = [stoi(noisy(clean, snr_db), clean, 10_000) for snr_db in (30, 10, 0, -10)]
    assert found == sorted(found, reverse=True) and found[0] > 0.95 and found[-1] < 0.6
    assert stoi(0.1 * clean, clean, 10_000) == pytest.approx(1.0)
    both = np.stack([clean, clean])
    assert stoi(np.stack([clean, noisy(clean, 0)]), both, 10_000) == pytest.approx(
        (1 + found[2]) / 2, abs=1e-6
    )


def test_a_long_sound_goes_through_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = voice(10_000)
    whole = stoi(noisy(clean, 5), clean, 10_000)
    monkeypatch.setattr("polyglyph.eval.stoi._BATCH", 7)
    assert stoi(noisy(clean, 5), clean, 10_000) == pytest.approx(whole, abs=1e-12)


def test_what_is_too_short_or_silent_has_no_intelligibility() -> None:
    assert stoi(np.ones(9000), np.zeros(9000), 10_000) is None
    assert stoi(np.zeros(9000), np.ones(9000), 10_000) == 0.0
    for n in (1, 100, 257, 3000):
        assert stoi(np.ones(n), np.ones(n), 10_000) is None
    with pytest.raises(InputError, match="one shape"):
        stoi(np.zeros(5), np.zeros(6), 10_000)
