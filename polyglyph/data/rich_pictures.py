"""Procedural pictures with the statistics of natural ones, for codecs of photographs.

A canvas holds occluding leaves whose sizes follow a power law (Lee, Mumford and Huang, "Occlusion
models for natural images", 2001), filled with 1/f textures, slopes and shading, or textures alone,
or lights in the dark; with writing, uneven light, defocus and grain; and with colours of one mood,
whose brightness varies far more than their hue. Items are cuts of canvases at several scales. All
of it is a pure function of (seed, index); no photograph had a part in it. Knows nothing of codecs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from polyglyph.data.training_media import pick
from polyglyph.errors import InputError

CANVAS = 256  # pixels a side
# Items of one block come from its canvases in turn, so that neighbours in a batch differ.
_CANVASES, _CUTS = 32, 8
_BLOCK = _CANVASES * _CUTS
_STREAM_CANVAS, _STREAM_CUT = 21, 22  # of the random numbers
# Y, Cb, Cr (all centred at 0) → R, G, B, as in JPEG.
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
# Differences of hue are largest from orange to blue: rows of (Cb, Cr).
_DAYLIGHT = np.array([[-0.77, 1.05], [0.40, 0.29]])
_TO_YCC = np.linalg.inv(_TO_RGB)
_LETTERS = tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPRSTUVWZ0123456789&.,:-  ")


def rich_picture(modality: str, seed: int, index: int, side: int = 72) -> np.ndarray:
    """One picture uint8 (side, side, 3). InputError for a modality other than pictures, or a side
    beyond that of a canvas."""
    return pick({"image": partial(_picture, side)}, "rich", modality)(seed, index)


def _picture(side: int, seed: int, index: int) -> np.ndarray:
    if side > CANVAS:
        raise InputError(f"source 'rich' has at most {CANVAS} pixels a side, got {side}")
    block, place = divmod(index, _BLOCK)
    canvas = make_canvas(seed, block * _CANVASES + place % _CANVASES)
    return _cut(canvas, np.random.default_rng((seed, _STREAM_CUT, index)), side)


def _cut(canvas: np.ndarray, rng: np.random.Generator, side: int) -> np.ndarray:
    """A square of the canvas, turned, and shrunk by up to 2 where the canvas is large enough."""
    import PIL.Image

    whole = round(side * rng.choice((1.0, rng.uniform(1.0, 2.0), 2.0)))
    whole = min(whole, CANVAS)
    y, x = rng.integers(CANVAS - whole + 1, size=2)
    cut = canvas[y : y + whole, x : x + whole]
    cut = np.rot90(cut, int(rng.integers(4)))
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    if whole != side:
        kind = PIL.Image.Resampling.BICUBIC
        cut = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(cut)).resize((side, side), kind))
    return _tinted(cut, rng)


def _tinted(cut: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In another light: brightness, contrast, and the strength and direction of its colours."""
    if rng.random() < 0.3:
        return np.ascontiguousarray(cut)
    angle = rng.normal(0, 0.3) if rng.random() < 0.9 else rng.uniform(0, 2 * math.pi)
    gain, strength = np.exp(rng.normal(0, (0.2, 0.4)))
    cos, sin = strength * math.cos(angle), strength * math.sin(angle)
    turn = _TO_RGB @ np.array([[gain, 0, 0], [0, cos, -sin], [0, sin, cos]], np.float32) @ _TO_YCC
    grey = rng.uniform(60, 196)
    tint = _TO_RGB @ rng.normal(0, (30, 8, 8)).astype(np.float32)
    moved = cut @ turn.T.astype(np.float32)
    moved += (grey - turn @ np.full(3, grey) + tint).astype(np.float32)
    return np.clip(moved + 0.5, 0, 255).astype(np.uint8)


# --- colours and textures -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Mood:
    """The colours of one canvas: Y and the spread of brightness, Cb and Cr and their spread."""

    light: float
    contrast: float
    chroma: np.ndarray
    spread: float

    def colour(self, rng: np.random.Generator) -> np.ndarray:
        """R, G, B of one thing."""
        y = self.light + self.contrast * rng.standard_normal()
        y = 255 - abs(255 - abs(y) % 510)  # reflected at the bounds: dark things differ too
        spread = self.spread * (4.0 if rng.random() < 0.06 else 1.0)
        hue = self.chroma + spread * rng.laplace(0, 0.7, 2) @ _DAYLIGHT
        cb, cr = hue * (0.35 + 0.65 * y / 160)
        return _TO_RGB @ np.array([y, cb, cr], np.float32)


def _mood(rng: np.random.Generator) -> _Mood:
    grey = rng.random() < 0.08
    strength = 0.0 if grey else float(np.exp(rng.normal(3.3, 0.75)))
    # Of (Cb, Cr): along the line of daylight, towards orange, at times towards blue.
    angle = rng.normal(2.2, 0.5)
    if rng.random() < 0.3:
        angle += math.pi
    chroma = strength * np.array([math.cos(angle), math.sin(angle)])
    spread = 0.0 if grey else float(np.exp(rng.normal(2.4, 0.8)))
    light = float(rng.uniform(15, 230))
    return _Mood(light, float(np.exp(rng.normal(3.95, 0.4))), chroma, spread)


@lru_cache(maxsize=2)
def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    fy = np.fft.fftfreq(CANVAS).astype(np.float32)[:, None]
    return fy, np.fft.rfftfreq(CANVAS).astype(np.float32)[None]


def _field(rng: np.random.Generator) -> np.ndarray:
    """A texture (CANVAS, CANVAS) of unit deviation: amplitudes 1/f^a, now and then stretched (fur,
    grain of wood) or in a band of frequencies (scales, knitting)."""
    fy, fx = _frequencies()
    angle, stretch = rng.uniform(0, math.pi), 1.0
    if rng.random() < 0.4:
        stretch = rng.uniform(2, 8)
    u = fx * math.cos(angle) + fy * math.sin(angle)
    v = (fy * math.cos(angle) - fx * math.sin(angle)) * stretch
    f2 = u * u + v * v + np.float32(1.0 / CANVAS**2)
    amplitude = f2 ** (-0.5 * rng.uniform(0.9, 2.0))
    if rng.random() < 0.25:
        centre = math.exp(rng.uniform(math.log(0.03), math.log(0.25)))
        amplitude *= np.exp(-((np.sqrt(f2) - centre) ** 2) / (2 * (0.25 * centre) ** 2)) + 0.02
    noise = rng.standard_normal((2, *amplitude.shape), dtype=np.float32)
    field = np.fft.irfft2(amplitude * (noise[0] + 1j * noise[1]), (CANVAS, CANVAS))
    field = field.astype(np.float32)
    return (field - field.mean()) / (field.std() + 1e-6)


def _mapped(field: np.ndarray, rng: np.random.Generator, mood: _Mood) -> np.ndarray:
    """A texture as colours: two to four of the mood, blended along the field."""
    n = int(rng.integers(2, 5))
    stops = np.sort(rng.normal(0, 1.1, n))
    colours = np.stack([mood.colour(rng) for _ in range(n)])
    hard = max(0.0, rng.uniform(-1.0, 1.0))
    bent = field + hard * 0.9 * np.sin(field * rng.uniform(1, 5))
    return np.stack([np.interp(bent, stops, c) for c in colours.T], -1).astype(np.float32)


# --- leaves -------------------------------------------------------------------------------------

_Y, _X = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)


def _box(cy: float, cx: float, reach: float) -> tuple[slice, slice]:
    def span(c: float) -> slice:
        return slice(max(0, int(c - reach)), max(0, min(CANVAS, int(c + reach) + 2)))

    return span(cy), span(cx)


def _leaf(
    canvas: np.ndarray, fields: list[np.ndarray], mood: _Mood, rng: np.random.Generator, r: float
) -> None:
    """One opaque thing about r pixels large, painted onto the canvas in place."""
    cy, cx = rng.uniform(-0.1, 1.1, 2) * CANVAS
    aspect = math.exp(-abs(rng.normal(0, 0.5)) * (2.5 if rng.random() < 0.2 else 1))
    box = _box(cy, cx, 1.5 * r + 2)
    y, x = _Y[box] - np.float32(cy), _X[box] - np.float32(cx)
    if not y.size:
        return
    angle = rng.uniform(0, math.pi) if rng.random() < 0.7 else 0.0
    u = (x * math.cos(angle) + y * math.sin(angle)) / r
    v = (y * math.cos(angle) - x * math.sin(angle)) / (r * aspect)
    field = fields[rng.integers(len(fields))][box]
    kind = rng.random()
    if kind < 0.5:
        distance = np.sqrt(u * u + v * v)
    elif kind < 0.75:
        distance = np.maximum(abs(u), abs(v))
    elif kind < 0.85:
        distance = np.maximum(abs(u) * 0.87 + v * 0.5, -v)  # a triangle
    else:
        distance = np.sqrt(u * u + v * v) + 0.25 * field
    soft = 0.7 if rng.random() < 0.75 else rng.uniform(1, 6)
    alpha = np.clip((1 - distance) * (r * min(1.0, aspect) / soft) + 0.5, 0, 1)
    if rng.random() < 0.12:  # a ring, or an outline
        alpha *= np.clip((distance - rng.uniform(0.6, 0.9)) * (r * aspect / soft) + 0.5, 0, 1)
    colour = mood.colour(rng)
    tone = 1 + rng.exponential(0.16) * (field if rng.random() < 0.8 else 0)
    tone = tone + rng.normal(0, 0.15) * u + rng.normal(0, 0.15) * v
    if kind < 0.5 and rng.random() < 0.3:  # round: light from one side
        tone = tone * (0.5 + 0.6 * np.sqrt(np.clip(1 - distance * distance, 0, 1)))
    paint = tone[..., None] * colour
    if rng.random() < 0.15:
        paint = paint + 0.5 * (field > rng.normal())[..., None] * (mood.colour(rng) - colour)
    if rng.random() < 0.15:
        alpha = alpha * rng.uniform(0.3, 0.9)  # glass, or a shadow
    canvas[box] += alpha[..., None] * (paint - canvas[box])


def _leaves(canvas: np.ndarray, fields: list[np.ndarray], mood: _Mood, rng: np.random.Generator,
            n: int, smallest: float, largest: float) -> None:  # fmt: skip
    """n leaves with a density of radii r^-p, p of 1.5 to 3, between two bounds."""
    power = 1 - rng.uniform(1.5, 3.0)
    a, b = smallest**power, largest**power
    for q in rng.random(n):
        _leaf(canvas, fields, mood, rng, (a + q * (b - a)) ** (1 / power))


def _writing(canvas: np.ndarray, mood: _Mood, rng: np.random.Generator) -> None:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    mask = PIL.Image.new("L", (CANVAS, CANVAS))
    draw = PIL.ImageDraw.Draw(mask)
    size = int(math.exp(rng.uniform(math.log(8), math.log(70))))
    font = PIL.ImageFont.load_default(size)
    x, y = (float(v) for v in rng.uniform(-20, CANVAS * 0.6, 2))
    for line in range(int(rng.integers(1, 8))):
        text = "".join(rng.choice(_LETTERS, int(rng.integers(3, 30))))
        draw.text((x, y + line * size * 1.3), text, fill=255, font=font)
    if rng.random() < 0.3:
        mask = mask.rotate(float(rng.uniform(-90, 90)), PIL.Image.Resampling.BILINEAR)
    alpha = np.asarray(mask, np.float32)[..., None] / 255
    canvas += alpha * (mood.colour(rng) - canvas)


# --- canvases -----------------------------------------------------------------------------------


def _blurred(canvas: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur by its transfer function; edges wrap, a cut seldom lies there."""
    fy, fx = _frequencies()
    pass_by = np.exp(-2 * (math.pi * sigma) ** 2 * (fy * fy + fx * fx))[..., None]
    spectrum = np.fft.rfft2(canvas, axes=(0, 1)) * pass_by
    return np.fft.irfft2(spectrum, (CANVAS, CANVAS), axes=(0, 1)).astype(np.float32)


@lru_cache(maxsize=2 * _CANVASES)
def make_canvas(seed: int, number: int) -> np.ndarray:
    """Canvas uint8 (CANVAS, CANVAS, 3)."""
    rng = np.random.default_rng((seed, _STREAM_CANVAS, number))
    mood = _mood(rng)
    fields = [_field(rng) for _ in range(4)]
    kind = rng.random()
    slope = rng.normal(0, 0.25, 2)
    ground = 1 + slope[0] * (_Y / CANVAS - 0.5) + slope[1] * (_X / CANVAS - 0.5)
    ground = ground + rng.exponential(0.12) * fields[0]
    canvas = ground[..., None] * mood.colour(rng)
    if kind < 0.30:  # textures
        canvas = _mapped(fields[1], rng, mood)
        where = np.clip(fields[2] * rng.uniform(2, 20) + rng.normal(0, 2), 0, 1)[..., None]
        canvas += where * (_mapped(fields[3], rng, mood) - canvas)
        _leaves(canvas, fields, mood, rng, int(rng.integers(0, 40)), 2, 80)
    elif kind < 0.36:  # lights in the dark
        canvas *= 0.15 * rng.random() / max(1.0, float(canvas.mean()) / 100)
        bright = _Mood(190, 60, mood.chroma, mood.spread)
        _leaves(canvas, fields, bright, rng, int(rng.integers(40, 250)), 0.6, 25)
    elif kind < 0.5:  # few things on smooth ground
        _leaves(canvas, fields, mood, rng, int(rng.integers(3, 40)), 8, 200)
    else:
        smallest = math.exp(rng.uniform(math.log(1.5), math.log(8)))
        _leaves(canvas, fields, mood, rng, int(rng.integers(150, 450)), smallest, 160)
    if rng.random() < 0.25:
        _writing(canvas, mood, rng)
    if rng.random() < 0.4:  # uneven light
        light = _blurred(fields[3][..., None], rng.uniform(15, 50))
        canvas *= 1 + rng.uniform(0, 0.3) * light / (light.std() + 1e-6)
    if rng.random() < 0.4:
        canvas = _blurred(canvas, rng.uniform(0.4, 1.6))
    if rng.random() < 0.6:
        canvas += rng.exponential(2.0) * rng.standard_normal(canvas.shape, dtype=np.float32)
    out = np.clip(canvas, 0, 255).astype(np.uint8)
    out.setflags(write=False)  # it is shared
    return out
