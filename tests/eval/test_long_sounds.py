"""Sounds measured in parts: as wholes, where that can be, and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from polyglyph.eval import long_sounds
from polyglyph.eval.fidelity import measure
from polyglyph.eval.long_sounds import Passing, measure_long
from polyglyph.eval.metrics import RunningSiSdr, si_sdr
from polyglyph.media import Audio


def song(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and colour change: (C, S)."""
    n = round(seconds * rate)
    noise = np.random.default_rng(seed).standard_normal((channels, n)).astype(np.float32)
    t = np.arange(n, dtype=np.float32) / rate
    tone = np.sin(2 * np.pi * (300 + 20 * t) * t)
    return (0.3 * tone + 0.05 * noise) * (0.6 + 0.4 * np.sin(3 * t)) + 0.01


def parts(sound: Audio, sizes: Sequence[int]) -> Iterator[Audio]:
    start = 0
    for i in range(10**9):
        if start >= sound.n_samples:
            return
        stop = start + sizes[i % len(sizes)]
        yield Audio(sound.samples[:, start:stop], sound.sample_rate)
        start = stop


def both(a: Audio, b: Audio, sizes: Sequence[int] = (1001, 40_000)) -> tuple[Passing, Passing]:
    return Passing(parts(a, sizes)), Passing(parts(b, sizes[::-1]))


def test_parts_have_the_figures_of_the_whole() -> None:
    a = Audio(song(65.3, 11_025, 2), 11_025)
    made = song(65.3, 8000)[:, : 65 * 8000] + 0.02 * song(65.3, 8000, seed=3)[:, : 65 * 8000]
    for b in (Audio(made, 8000), Audio(made[:, :-9], 8000)):
        due = measure(a, b, 1000.0)
        original, result = both(a, b)
        found = measure_long(original, result, 1000.0)
        assert found["si_sdr_db"] == pytest.approx(due["si_sdr_db"], abs=1e-4)
        assert found["mel_distance"] == pytest.approx(due["mel_distance"], rel=1e-3)
        assert found["stoi"] == pytest.approx(due["stoi"], abs=0.02)
        assert found["bits_per_s"] == pytest.approx(due["bits_per_s"]) and set(found) == set(due)
        assert (original.n_samples, result.n_samples) == (a.n_samples, b.n_samples)
        assert np.array_equal(original.head.samples, a.samples[:, : 60 * 11_025])


def test_what_is_longer_is_passed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_sounds, "STRETCH_S", 0.5)
    long, short = Audio(song(3, 8000), 8000), Audio(song(1.2, 8000), 8000)
    for a, b in ((long, short), (short, long)):
        original, result = both(a, b, (100, 333))
        found = measure_long(original, result, 1.0)
        assert (original.n_samples, result.n_samples) == (a.n_samples, b.n_samples)
        assert found["mel_distance"] == 0.0 and found["si_sdr_db"] > 60


def test_a_hash_does_not_depend_on_the_parts_but_on_all_of_the_sound() -> None:
    sound = song(0.2, 8000, 2)
    other, flat = sound.copy(), sound.T.reshape(1, -1)
    other[1, -1] += 0.1
    marks = []
    for samples, rate, sizes in (
        (sound, 8000, (7,)), (sound, 8000, (999, 1)), (other, 8000, (7,)), (sound, 8001, (7,)),
        (flat, 8000, (7,)),
    ):  # fmt: skip
        passing = Passing(parts(Audio(samples, rate), sizes))
        assert sum(part.n_samples for part in passing) == samples.shape[1]
        marks.append(passing.mark)
    assert marks[0] == marks[1] and len(set(marks)) == 4


def test_silence_has_finite_figures_and_no_stoi() -> None:
    silent, loud = Audio(np.zeros(9000), 8000), Audio(np.full(9000, 0.3), 8000)
    for a, b in ((silent, silent), (silent, loud), (loud, silent)):
        found = measure_long(*both(a, b), 1.0)
        assert all(np.isfinite(value) for value in found.values())
        assert found["si_sdr_db"] == pytest.approx(measure(a, b, 1.0)["si_sdr_db"], abs=1e-4)
    assert "stoi" not in measure_long(*both(silent, loud), 1.0)


@pytest.mark.parametrize("noise", [1e-3, 0.03, 2.0])
def test_running_sums_give_the_si_sdr_of_the_whole(noise: float) -> None:
    target = song(2, 8000) + 0.2  # an offset, which neither counts
    estimate = 0.7 * target + noise * song(2, 8000, seed=1)
    running = RunningSiSdr()
    for part in np.array_split(np.arange(target.shape[1]), 13):
        running.add(estimate[:, part], target[:, part])
    assert running.value == pytest.approx(si_sdr(estimate, target), abs=1e-4)


MEMORY = """
    import resource
    import numpy as np, torch
    torch.set_num_threads(1)
    from polyglyph.eval.long_sounds import Passing, measure_long
    from polyglyph.media import Audio
    def parts(n, rate, channels):
        for i in range(n):
            noise = np.random.default_rng(i).standard_normal((channels, 10 * rate))
            yield Audio((0.1 * noise).astype(np.float32), rate)
    def peak(n):
        measure_long(Passing(parts(n, 32_000, 2)), Passing(parts(n, 8000, 1)), 1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    first = peak(8)
    print(peak(32) - first)
"""


def test_four_times_as_long_a_sound_takes_no_more_memory() -> None:
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert made.returncode == 0, made.stderr
    given = 240 * (32_000 * 2 + 8000) * 4 / 2**20  # MiB of samples more
    assert float(made.stdout) < 0.25 * given, made.stdout
