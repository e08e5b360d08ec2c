"""A scene as a sound: one second at 16 kHz, its things one after the other from left to right.

Shape is timbre, colour is pitch, size is loudness, vertical motion is glide. Knows nothing of
captions or ids.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from polyglyph.data.shapes.scene import COLORS, Scene

SAMPLE_RATE = 16_000
N_SAMPLES = 16_000
GAP_S = 0.03
FADE_S = 0.012
SEMITONES_APART = 3.2
# Low enough that every partial stays below 2.4 kHz: with pitches of 200 to 790 Hz a codec of 25
# frames a second kept the timbre of 98 % of the low notes and of 40 % of the high ones.
PITCH_HZ = {c: 130.0 * 2 ** (SEMITONES_APART * i / 12) for i, c in enumerate(COLORS)}
LEVEL = {"small": 0.07, "big": 0.22}  # root mean square; 10 dB apart
GLIDE = 2.5  # semitones from the middle of a slot to its end
_TURN = {"level": 0.0, "up": 1.0, "down": -1.0}

# (multiple of the pitch, amplitude) of each partial
PARTIALS: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": ((1, 1.0),),
    "square": ((1, 1.0), (3, 0.9), (5, 0.7)),
    "triangle": ((1, 1.0), (2, 0.85), (3, 0.7), (4, 0.6), (5, 0.5), (6, 0.4)),
    "cross": ((1, 1.0), (2, 0.6)),
    "ring": ((1, 1.0), (2.45, 0.9), (4.3, 0.5)),
}
TREMOLO_HZ = 10.0  # of a cross
TREMOLO_DEPTH = 0.85


def slots(n: int) -> list[tuple[int, int]]:
    """Where each of n things sounds: (start, stop) in samples, the slots' gaps included."""
    edges = [round(i * N_SAMPLES / n) for i in range(n + 1)]
    return list(pairwise(edges))


def _bend(rise: tuple[str, str], n_samples: int) -> np.ndarray:
    """Semitones off the pitch; 0 in the middle of the slot, the second half after the first."""
    at = np.linspace(-1.0, 1.0, n_samples)
    first, second = (_TURN[turn] for turn in rise)
    return GLIDE * np.where(at < 0, first * at, second * at)


@lru_cache(maxsize=2048)
def tone(shape: str, color: str, size: str, rise: tuple[str, str], n_samples: int) -> np.ndarray:
    """One thing's tone in a slot of n samples, silent at its end for the gap; float32."""
    n = n_samples - round(GAP_S * SAMPLE_RATE)
    hz = PITCH_HZ[color] * 2 ** (_bend(rise, n) / 12)
    phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE
    wave = np.zeros(n)
    for multiple, amplitude in PARTIALS[shape]:
        wave += amplitude * np.sin(multiple * phase)
    if shape == "cross":
        beat = np.cos(2 * np.pi * TREMOLO_HZ * np.arange(n) / SAMPLE_RATE)
        wave *= 1 - TREMOLO_DEPTH * (0.5 - 0.5 * beat)
    wave *= LEVEL[size] / np.sqrt(np.mean(wave**2))
    fade = np.clip(np.arange(n) / (FADE_S * SAMPLE_RATE), 0, 1)
    wave *= np.minimum(fade, fade[::-1])
    out = np.concatenate([wave, np.zeros(n_samples - n)]).astype(np.float32)
    out.flags.writeable = False
    return out


def sound(scene: Scene) -> np.ndarray:
    """The scene as a sound, (16000,) float32 at 16 kHz, peak below 0.9."""
    parts = [
        tone(thing.shape, thing.color, thing.size, thing.rise, stop - start)
        for thing, (start, stop) in zip(scene.things, slots(len(scene.things)), strict=True)
    ]
    return np.concatenate(parts)
