"""Single media for codec training, each a pure function of (modality, seed, index).

`shapes` renders the built-in world; `leaves` are dead-leaves pictures (opaque discs and boxes of
random size over gradients), `tones` random notes and noise, `speech` synthesized words: they keep
codecs from knowing the world's few colours and timbres only. Sizes are those of the world:
72 × 72 pixels, 8 frames, one second at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from polyglyph.data.shapes.clip import clip
from polyglyph.data.shapes.picture import depth, draw, mask
from polyglyph.data.shapes.scene import N_FRAMES, SIDE, make_scene
from polyglyph.data.shapes.sound import N_SAMPLES, SAMPLE_RATE, sound
from polyglyph.errors import InputError

# Training media draw their scenes from a stream of their own, away from `prepare`'s indices.
_SEED_OFFSET = 7_919


def _rng(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, stream, index))


def _shapes_image(seed: int, index: int) -> np.ndarray:
    """A scene at rest, at a later frame, or (one in eight) a mask or depth picture of it."""
    scene = make_scene(seed + _SEED_OFFSET, index)
    pick = index // 2 % 8
    if pick < 5:
        return draw(scene)
    if pick < 7:
        return draw(scene, 1 + index % (N_FRAMES - 1))
    return mask(scene, 0) if index // 16 % 2 else depth(scene)


def _shapes_video(seed: int, index: int) -> np.ndarray:
    return clip(make_scene(seed + _SEED_OFFSET, index))


def _shapes_audio(seed: int, index: int) -> np.ndarray:
    return sound(make_scene(seed + _SEED_OFFSET, index))[None]


def _leaves_image(seed: int, index: int) -> np.ndarray:
    rng = _rng(seed, index, 1)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    corners = rng.uniform(0, 255, (3, 3)).astype(np.float32)
    canvas = corners[0] + (corners[1] - corners[0]) * x[..., None]
    canvas = canvas + (corners[2] - corners[0]) * y[..., None] * 0.5
    for _ in range(rng.integers(4, 24)):
        radius = 0.04 / rng.uniform(0.08, 1.0)  # power law: few large, many small
        cy, cx = rng.uniform(-0.1, 1.1, 2)
        dy, dx = abs(y - cy), abs(x - cx)
        inside = dy**2 + dx**2 < radius**2 if rng.random() < 0.6 else np.maximum(dy, dx) < radius
        canvas = np.where(inside[..., None], rng.uniform(0, 255, 3).astype(np.float32), canvas)
    canvas = canvas + rng.normal(0, rng.uniform(0, 8), canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _leaves_video(seed: int, index: int) -> np.ndarray:
    """A dead-leaves picture that slides by whole pixels, at its own speed."""
    picture = _leaves_image(seed, index)
    step = _rng(seed, index, 2).integers(-2, 3, 2)
    return np.stack([np.roll(picture, tuple(step * f), (0, 1)) for f in range(N_FRAMES)])


def _tones_audio(seed: int, index: int) -> np.ndarray:
    """One to four notes with random partials, glide and level, now and then a burst of noise."""
    rng = _rng(seed, index, 3)
    out = np.zeros(N_SAMPLES)
    for _ in range(rng.integers(1, 5)):
        n = int(rng.uniform(0.1, 1.0) * SAMPLE_RATE)
        start = rng.integers(0, N_SAMPLES - n + 1)
        hz = 90 * 2 ** (rng.uniform(0, 4.2) + np.linspace(0, rng.normal(0, 0.15), n))
        phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE
        wave = np.zeros(n)
        for k in range(1, 10):
            if hz[0] * k < SAMPLE_RATE * 0.45:
                wave += rng.exponential() * k ** -rng.uniform(0.3, 2) * np.sin(k * phase)
        if rng.random() < 0.2:
            wave = rng.normal(0, 1, n)
        fade = np.minimum(np.arange(n), np.arange(n)[::-1]) / 200
        wave *= np.clip(fade, 0, 1) * 10 ** rng.uniform(-1.6, -0.6) / (np.std(wave) + 1e-6)
        out[start : start + n] += wave
    return np.clip(out, -0.95, 0.95).astype(np.float32)[None]


_WORDS = (
    "red orange yellow green cyan blue purple white circle square triangle cross ring small big "
    "above below left right moving still what colour is the shape where one two three four five "
    "music picture video sound region action river mountain window paper garden people morning"
)


@lru_cache(maxsize=64)
def _spoken(seed: int, block: int) -> np.ndarray:
    """Some six seconds of random words, (S,) float32 at 16 kHz."""
    from polyglyph.data.shapes.speech import speech
    from polyglyph.media import resample

    words = _rng(seed, block, 4).choice(_WORDS.split(), 12)
    audio = speech(" ".join(words))
    samples = resample(audio.samples, audio.sample_rate, SAMPLE_RATE)[0]
    if len(samples) < N_SAMPLES:
        samples = np.pad(samples, (0, N_SAMPLES - len(samples)))
    return samples


def _speech_audio(seed: int, index: int) -> np.ndarray:
    samples = _spoken(seed, index // 64)
    rng = _rng(seed, index, 5)
    start = rng.integers(0, len(samples) - N_SAMPLES + 1)
    cut = samples[start : start + N_SAMPLES] * rng.uniform(0.4, 1.2)
    return np.clip(cut, -0.95, 0.95).astype(np.float32)[None]


_Maker = Callable[[int, int], np.ndarray]
_SHAPES: dict[str, _Maker] = {
    "image": _shapes_image,
    "video": _shapes_video,
    "audio": _shapes_audio,
}
_LEAVES: dict[str, _Maker] = {"image": _leaves_image, "video": _leaves_video}
_TONES: dict[str, _Maker] = {"audio": _tones_audio}
_SPEECH: dict[str, _Maker] = {"audio": _speech_audio}


def pick(table: dict[str, _Maker], source: str, modality: str) -> _Maker:
    """The maker of a source's media of one modality; InputError where it has none of it."""
    if modality not in table:
        raise InputError(
            f"source {source!r} has no {modality}; expected one of {', '.join(table)}, "
            "change data.mixture"
        )
    return table[modality]


def shapes(modality: str, seed: int, index: int) -> np.ndarray:
    return pick(_SHAPES, "shapes", modality)(seed, index)


def leaves(modality: str, seed: int, index: int) -> np.ndarray:
    return pick(_LEAVES, "leaves", modality)(seed, index)


def tones(modality: str, seed: int, index: int) -> np.ndarray:
    return pick(_TONES, "tones", modality)(seed, index)


def speech(modality: str, seed: int, index: int) -> np.ndarray:
    return pick(_SPEECH, "speech", modality)(seed, index)
