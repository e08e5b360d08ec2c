"""Pieces of a self-contained HTML page: style, players, mosaics of codes, spectrograms.

Everything is embedded; a page loads nothing, runs no script and works from a file. Knows media and
grids of codes, not what a page is about.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np

from polyglyph.eval.files import file_bytes, suffix_of
from polyglyph.media import MODALITY_OF

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f27; --soft: #667084; --line: #e1e5ec;
  --paper: #f6f7f9; --card: #fff; --accent: #3b6fd4; --good: #1f8a5b; --bad: #c8433f;
  --good-back: #e3f5ec; --bad-back: #fbe7e6; --floor: #a9b0bd; --well: #eef1f5 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaef; --soft: #98a1b3; --line: #2a2f3a;
  --paper: #111318; --card: #191c23; --accent: #7aa5f7; --good: #5fd0a0; --bad: #f08a86;
  --good-back: #15352a; --bad-back: #3d2022; --floor: #586070; --well: #20242d } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1120px; padding: 2.4rem 1.2rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.02em }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; letter-spacing: -.01em }
p { margin: .35rem 0; max-width: 78ch } a { color: var(--accent) }
.soft { color: var(--soft) } .small { font-size: .85rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; margin: .6rem 0 }
th, td { text-align: left; padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top } th { font-weight: 600; color: var(--soft); font-size: .85em }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
code { font-size: .92em; overflow-wrap: anywhere }
details { margin: .6rem 0 } summary { cursor: pointer; color: var(--soft) }
.bar { position: relative; width: 180px; height: 12px; border-radius: 6px; background: var(--line);
  margin-top: .35rem }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 6px; background: var(--accent) }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--good) }
.bar b.floor { background: var(--floor) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .8rem;
  margin: 1.4rem 0 }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 14px }
.tile { padding: .8rem 1rem } .tile b { display: block; font-size: 1.35rem; line-height: 1.3 }
.card { padding: 1.1rem 1.2rem; margin: 0 0 1rem }
.card header { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: baseline;
  margin-bottom: .8rem } .card h3 { font-size: 1rem; margin: 0 }
.sides { display: grid; grid-template-columns: minmax(0, 1fr) auto minmax(0, 1fr); gap: 1rem;
  align-items: center } .arrow { font-size: 1.4rem; color: var(--soft) }
@media (max-width: 680px) { .sides { grid-template-columns: minmax(0, 1fr) }
  .arrow { transform: rotate(90deg); justify-self: start } }
.row { display: flex; flex-wrap: wrap; gap: .9rem; align-items: flex-start }
figure { margin: 0 } figcaption { color: var(--soft); font-size: .8rem; margin-top: .25rem }
blockquote { margin: 0; padding: .6rem .9rem; background: var(--well); border-radius: 10px;
  font-size: 1.05rem; overflow-wrap: anywhere }
img, video, .over { display: block; border-radius: 8px; background: var(--well) }
img.tiny, img.photo, video { outline: 1px solid var(--line) }
img.tiny, video { width: 168px; image-rendering: pixelated } img.photo { max-width: 300px;
  width: 100% } img.mosaic { height: 96px; image-rendering: pixelated; border-radius: 5px }
img.strip { width: 260px; height: 44px; image-rendering: pixelated; border-radius: 5px }
img.photo-mosaic { width: 168px; image-rendering: pixelated; border-radius: 5px }
img.spectrogram { width: 260px; height: 84px } audio { width: 260px; display: block;
  margin-top: .4rem }
.over { position: relative; width: fit-content } .over svg { position: absolute; inset: 0 }
.badge { border-radius: 999px; padding: .1rem .65rem; font-size: .82rem; font-weight: 600 }
.badge.good { background: var(--good-back); color: var(--good) }
.badge.bad { background: var(--bad-back); color: var(--bad) }
.badge.plain { background: var(--well); color: var(--soft) }
.matrix td, .matrix th { text-align: center; padding: .5rem } .matrix th:first-child {
  text-align: left }
"""

_PHOTO = 100  # pixels: a wider picture is no picture of the built-in world


def frame(title: str, body: str) -> str:
    """The whole page around a body."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


_TYPES = {".png": "image/png", ".wav": "audio/wav", ".mp4": "video/mp4"}


def data_uri(data: bytes, suffix: str) -> str:
    """The bytes of a file as a URI."""
    return f"data:{_TYPES[suffix]};base64,{base64.b64encode(data).decode()}"


def figure(inner: str, caption: str = "") -> str:
    """Something to look at, with a line below."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{inner}{below}</figure>"


def _png(pixels: np.ndarray) -> bytes:
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _text(medium: Any, alt: str) -> str:
    return f"<blockquote>{escape(medium) or '<span class=soft>nothing</span>'}</blockquote>"


def _image(medium: Any, alt: str) -> str:
    kind = "tiny" if medium.width <= _PHOTO else "photo"
    source = data_uri(file_bytes(medium), suffix_of(medium))
    return f'<img class="{kind}" src="{source}" alt="{escape(alt)}">'


def _video(medium: Any, alt: str) -> str:
    source = data_uri(file_bytes(medium), suffix_of(medium))
    return (
        f'<video src="{source}" controls loop autoplay muted playsinline '
        f'aria-label="{escape(alt)}"></video>'
    )


def _audio(medium: Any, alt: str) -> str:
    source = data_uri(file_bytes(medium), suffix_of(medium))
    picture = data_uri(_png(spectrogram(medium.samples.mean(0), medium.sample_rate)), ".png")
    return (
        f'<img class="spectrogram" src="{picture}" alt="spectrogram of {escape(alt)}">'
        f'<audio src="{source}" controls preload="metadata" aria-label="{escape(alt)}"></audio>'
    )


def _values(medium: Any, alt: str) -> str:
    values = medium.values.ravel()
    more = " …" if len(values) > 64 else ""
    return f"<code>{' '.join(f'{value:.2f}' for value in values[:64])}{more}</code>"


_SHOW: dict[str, Callable[[Any, str], str]] = {
    "text": _text,
    "image": _image,
    "video": _video,
    "audio": _audio,
}


def show(medium: Any, alt: str) -> str:
    """The medium, embedded: a quotation, a picture, a player, else its numbers."""
    return _SHOW.get(MODALITY_OF(medium), _values)(medium, alt)


def with_box(image: Any, boxes: list[tuple[np.ndarray, str]], alt: str) -> str:
    """A picture with boxes (x0, y0, x1, y1 in [0, 1]) over it, each with an SVG style."""
    shapes = "".join(
        f'<rect x="{100 * x0:.2f}" y="{100 * y0:.2f}" width="{100 * (x1 - x0):.2f}" '
        f'height="{100 * (y1 - y0):.2f}" fill="none" {style}/>'
        for (x0, y0, x1, y1), style in boxes
    )
    svg = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{shapes}</svg>'
    return f'<div class="over">{_image(image, alt)}{svg}</div>'


def mosaic_pixels(codes: np.ndarray) -> np.ndarray:
    """A grid of codes (Q, *grid) as pixels, one per code: its hue and lightness are the code's.

    (Q, F) of a sound is Q rows; the frames of a clip stand side by side with a gap."""
    flat = codes[:, None, :] if codes.ndim == 2 else codes
    planes = flat.reshape(-1, *flat.shape[-2:])  # (Q * F, H, W)
    colored = _colors(planes)
    if codes.ndim == 2:
        return colored[:, 0]
    gap = np.zeros((colored.shape[1], 1, 4), np.uint8)
    parts = [part for plane in colored for part in (gap, plane)]
    return np.concatenate(parts[1:], axis=1)


def _colors(codes: np.ndarray) -> np.ndarray:
    """RGBA uint8 (*, 4); steps of the golden ratio keep neighbouring codes apart."""
    hue = (codes * 0.6180339887) % 1.0
    light = 0.38 + 0.42 * ((codes * 0.3819660113 * 7) % 1.0)
    ramp = np.abs((hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    rgb = light[..., None] * (0.35 + 0.65 * np.clip(ramp, 0, 1)) * 1.25
    alpha = np.full((*codes.shape, 1), 255.0)
    return np.concatenate([np.clip(255 * rgb, 0, 255), alpha], -1).round().astype(np.uint8)


def mosaic(codes: np.ndarray, alt: str, large: bool = False) -> str:
    """The codes of a medium as a picture of coloured cells, with their number below."""
    grid = "×".join(map(str, codes.shape[1:]))
    n_codebooks = f"{codes.shape[0]} × " if codes.shape[0] > 1 else ""
    kind = "strip" if codes.ndim == 2 else "photo-mosaic" if large else "mosaic"
    source = data_uri(_png(mosaic_pixels(codes)), ".png")
    image = f'<img class="{kind}" src="{source}" alt="codes of {escape(alt)}">'
    return figure(image, f"{n_codebooks}{grid} codes")


def spectrogram(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Samples (S,) as pixels (96, columns, 3): low tones below, 150 Hz to 6 kHz, loud is bright."""
    n_fft = 1024
    padded = np.pad(samples.astype(np.float32), n_fft // 2)
    hop = max(1, (len(padded) - n_fft) // 240)
    cuts = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    power = np.abs(np.fft.rfft(cuts * np.hanning(n_fft).astype(np.float32)))  # (columns, bins)
    hz = np.geomspace(150, min(6000, sample_rate / 2), 96)[::-1]
    bins = np.clip((hz * n_fft / sample_rate).round().astype(int), 0, n_fft // 2)
    level = np.clip((20 * np.log10(power[:, bins].T / n_fft * 4 + 1e-5) + 70) / 60, 0, 1)
    ramp = np.stack([level**0.8 * 250, level**1.6 * 210, 40 + 120 * level - 60 * level**3], -1)
    return np.clip(ramp, 0, 255).astype(np.uint8)
