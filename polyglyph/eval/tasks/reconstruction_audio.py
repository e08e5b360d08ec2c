"""Sounds of test scenes through the audio codec and a WAV."""

from __future__ import annotations

from typing import Any

from polyglyph.eval.metrics import mel_distance, si_sdr
from polyglyph.eval.reconstruction import ReconstructionTask

VERSION = 1


def measure(original: Any, result: Any) -> dict[str, float]:
    """SI-SDR in dB and the distance of the mel spectrograms."""
    a, b = result.samples, original.samples
    return {
        "si_sdr_db": si_sdr(a, b),
        "mel_distance": mel_distance(a, b, original.sample_rate),
    }


TASK = ReconstructionTask("audio", "sounds through the audio codec", measure)
