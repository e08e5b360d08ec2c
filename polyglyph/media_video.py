"""Clips, and the sound of container files, through PyAV: MP4, WebM, MKV, M4A, AAC.

Reading gives upright 8-bit RGB with square pixels at a constant rate; writing pads odd sizes to
even. The demuxer is named, never guessed: no file can pass for a playlist that opens others."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from polyglyph.errors import MediaError
from polyglyph.media_audio import clamped, mix_channels, nearest_rate, resample
from polyglyph.media_formats import AAC, WEBM, Format, Limits

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_X264 = {"crf": "18", "preset": "fast"}
_VP9 = {"crf": "20", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
_DAMAGE_SHARE = 0.1  # of the packets that may be undecodable before the clip is refused
_SOUND_SLACK_S = 0.1  # codecs pad their sound
_BT709 = 1  # matrix, primaries and transfer alike (H.273)
_HDR_TRANSFERS = (16, 18)  # PQ and HLG (H.273)


@dataclass
class Clip:
    """What a container holds."""

    frames: np.ndarray | None  # uint8 (F, H, W, 3)
    fps: float
    samples: np.ndarray | None  # float32 (C, S)
    sample_rate: int | None


def from_array(frames: np.ndarray) -> np.ndarray:
    """Checks uint8 (F, H, W, 3)."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise MediaError(
            f"a clip is uint8 (frames, height, width, 3); got {frames.dtype} {frames.shape}"
        )
    return np.ascontiguousarray(frames)


def at_constant_rate(
    frames: Sequence[np.ndarray],
    times: Sequence[float],
    duration_s: float,
    nominal: float | None,
    notes: list[str],
) -> tuple[np.ndarray, float]:
    """(uint8 (F, H, W, 3), fps) of frames that are shown from `times` (s, rising) to `duration_s`.

    Times that lie on the grid of the `nominal` rate, or of the measured one, to a quarter of a
    frame keep every frame. Else the rate is that of the shorter intervals (the lowest tenth), at
    most 60 fps but never under the average, and output frame n is what is on screen at
    (n + 0.5) / fps."""
    n_frames = len(frames)
    mean = n_frames / duration_s
    for fps in (nominal or _tidy(mean), _tidy(mean), mean):
        if np.abs(np.asarray(times) - np.arange(n_frames) / fps).max() <= 0.25 / fps:
            return np.stack(frames), fps
    intervals = np.diff(np.append(times, duration_s))
    short = float(np.quantile(intervals[intervals > 0], 0.1, method="lower"))
    fps = _tidy(max(mean, min(60.0, 1 / short)))
    middles = (np.arange(max(1, round(duration_s * fps))) + 0.5) / fps
    chosen = np.clip(np.searchsorted(times, middles, side="right") - 1, 0, n_frames - 1)
    notes.append(
        f"variable frame rate: {n_frames} frames were sampled by time to {len(chosen)} "
        f"at {fps:g} fps"
    )
    return np.stack([frames[index] for index in chosen]), fps


def _tidy(fps: float) -> float:
    """A measured rate without the noise of millisecond clocks."""
    return float(round(fps)) if round(fps) and abs(fps / round(fps) - 1) < 0.005 else round(fps, 3)


def decode(
    file: BinaryIO,
    label: str,
    found: Format,
    limits: Limits,
    strict: bool,
    notes: list[str],
    *,
    needs_pictures: bool = False,
    needs_sound: bool = False,
) -> Clip:
    """The pictures and the sound of a container.

    Pictures with their sound, where there are pictures, else the sound. `needs_pictures` refuses a
    file without them; `needs_sound` takes the sound alone and refuses a file without it."""
    import av

    demuxer = "matroska" if found is WEBM else "aac" if found is AAC else "mp4"
    try:
        container = av.open(file, "r", format=demuxer, metadata_errors="ignore")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise _unreadable(label, found, error) from error
    with container:
        pictures = [s for s in container.streams.video if _is_usable(s)]
        sounds = [s for s in container.streams.audio if _is_usable(s)]
        if needs_pictures and not pictures:
            raise MediaError(f"{label} has no video stream that can be decoded; load it as audio")
        if needs_sound and not sounds:
            raise MediaError(f"{label} has no audio stream that can be decoded; load it as video")
        if not pictures and not sounds:
            raise MediaError(
                f"{label} has no video or audio stream that can be decoded; fetch it again"
            )
        picture = pictures[0] if pictures and not needs_sound else None
        reading = _Reading(label, limits, notes, picture, sounds[0] if sounds else None)
        try:
            _read(container, reading)
        except (av.FFmpegError, ValueError, OSError) as error:
            if isinstance(error, MediaError):
                raise
            raise _unreadable(label, found, error) from error
        return _assemble(reading, strict)


def _unreadable(label: str, found: Format, error: Exception) -> MediaError:
    reason = " ".join((getattr(error, "strerror", None) or str(error)).split())[:120]
    return MediaError(
        f"{label} can't be read as {found.name}: {reason.lower()}; it may be cut off or damaged, "
        f"fetch it again"
    )


def _is_usable(stream: Any) -> bool:
    """False for a stream without a decoder, and for the cover picture of a sound file."""
    is_cover = "attached_pic" in str(stream.disposition).lower()
    return stream.codec_context is not None and not is_cover


@dataclass
class _Reading:
    """A file while it is read."""

    label: str
    limits: Limits
    notes: list[str]
    picture: Any | None
    sound: Any | None
    frames: list[np.ndarray] = field(default_factory=list)  # each uint8 (H, W, 3)
    times: list[float | None] = field(default_factory=list)
    last_s: float = 0.0  # how long the last frame is shown; 0 where the file doesn't say
    size: tuple[int, int] | None = None  # (width, height) of a frame with square pixels, not turned
    blocks: list[np.ndarray] = field(default_factory=list)  # each float32 (C, S)
    sound_start_s: float | None = None
    n_bytes: int = 0
    n_packets: int = 0
    n_damaged: int = 0
    whole_s: float = 0.0  # by the header


def _read(container: Any, reading: _Reading) -> None:
    import av

    streams = [s for s in (reading.picture, reading.sound) if s is not None]
    _check_header(container, reading)
    resampler = av.AudioResampler(format="fltp") if reading.sound is not None else None
    for packet in container.demux(*streams):
        reading.n_packets += packet.size > 0
        try:
            decoded = packet.decode()
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            reading.n_damaged += 1
            continue
        for frame in decoded:
            if isinstance(frame, av.VideoFrame):
                _take_picture(frame, reading)
            elif resampler is not None:
                if reading.sound_start_s is None:
                    reading.sound_start_s = frame.time
                for block in resampler.resample(frame):
                    _take_sound(block, reading)
    if resampler is not None and reading.blocks:
        for block in resampler.resample(None):
            _take_sound(block, reading)


def _check_header(container: Any, reading: _Reading) -> None:
    """The limits, by what the header says; the counts are checked again while reading."""
    limits, label, stream = reading.limits, reading.label, reading.picture
    duration_s = (container.duration or 0) / 1_000_000
    n_bytes = 0.0
    if stream is not None:
        limits.check_size(stream.width, stream.height, label)
        n_frames = stream.frames or math.floor(duration_s * float(stream.average_rate or 0))
        limits.check_frames(n_frames, label)
        n_bytes += n_frames * stream.width * stream.height * 3.0
    if reading.sound is not None:
        n_bytes += duration_s * reading.sound.rate * reading.sound.channels * 4.0
    limits.check_duration(duration_s, n_bytes, label)
    reading.whole_s = duration_s


def _take_picture(frame: Any, reading: _Reading) -> None:
    if reading.size is None:
        reading.limits.check_size(frame.width, frame.height, reading.label)
        reading.size = _square_size(frame, reading)
        _note_conversions(frame, reading.notes)
    width, height = reading.size
    # The matrix and range are the frame's own. Bicubic: swscale's default smears chroma.
    plain = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    pixels = _turned(plain.to_ndarray(), _display_matrix(frame), reading.notes)
    if reading.frames and pixels.shape != reading.frames[0].shape:
        raise MediaError(f"{reading.label} turns its frames midway; cut it there")
    reading.frames.append(pixels)
    reading.times.append(frame.time)
    reading.last_s = float(frame.duration * frame.time_base) if frame.duration else 0.0
    _count(reading, pixels.nbytes)


def _take_sound(block: Any, reading: _Reading) -> None:
    samples = block.to_ndarray()
    if reading.blocks and samples.shape[0] != reading.blocks[0].shape[0]:
        raise MediaError(f"{reading.label} changes its number of channels midway; cut it there")
    reading.blocks.append(samples)
    _count(reading, samples.nbytes)


def _count(reading: _Reading, n_bytes: int) -> None:
    reading.n_bytes += n_bytes
    reading.limits.check_frames(len(reading.frames), reading.label)
    reading.limits.check_duration(0.0, reading.n_bytes, reading.label)


def _square_size(frame: Any, reading: _Reading) -> tuple[int, int]:
    """(width, height) with square pixels: the short side of a pixel is stretched, nothing lost."""
    stream = reading.picture
    assert stream is not None
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if not ratio or ratio <= 0 or ratio == 1:
        return frame.width, frame.height
    width, height = frame.width, frame.height
    if ratio > 1:
        width = max(1, round(width * ratio))
    else:
        height = max(1, round(height / ratio))
    reading.limits.check_size(width, height, reading.label)
    reading.notes.append(
        f"pixels were not square ({ratio.numerator}:{ratio.denominator}): "
        f"{frame.width}x{frame.height} was scaled to {width}x{height}"
    )
    return width, height


def _note_conversions(frame: Any, notes: list[str]) -> None:
    bits = max(component.bits for component in frame.format.components)
    if bits > 8:
        notes.append(f"{bits}-bit pictures were reduced to 8 bits")
    if frame.color_trc in _HDR_TRANSFERS:
        notes.append("high dynamic range was converted without tone mapping: colours look flat")
    if frame.interlaced_frame:
        notes.append("interlaced pictures were not separated: motion may show combs")


def _display_matrix(frame: Any) -> np.ndarray | None:
    """The 2x2 part of the display matrix, int32 [[a, b], [c, d]]: (x, y) goes to (ax+cy, bx+dy)."""
    try:
        data = bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return None
    return np.frombuffer(data, dtype=np.int32)[:9].reshape(3, 3)[:2, :2]


def _turned(pixels: np.ndarray, matrix: np.ndarray | None, notes: list[str]) -> np.ndarray:
    """The pixels as they are shown: turned by quarters and mirrored; other angles, the nearest."""
    if matrix is None or not matrix.any():
        return pixels
    (a, b), (c, d) = matrix.astype(float)
    if abs(b) > abs(a):
        pixels, flips_x, flips_y = pixels.transpose(1, 0, 2), c < 0, b < 0
    else:
        flips_x, flips_y = a < 0, d < 0
    if min(abs(a), abs(b)) > 0.02 * max(abs(a), abs(b)):
        text = "its rotation is no quarter turn: the nearest one was applied"
        if text not in notes:
            notes.append(text)
    pixels = pixels[:, ::-1] if flips_x else pixels
    return pixels[::-1] if flips_y else pixels


def _length_s(stream: Any) -> float | None:
    """How long a stream lasts by the header, in s; None where it doesn't say."""
    if stream is None or stream.duration:
        return float(stream.duration * stream.time_base) if stream is not None else None
    # Matroska has no length of a track but a tag, "00:00:01.250000000".
    match = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)\s*", stream.metadata.get("DURATION", ""))
    parts = zip(match.groups(), (3600, 60, 1), strict=True) if match else None
    return sum(float(number) * unit for number, unit in parts) if parts else None


def _note_early_end(reading: _Reading, strict: bool, duration_s: float, frame_s: float) -> None:
    """A note, or an error with `strict`, where less came than the header promised."""
    sound = reading.sound
    sound_s = sum(b.shape[1] for b in reading.blocks) / sound.rate if sound is not None else 0.0
    end_s = min((t for t in reading.times if t is not None), default=0.0) + duration_s
    sound_end_s = (reading.sound_start_s or 0.0) + sound_s
    n, n_due = len(reading.frames), getattr(reading.picture, "frames", 0)
    text = f"ends early: {n} of {n_due} frames could be read" if n < 0.9 * n_due else ""
    # Matroska counts from zero, MP4 from the first picture or sample.
    for found_s, due_s, slack_s in (
        (max(duration_s, end_s), _length_s(reading.picture), 0.75 * frame_s),
        (max(sound_s, sound_end_s), _length_s(sound), _SOUND_SLACK_S),
        (max(end_s, sound_end_s), reading.whole_s, max(_SOUND_SLACK_S, 1.5 * frame_s)),
    ):
        if not text and due_s is not None and due_s - found_s > slack_s + 0.001 * due_s:
            text = f"ends early: {found_s:.2f} s of {due_s:.2f} s could be read"
    if text and strict:
        raise MediaError(f"{reading.label} {text}; fetch it again or leave strict off")
    reading.notes += [text] if text else []


def _assemble(reading: _Reading, strict: bool) -> Clip:
    label, notes = reading.label, reading.notes
    if reading.n_damaged:
        text = f"{reading.n_damaged} of {reading.n_packets} packets are damaged"
        if strict or reading.n_damaged > _DAMAGE_SHARE * reading.n_packets:
            raise MediaError(f"{label}: {text}; fetch it again")
        notes.append(f"{text} and were left out")
    samples = np.concatenate(reading.blocks, axis=1) if reading.blocks else None
    rate = reading.sound.rate if reading.sound is not None else None
    if reading.picture is None:
        if samples is None or not samples.shape[1]:
            raise MediaError(f"{label} contains no sound that can be decoded")
        _note_early_end(reading, strict, 0.0, 0.0)
        return Clip(None, 0.0, samples, rate)
    if not reading.frames:
        raise MediaError(f"{label} contains no frame that can be decoded; it may be cut off")
    rate_hint = reading.picture.average_rate or reading.picture.guessed_rate
    nominal = float(rate_hint) if rate_hint else None
    frames, times, start_s, duration_s = _timeline(reading, nominal)
    _note_early_end(reading, strict, duration_s, duration_s / len(frames))
    stacked, fps = at_constant_rate(frames, times, duration_s, nominal, notes)
    if samples is not None and rate is not None:
        samples = _aligned(samples, rate, (reading.sound_start_s or 0.0) - start_s)
    if samples is not None and samples.shape[1] == 0:
        samples = None
    return Clip(stacked, fps, samples, rate if samples is not None else None)


def _timeline(
    reading: _Reading, nominal: float | None
) -> tuple[list[np.ndarray], list[float], float, float]:
    """(frames, their rising times from 0 in s, start of the first in s, duration in s)."""
    step_s = 1 / nominal if nominal else 0.04
    times = [index * step_s if t is None else t for index, t in enumerate(reading.times)]
    order = np.argsort(times, kind="stable")
    start_s = times[order[0]]
    shown = [times[index] - start_s for index in order]
    if len(shown) > 1:
        # The last frame lasts as long as the file says, else as long as the others do on average.
        last_s = reading.last_s or shown[-1] / (len(shown) - 1)
    else:
        last_s = reading.last_s or step_s
    duration_s = shown[-1] + last_s
    return [reading.frames[index] for index in order], shown, start_s, max(duration_s, 1e-3)


def _aligned(samples: np.ndarray, rate: int, late_s: float) -> np.ndarray:
    """The sound from the moment of the first frame: silence in front of it, or its head cut."""
    shift = round(late_s * rate)
    if abs(shift) <= rate // 1000:  # a millisecond is the clock of WebM
        return samples
    return np.pad(samples, ((0, 0), (shift, 0))) if shift > 0 else samples[:, -shift:]


def encode(
    frames: np.ndarray,
    fps: float,
    sound: tuple[np.ndarray, int] | None,
    suffix: str,
    notes: list[str],
) -> bytes:
    """The file of uint8 (F, H, W, 3) with an optional (float32 (C, S), sample rate).

    MP4 and MKV: H.264 (4:2:0, crf 18) and AAC, an MP4 with its index first; WebM: VP9 and Opus.
    Odd sizes are padded to even by repeating the last row or column."""
    import av

    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        text = (
            f"{width}x{height} was padded to {frames.shape[2]}x{frames.shape[1]}: even sizes only"
        )
        if text not in notes:
            notes.append(text)
    try:
        if suffix == ".mp4":
            # On disk: moving the index to the front makes the muxer read its own file again.
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "clip.mp4"
                _write(str(path), "mp4", frames, fps, sound, notes)
                return path.read_bytes()
        buffer = io.BytesIO()
        _write(buffer, "webm" if suffix == ".webm" else "matroska", frames, fps, sound, notes)
        return buffer.getvalue()
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(
            f"a clip of {width}x{height} at {fps:g} fps can't be written as {suffix}: {error}"
        ) from error


def _write(
    target: Any,
    muxer: str,
    frames: np.ndarray,
    fps: float,
    sound: tuple[np.ndarray, int] | None,
    notes: list[str],
) -> None:
    import av

    options = {"movflags": "+faststart"} if muxer == "mp4" else {}
    with av.open(target, "w", format=muxer, options=options) as container:
        is_webm = muxer == "webm"
        stream = container.add_stream(
            "libvpx-vp9" if is_webm else "libx264",
            rate=Fraction(fps).limit_denominator(1001),
            options=dict(_VP9 if is_webm else _X264),
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # 16 to 235
        voice = None if sound is None else _Voice(container, *sound, is_webm, notes)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace="ITU709",
                dst_color_range=1,
                interpolation="BICUBIC",
            )
            frame.pts = index
            frame.time_base = 1 / stream.codec_context.framerate
            container.mux(stream.encode(frame))
            if voice is not None:
                voice.write_until((index + 1) / fps)
        container.mux(stream.encode(None))
        if voice is not None:
            voice.write_until(math.inf)


class _Voice:
    """The sound track of a clip being written, fed in step with the pictures."""

    def __init__(
        self, container: Any, samples: np.ndarray, rate: int, is_webm: bool, notes: list[str]
    ) -> None:
        samples = clamped(samples, notes)
        if samples.shape[0] > 2:
            notes.append(f"{samples.shape[0]} channels were mixed to 2")
            samples = mix_channels(samples, 2)
        self.rate = nearest_rate(rate, _OPUS_RATES if is_webm else _AAC_RATES)
        self.samples = resample(samples, rate, self.rate)
        self.layout = "mono" if samples.shape[0] == 1 else "stereo"
        self.container = container
        self.stream = container.add_stream(
            "libopus" if is_webm else "aac", rate=self.rate, layout=self.layout
        )
        self.stream.bit_rate = 96_000 * samples.shape[0]
        self.position = 0

    def write_until(self, end_s: float) -> None:
        import av

        n_samples = self.samples.shape[1]
        end = n_samples if end_s == math.inf else min(n_samples, round(end_s * self.rate))
        while self.position < end:
            stop = min(end, self.position + self.rate)
            block = np.ascontiguousarray(self.samples[:, self.position : stop])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self.layout)
            frame.sample_rate = self.rate
            frame.pts = self.position
            frame.time_base = Fraction(1, self.rate)
            self.container.mux(self.stream.encode(frame))
            self.position = stop
        if end_s == math.inf:
            self.container.mux(self.stream.encode(None))
