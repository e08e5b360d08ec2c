"""The figures of a sound too long to be held: it and what came back pass by side by side, in parts.

SI-SDR is that of the whole, by running sums. Mel distance and STOI are means over stretches of
30 s, weighted by length: STOI's level of silence, for one, is then that of a stretch. Knows
samples; no codec and no file.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from polyglyph.eval.fidelity import Figures
from polyglyph.eval.metrics import RunningSiSdr, mel_distance
from polyglyph.eval.protocol import hash_of
from polyglyph.eval.stoi import stoi
from polyglyph.media import Audio, mix_channels
from polyglyph.tokenizers.audio import Resampler

STRETCH_S = 30.0
SHOWN_S = 60.0


class Passing:
    """The parts of a sound, of one rate, as they pass: counted, hashed, the first minute kept."""

    def __init__(self, parts: Iterable[Audio]) -> None:
        self._parts = parts
        self._digest = hashlib.sha256()
        self._head: list[np.ndarray] = []
        self.n_samples = self.sample_rate = 0

    def __iter__(self) -> Iterator[Audio]:
        for part in self._parts:
            self._digest.update(np.ascontiguousarray(part.samples.T).data)
            left = round(SHOWN_S * part.sample_rate) - self.n_samples
            if left > 0:
                self._head.append(part.samples[:, :left])
            self.n_samples += part.n_samples
            self.sample_rate = part.sample_rate
            yield part

    @property
    def head(self) -> Audio:
        """The first minute of what has passed."""
        return Audio(np.concatenate(self._head, axis=1), self.sample_rate)

    @property
    def mark(self) -> str:
        """The hash of what has passed, however it was cut into parts."""
        return hash_of([self._digest.hexdigest(), len(self._head[0]), self.sample_rate])


def measure_long(original: Passing, result: Passing, n_bits: float) -> Figures:
    """As `fidelity.measure` of two sounds, of which neither is held; both are then passed.

    At the rate of the result, in mono, over the shorter of the two. No STOI where no stretch has
    anything to judge."""
    results = iter(result)
    first = next(results)
    rate = first.sample_rate
    sdr, mel, heard = RunningSiSdr(), _Mean(), _Mean()
    dues = _stretches(original, rate)
    for due, made in zip(dues, _stretches(itertools.chain([first], results), rate), strict=False):
        n = min(due.shape[1], made.shape[1])
        one, other = due[:, :n], made[:, :n]
        sdr.add(other, one)
        mel.add(mel_distance(other, one, rate), n)
        heard.add(stoi(other, one, rate), n)
    for _ in itertools.chain(dues, results):  # whichever is longer
        pass
    figures = {
        "si_sdr_db": sdr.value,
        "mel_distance": mel.value,
        "bits_per_s": n_bits * original.sample_rate / original.n_samples,
    }
    return {**figures, "stoi": heard.value} if heard.weight else figures


class _Mean:
    """A weighted mean; values of None don't count."""

    def __init__(self) -> None:
        self.weight = self._total = 0.0

    def add(self, value: float | None, weight: int) -> None:
        if value is not None:
            self.weight, self._total = self.weight + weight, self._total + weight * value

    @property
    def value(self) -> float:
        return self._total / self.weight


def _stretches(parts: Iterable[Audio], rate: int) -> Iterator[np.ndarray]:
    """Mono samples (1, s) at `rate` Hz, 30 s at a time; the last ones may be fewer."""
    n = round(STRETCH_S * rate)
    waiting = np.zeros((1, 0), np.float32)
    for new in _mono(parts, rate):
        waiting = np.concatenate([waiting, new], axis=1)
        while waiting.shape[1] >= n:
            yield waiting[:, :n]
            waiting = waiting[:, n:]
    if waiting.shape[1]:
        yield waiting


def _mono(parts: Iterable[Audio], rate: int) -> Iterator[np.ndarray]:
    """What `resample(mix_channels(whole, 1), ...)` gives, in parts (1, s)."""
    convert: Resampler | None = None
    for part in parts:
        convert = convert or Resampler(part.sample_rate, rate)
        yield convert(mix_channels(part.samples, 1))
    if convert is not None:
        yield convert.finish(1)
