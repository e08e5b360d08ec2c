"""Sounds: files through soundfile to float32 (C, S) and back, resampling, mixing of channels.

Knows WAV, FLAC, OGG (Vorbis, Opus) and MP3; the sound of a container file is media_video's.
One resampler (soxr) for training and use alike."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from polyglyph.errors import MediaError
from polyglyph.media_formats import MP3, OGG, WAV, Format, Limits

_SUBTYPES = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"),
             ".opus": ("OGG", "OPUS"), ".mp3": ("MP3", "MPEG_LAYER_III")}  # fmt: skip
_RATES = {
    ".opus": (8000, 12000, 16000, 24000, 48000),
    ".mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
_MAX_CHANNELS = {".mp3": 2, ".opus": 2, ".ogg": 8, ".flac": 8}
_BLOCK = 1 << 16  # samples a write; libsndfile's Vorbis and Opus writers overflow on huge ones
_READ = 1 << 12  # samples a read; where a damaged FLAC stops, the whole read is lost
_HALF = math.sqrt(0.5)
_MP3_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # MPEG-1
_MP3_LOW_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # MPEG-2, 2.5
_MP3_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")


def from_array(samples: np.ndarray) -> np.ndarray:
    """float32 (C, S) from (S,) or (C, S) of floats or integer PCM; refuses what isn't finite."""
    samples = np.asarray(samples)
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or samples.shape[0] == 0:
        raise MediaError(f"a sound is an array (channels, samples); got shape {samples.shape}")
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype in (np.int16, np.int32):
        samples = samples / np.float64(-float(np.iinfo(samples.dtype).min))
    elif samples.dtype.kind != "f":
        raise MediaError(f"samples are floats or integer PCM; got {samples.dtype}")
    check_finite(samples, "the sound")
    return np.ascontiguousarray(samples, dtype=np.float32)


def check_finite(samples: np.ndarray, label: str) -> None:
    """Raises MediaError that counts the samples of (C, S) that are NaN or infinite."""
    wrong = ~np.isfinite(samples)
    if wrong.any():
        first = int(np.argmax(wrong.any(axis=0)))
        raise MediaError(
            f"{label} holds {int(wrong.sum())} samples that are not finite (the first at sample "
            f"{first}); expected numbers in [-1, 1]; repair the sound"
        )


def decode(
    file: BinaryIO, label: str, found: Format, limits: Limits, strict: bool, notes: list[str]
) -> tuple[np.ndarray, int]:
    """(float32 (C, S), sample rate in Hz) of a sound file, at its own rate and channels."""
    rates, parts = [], []
    for block, rate in blocks(file, label, found, limits, strict, notes):
        parts.append(block)
        rates.append(rate)
    samples = np.concatenate(parts, axis=1)
    check_finite(samples, label)
    return samples, rates[0]


def blocks(
    file: BinaryIO, label: str, found: Format, limits: Limits, strict: bool, notes: list[str]
) -> Iterator[tuple[np.ndarray, int]]:
    """What `decode` joins, block by block: (float32 (C, s), sample rate in Hz), at least one.

    What is missing is only known, noted and refused at the end."""
    import soundfile

    promised = _wav_promise(file) if found is WAV else None
    walked = _mp3_frames(file) if found is MP3 else None
    file.seek(0)
    n_read, is_damaged = 0, False
    try:
        with soundfile.SoundFile(file) as sound:
            rate, expected = sound.samplerate, sound.frames
            # The frame count of an OGG is only known by its last page; a broken one claims 2^63.
            known = max(0, min(expected, 1 << 48))
            limits.check_duration(known / rate, 4.0 * known * sound.channels, label)
            while True:  # until the end: a header may lie
                try:
                    block = sound.read(_READ, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError:
                    is_damaged = True
                    break
                if not len(block):
                    break
                n_read += len(block)
                limits.check_duration(n_read / rate, 4.0 * n_read * sound.channels, label)
                yield np.ascontiguousarray(block.T), rate
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split(":")[-1].split()).rstrip(".")
        raise MediaError(
            f"{label} can't be read as {found.name} sound: {reason}; fetch it again"
        ) from error
    if n_read == 0:
        raise MediaError(f"{label} contains no samples; expected at least one")
    if walked is not None:
        promised = walked.n_samples if n_read < walked.n_samples - walked.slack else None
        is_damaged |= walked.is_cut
        if walked.n_foreign:
            text = f"{walked.n_foreign} bytes between its frames are damaged and were left out"
            if strict:
                raise MediaError(f"{label}: {text}; fetch it again or leave strict off")
            notes.append(text)
    expected = max(expected if found is not OGG else 0, promised or 0)
    if n_read < expected or is_damaged:
        text = f"ends early: {n_read} samples of {max(expected, n_read)} could be read"
        if strict:
            raise MediaError(f"{label} {text}; fetch it again or leave strict off")
        notes.append(text)


def _wav_promise(file: BinaryIO) -> int | None:
    """The samples per channel that a WAV's header promises, or None where it doesn't say.

    Read here because libsndfile clips its own count to what the file holds."""
    start = file.read(12)
    order = ">" if start[:4] == b"RIFX" else "<"
    block_align, is_plain, long_size = 0, False, None
    while len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack(f"{order}I", header[4:])[0]
        if name == b"data":
            size = long_size if size == 0xFFFFFFFF else size
            # 0 and the all-ones size stand for "unknown" in a file that was streamed out.
            return size // block_align if size and block_align and is_plain else None
        body = file.read(min(size, 64)) if name in (b"fmt ", b"ds64") else b""
        if name == b"fmt " and len(body) >= 16:
            tag, _, _, _, block_align = struct.unpack(f"{order}HHIIH", body[:14])
            is_plain = tag in (1, 3, 6, 7, 0xFFFE)  # PCM, float, A-law, mu-law, extensible
        if name == b"ds64" and len(body) >= 16:
            long_size = struct.unpack(f"{order}Q", body[8:16])[0]
        file.seek(size - len(body) + size % 2, io.SEEK_CUR)
    return None


@dataclass(frozen=True)
class _Mp3Frames:
    """What the frame headers of an MP3 say."""

    n_samples: int
    slack: int  # samples that a decoder may leave out: the header frame, delay and padding
    n_foreign: int  # bytes between frames that belong to none
    is_cut: bool  # the last frame is not whole


def _mp3_frames(file: BinaryIO) -> _Mp3Frames | None:
    """Walks from frame to frame; None where the file doesn't begin with one of layer III.

    The decoder finds its way over damage and says nothing of what it left out."""
    file.seek(0)
    data = file.read()
    at = 0
    if data[:3] == b"ID3" and len(data) > 10:  # a length of four times seven bits
        at = 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(data[6:10]))
    first = _mp3_frame(data, at)
    if first is None:
        return None
    # Without the header frame the decoder guesses the length, and reads no further.
    head = data[at + 4 : at + 48].lstrip(b"\0")
    slack = 4 * 1152 if head.startswith((b"Info", b"Xing")) else 1152
    n_samples = n_foreign = 0
    while at < len(data):
        frame = _mp3_frame(data, at)
        if frame is None:
            start, at = at, _next_mp3_frame(data, at)
            is_tag = data[start : start + 11].startswith(_MP3_TAGS) or not data[start:at].strip(
                b"\0"
            )
            n_foreign += 0 if at == len(data) and is_tag else at - start
            continue
        if at + frame[0] > len(data):
            return _Mp3Frames(n_samples, slack, n_foreign, True)
        at, n_samples = at + frame[0], n_samples + frame[1]
    return _Mp3Frames(n_samples, slack, n_foreign, False)


def _mp3_frame(data: bytes, at: int) -> tuple[int, int] | None:
    """(bytes, samples) of the layer III frame at `at`, by its header (ISO 11172-3, 13818-3)."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = (head[1] >> 3) & 3, head[2] >> 4, (head[2] >> 2) & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    hertz = (44100, 48000, 32000)[rate] // (1 if is_first else 2 if version == 2 else 4)
    bits_per_s = 1000 * (_MP3_KBPS if is_first else _MP3_LOW_KBPS)[bitrate]
    n_samples = 1152 if is_first else 576
    return n_samples // 8 * bits_per_s // hertz + ((head[2] >> 1) & 1), n_samples


def _next_mp3_frame(data: bytes, at: int) -> int:
    """Where the next two frames in a row begin, or the end."""
    while (at := data.find(b"\xff", at + 1)) >= 0:
        frame = _mp3_frame(data, at)
        if frame is not None:
            after = at + frame[0]
            if after >= len(data) - 4 or _mp3_frame(data, after) is not None:
                return at
    return len(data)


def encode(samples: np.ndarray, sample_rate: int, suffix: str, notes: list[str]) -> bytes:
    """The file of float32 (C, S). WAV and FLAC at 16 bits; MP3 and Opus at a rate that they know.

    Samples beyond [-1, 1] are clamped, with a note; samples that aren't finite are an error."""
    samples = clamped(samples, notes)
    if samples.shape[0] > _MAX_CHANNELS.get(suffix, 1024):
        _note(notes, f"{samples.shape[0]} channels were mixed to 2, all that {suffix} holds here")
        samples = mix_channels(samples, 2)
    rate = nearest_rate(sample_rate, _RATES.get(suffix))
    if rate != sample_rate:
        _note(notes, f"resampled from {sample_rate} to {rate} Hz, which {suffix} needs")
        samples = np.clip(resample(samples, sample_rate, rate), -1.0, 1.0)
    buffer = io.BytesIO()
    blocks = (samples[:, start : start + _BLOCK] for start in range(0, samples.shape[1], _BLOCK))
    _write(buffer, blocks, rate, samples.shape[0], suffix)
    return buffer.getvalue()


def holds(suffix: str, sample_rate: int, n_channels: int) -> bool:
    """Whether a file of that suffix takes such a sound as it is, so in parts too."""
    fits = n_channels <= _MAX_CHANNELS.get(suffix, 1024)
    return fits and nearest_rate(sample_rate, _RATES.get(suffix)) == sample_rate


def write_parts(
    path: Path, parts: Iterable[np.ndarray], sample_rate: int, n_channels: int, suffix: str,
    notes: list[str],
) -> None:  # fmt: skip
    """The file of a sound that comes in parts, float32 (C, s), of which no more than one is held:
    what `encode` of the whole gives. The suffix `holds` such a sound."""
    count, peak = 0, 0.0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal count, peak
        for part in parts:
            check_finite(part, "the sound to write")
            for start in range(0, part.shape[1], _BLOCK):
                block = part[:, start : start + _BLOCK]
                size = np.abs(block)
                count, peak = count + int((size > 1.0).sum()), max(peak, float(size.max()))
                yield np.clip(block, -1.0, 1.0)

    with path.open("w+b") as file:
        _write(file, blocks(), sample_rate, n_channels, suffix)
    _note_clamped(notes, count, peak)


def _write(
    file: BinaryIO, blocks: Iterable[np.ndarray], rate: int, n_channels: int, suffix: str
) -> None:
    """Blocks (C, s ≤ _BLOCK) in [-1, 1]."""
    import soundfile

    kind, subtype = _SUBTYPES[suffix]
    try:
        with soundfile.SoundFile(
            file, "w", rate, n_channels, format=kind, subtype=subtype
        ) as sound:
            for block in blocks:
                rows: np.ndarray = to_pcm16(block.T) if subtype == "PCM_16" else block.T
                sound.write(np.ascontiguousarray(rows))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaError(
            f"a sound of {n_channels} channels at {rate} Hz can't be written as {suffix}: {error}"
        ) from error


def clamped(samples: np.ndarray, notes: list[str]) -> np.ndarray:
    """The samples in [-1, 1], with a note of the peak where it was beyond; all must be finite."""
    check_finite(samples, "the sound to write")
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > 1.0:
        _note_clamped(notes, int((np.abs(samples) > 1.0).sum()), peak)
    return np.clip(samples, -1.0, 1.0)


def _note_clamped(notes: list[str], count: int, peak: float) -> None:
    if count:
        _note(notes, f"{count} samples beyond full scale (peak {peak:.3g}) were clamped")


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """int16 of samples in [-1, 1], by 32768 as they are read: a 16-bit file survives exactly."""
    return np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)


def nearest_rate(sample_rate: int, rates: tuple[int, ...] | None) -> int:
    """The lowest rate of `rates` that isn't below `sample_rate`, else the highest; Hz."""
    if rates is None or sample_rate in rates:
        return sample_rate
    return min((rate for rate in rates if rate >= sample_rate), default=max(rates))


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """float32 (C, S) at another rate in Hz: round(S * to_rate / from_rate) samples, at least one
    where there was one. soxr's high quality."""
    if from_rate == to_rate or samples.shape[1] == 0:
        return np.ascontiguousarray(samples, dtype=np.float32)
    import soxr

    # Halves round up, by integers: a float would be off for long sounds.
    n_samples = max(1, (2 * samples.shape[1] * to_rate + from_rate) // (2 * from_rate))
    rows = np.ascontiguousarray(samples.T, dtype=np.float32)
    result = soxr.resample(rows, from_rate, to_rate, quality="HQ").T[:, :n_samples]
    missing = n_samples - result.shape[1]
    if missing:
        result = np.pad(result, ((0, 0), (0, missing)))
    return np.ascontiguousarray(result, dtype=np.float32)


def mix_channels(samples: np.ndarray, n_channels: int) -> np.ndarray:
    """float32 (C, S) to (n_channels, S).

    Down to mono: the mean of left and right. 5.1 (FL FR FC LFE BL BR) folds to left and right
    first: front + 0.707 centre + 0.707 back, over the sum of the weights, so that it can't clip;
    the LFE is dropped (ITU-R BS.775). Other counts go down by the plain mean, and up by repeating
    that mean."""
    have = samples.shape[0]
    if have == n_channels:
        return np.ascontiguousarray(samples, dtype=np.float32)
    if have == 6 and n_channels <= 2:
        front_left, front_right, centre, _, back_left, back_right = samples
        left = front_left + _HALF * centre + _HALF * back_left
        right = front_right + _HALF * centre + _HALF * back_right
        samples = np.stack([left, right]) / (1 + 2 * _HALF)
        if n_channels == 2:
            return np.ascontiguousarray(samples, dtype=np.float32)
    mono = samples.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    return np.ascontiguousarray(np.repeat(mono, n_channels, axis=0))


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)
