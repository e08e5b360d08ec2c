"""What a reconstruction lost and cost: the figures of an original and its file, by modality.

Figures are of media as written and read back: 8-bit pixels, 16-bit samples, H.264. `MEASURED`
says how, in the words that a protocol is stamped with. Knows no codec and no task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyglyph.eval.metrics import clip_ssim, difference_psnr, mel_distance, psnr, si_sdr, ssim
from polyglyph.eval.stoi import stoi
from polyglyph.media import mix_channels, modality_of, resample

Figures = dict[str, float]
# SSIM holds a dozen float64 copies of its picture: 8 million pixels take 2 GiB.
_MOST_SSIM_PIXELS = 4_000_000
SOUND = "sound_"  # the figures of a clip's sound begin with it


def measure(original: Any, result: Any, n_bits: float) -> Figures:
    """{name: value} of an original medium and what came back; `n_bits` is what the codes take."""
    modality = modality_of(original)
    figures, rates = _MEASURES.get(modality, _equal), _RATES.get(modality, _no_rate)
    return {**figures(original, result), **rates(original, n_bits)}


def _image(a: Any, b: Any) -> Figures:
    figures = {"psnr_db": psnr(a.array, b.array)}
    if a.width * a.height <= _MOST_SSIM_PIXELS:
        figures["ssim"] = ssim(a.array, b.array)
    return figures


def _video(a: Any, b: Any) -> Figures:
    # A container may pad odd sizes, or drop a last frame of no duration.
    n = min(a.n_frames, b.n_frames)
    one, other = a.frames[:n], b.frames[:n, : a.height, : a.width]
    figures = {"psnr_db": psnr(one, other), "difference_psnr_db": difference_psnr(one, other)}
    if one[0].size // 3 <= _MOST_SSIM_PIXELS:
        figures["ssim"] = clip_ssim(one, other)
    if a.audio is None or b.audio is None or not min(a.audio.n_samples, b.audio.n_samples):
        return figures
    return figures | {SOUND + name: value for name, value in _audio(a.audio, b.audio).items()}


def _audio(a: Any, b: Any) -> Figures:
    """At the rate of the result, in mono, over the shorter of the two."""
    target = resample(mix_channels(a.samples, 1), a.sample_rate, b.sample_rate)
    n = min(target.shape[-1], b.n_samples)
    one, other = target[:, :n], mix_channels(b.samples, 1)[:, :n]
    figures = {
        "si_sdr_db": si_sdr(other, one),
        "mel_distance": mel_distance(other, one, b.sample_rate),
    }
    heard = stoi(other, one, b.sample_rate)
    return figures if heard is None else {**figures, "stoi": heard}


def _values(a: Any, b: Any) -> Figures:
    return {"largest_error": float(abs(a.values - b.values).max())}


def _equal(a: Any, b: Any) -> Figures:
    return {"equal": float(a == b)}


def _per_pixel(medium: Any, n_bits: float) -> Figures:
    return {"bits_per_pixel": n_bits / (medium.width * medium.height)}


def _per_second(medium: Any, n_bits: float) -> Figures:
    return {"bits_per_s": n_bits / medium.duration_s}


def _no_rate(medium: Any, n_bits: float) -> Figures:
    return {}


def values_of(medium: Any) -> list[Any]:
    """All that tells a medium from another one, as arrays and JSON values; its hash names it."""
    return _VALUES.get(modality_of(medium), _plain_values)(medium)


def _plain_values(medium: Any) -> list[Any]:
    return [medium] if isinstance(medium, str) else [medium.values]


def _clip_values(clip: Any) -> list[Any]:
    sound = clip.audio
    return [clip.frames, clip.fps] + ([] if sound is None else [sound.samples, sound.sample_rate])


_VALUES: dict[str, Callable[[Any], list[Any]]] = {
    "image": lambda image: [image.array],
    "video": _clip_values,
    "audio": lambda sound: [sound.samples, sound.sample_rate],
}
_MEASURES: dict[str, Callable[[Any, Any], Figures]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    "region": _values,
    "action": _values,
}
_RATES: dict[str, Callable[[Any, float], Figures]] = {
    "image": _per_pixel,
    "video": _per_second,
    "audio": _per_second,
}
# How the figures above are taken; part of every protocol.
MEASURED: dict[str, str] = {
    "image": "uint8 RGB 0..255 of the PNG as written; PSNR over all pixels and channels in "
    "float64, at most 100 dB; SSIM with a Gaussian of 11 pixels",
    "video": "uint8 RGB 0..255 of the MP4 as written (H.264, crf 18, 4:2:0); PSNR over all "
    "frames, SSIM per frame",
    "audio": "16 bits of the WAV as written, mono, at the codec's rate; mel distance in log10 of "
    "80 bands; STOI at 10 kHz",
}
# What is said in addition where some of the media have such figures.
MEASURED_SOUND = "its sound as the AAC of the MP4, mono, like a sound by itself"
MEASURED_PARTS = (
    "long sounds in parts: SI-SDR of the whole, mel distance and STOI the means over stretches "
    "of 30 s"
)
