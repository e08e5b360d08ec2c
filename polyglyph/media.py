"""Images, sounds, clips, regions and actions as values; loading and saving them.

The public types and the dispatch. How a format is read or written stands in media_image,
media_audio and media_video; what a file is, in media_formats. Knows nothing of codes or ids and
never imports torch. Whatever had to be changed to make a value plain (a rotation applied, a colour
space left, samples clipped) is said in its `notes`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyglyph import media_audio, media_formats, media_image, media_video
from polyglyph.checkpoint import atomic_file, refuse_existing
from polyglyph.errors import MediaError, unknown
from polyglyph.media_audio import mix_channels, resample
from polyglyph.media_formats import Limits, Source

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "MODALITY_OF", "Action", "Audio", "Image", "Limits", "Media", "Region", "Video",
    "is_long_sound", "load", "mix_channels", "modality_of", "resample", "save", "stream_sound",
    "to_bytes",
]  # fmt: skip

WHITE = (255, 255, 255)
SOUND_FILES = (media_formats.WAV, media_formats.FLAC, media_formats.OGG, media_formats.MP3)
REGION_SIZES = {"box": 4, "point": 2, "time": 2}
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3"),
    "video": (".mp4", ".webm", ".mkv", ".gif"),
    "region": (".json",),
    "action": (".json",),
}


class Image:
    """A picture: `pil` is RGB, upright, without alpha and in sRGB.

    `source` is a path, bytes, a PIL image or a uint8 array (H, W, 3). Loaded at once; raises
    MediaError."""

    def __init__(
        self, source: Source | PIL.Image.Image | np.ndarray, notes: list[str] | None = None
    ) -> None:
        self.notes = list(notes or ())
        self.pil: PIL.Image.Image
        if isinstance(source, np.ndarray):
            self.pil = media_image.from_array(source)
        elif isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
            loaded = load(source, "image")
            assert isinstance(loaded, Image)
            self.pil, self.notes = loaded.pil, self.notes + loaded.notes
        else:
            self.pil = media_image.normalise(source, "the image", WHITE, self.notes)

    @property
    def width(self) -> int:
        return self.pil.width

    @property
    def height(self) -> int:
        return self.pil.height

    @property
    def array(self) -> np.ndarray:
        """The pixels, uint8 (H, W, 3)."""
        return np.array(self.pil)

    def save(self, path: str | os.PathLike, force: bool = False) -> None:
        save(self, path, force)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and np.array_equal(self.array, other.array)

    def __repr__(self) -> str:
        return f"Image({self.width}x{self.height})"


class Audio:
    """A sound: `samples` float32 (C, S), nominally in [-1, 1], at `sample_rate` Hz.

    The first argument is a path, bytes or an array: (S,) or (C, S), float, or an integer PCM type,
    which is scaled. `source_rate` is the rate of the file it came from, in Hz. Raises MediaError
    for samples that are not finite."""

    def __init__(
        self,
        samples: Source | np.ndarray,
        sample_rate: int | None = None,
        source_rate: int | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.notes = list(notes or ())
        self.samples: np.ndarray
        self.sample_rate: int
        self.source_rate: int | None = source_rate
        if isinstance(samples, str | os.PathLike | bytes | bytearray | memoryview):
            if sample_rate is not None:
                raise MediaError("a sound that is loaded has its own sample rate; leave it out")
            loaded = load(samples, "audio")
            assert isinstance(loaded, Audio)
            self.samples, self.sample_rate = loaded.samples, loaded.sample_rate
            self.source_rate, self.notes = loaded.source_rate, self.notes + loaded.notes
            return
        if sample_rate is None or int(sample_rate) != sample_rate or sample_rate <= 0:
            raise MediaError(f"a sound needs a sample rate in Hz, such as 16000; got {sample_rate}")
        self.samples = media_audio.from_array(samples)
        self.sample_rate = int(sample_rate)

    @property
    def n_channels(self) -> int:
        return self.samples.shape[0]

    @property
    def n_samples(self) -> int:
        return self.samples.shape[1]

    @property
    def duration_s(self) -> float:
        return self.n_samples / self.sample_rate

    def save(self, path: str | os.PathLike, force: bool = False) -> None:
        save(self, path, force)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Audio)
            and self.sample_rate == other.sample_rate
            and np.array_equal(self.samples, other.samples)
        )

    def __repr__(self) -> str:
        return f"Audio({self.n_channels}x{self.n_samples} at {self.sample_rate} Hz)"


class Video:
    """A clip: `frames` uint8 (F, H, W, 3) at a constant `fps`, upright, with an optional sound.

    The first argument is a path, bytes or an array. A file of variable rate is brought to a
    constant one: output frame n is what is on screen at (n + 0.5) / fps. The sound starts with the
    first frame and may be shorter or longer than the pictures. Raises MediaError."""

    def __init__(
        self,
        frames: Source | np.ndarray,
        fps: float | None = None,
        audio: Audio | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.notes = list(notes or ())
        self.frames: np.ndarray
        self.fps: float
        self.audio = audio
        if isinstance(frames, str | os.PathLike | bytes | bytearray | memoryview):
            if fps is not None:
                raise MediaError("a clip that is loaded has its own frame rate; leave it out")
            loaded = load(frames, "video")
            assert isinstance(loaded, Video)
            self.frames, self.fps = loaded.frames, loaded.fps
            self.audio = audio or loaded.audio
            self.notes += loaded.notes
            return
        if fps is None or not 0 < fps <= 1000:
            raise MediaError(f"a clip needs a frame rate in (0, 1000] fps, such as 8; got {fps}")
        self.frames = media_video.from_array(frames)
        self.fps = float(fps)

    @property
    def n_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def width(self) -> int:
        return self.frames.shape[2]

    @property
    def height(self) -> int:
        return self.frames.shape[1]

    @property
    def duration_s(self) -> float:
        return self.n_frames / self.fps

    def save(self, path: str | os.PathLike, force: bool = False) -> None:
        save(self, path, force)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Video)
            and (self.fps, self.audio) == (other.fps, other.audio)
            and np.array_equal(self.frames, other.frames)
        )

    def __repr__(self) -> str:
        sound = "" if self.audio is None else ", with sound"
        return (
            f"Video({self.n_frames} frames {self.width}x{self.height} at {self.fps:g} fps{sound})"
        )


@dataclass(eq=False)
class Region:
    """A place or a stretch in another medium, in fractions of its size.

    `values` float32 (n,) in [0, 1]: a "box" is x0, y0, x1, y1; a "point" x, y; a "time" start, end.
    Raises MediaError."""

    values: np.ndarray
    kind: str = "box"
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kind not in REGION_SIZES:
            raise unknown("region kind", self.kind, REGION_SIZES, MediaError)
        self.values = np.asarray(self.values, dtype=np.float32)
        size = REGION_SIZES[self.kind]
        if self.values.shape != (size,):
            raise MediaError(
                f"a {self.kind} has {size} values; got an array of shape {self.values.shape}"
            )
        if not (np.isfinite(self.values).all() and (abs(self.values - 0.5) <= 0.5).all()):
            raise MediaError(
                f"the values of a {self.kind} are fractions in [0, 1]; got {self.values.tolist()}; "
                f"divide pixels by the width and height, seconds by the duration"
            )
        start, end = (self.values[: size // 2], self.values[size // 2 :])
        if self.kind != "point" and (start > end).any():
            raise MediaError(f"a {self.kind} starts before it ends; got {self.values.tolist()}")

    def save(self, path: str | os.PathLike, force: bool = False) -> None:
        save(self, path, force)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Region)
            and self.kind == other.kind
            and np.array_equal(self.values, other.values)
        )


@dataclass(eq=False)
class Action:
    """A trajectory: `values` float32 (T, D), T steps of D dimensions. Raises MediaError."""

    values: np.ndarray
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = np.asarray(self.values, dtype=np.float32)
        if self.values.ndim != 2 or 0 in self.values.shape:
            raise MediaError(
                f"an action is an array (steps, dimensions); got shape {self.values.shape}"
            )
        if not np.isfinite(self.values).all():
            raise MediaError("an action holds values that are not finite; remove them")

    def save(self, path: str | os.PathLike, force: bool = False) -> None:
        save(self, path, force)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Action) and np.array_equal(self.values, other.values)


Media = Image | Audio | Video | Region | Action
_MODALITIES = {Image: "image", Audio: "audio", Video: "video", Region: "region", Action: "action"}


def modality_of(media: Media | str) -> str:
    """The modality of a value: "text" for a str, else "image", "audio" and so on."""
    if isinstance(media, str):
        return "text"
    for kind, name in _MODALITIES.items():
        if isinstance(media, kind):
            return name
    raise MediaError(
        f"expected text, Image, Audio, Video, Region or Action; got {type(media).__name__}"
    )


MODALITY_OF = modality_of


def load(
    source: Source,
    modality: str | None = None,
    limits: Limits = Limits(),
    strict: bool = False,
    background: tuple[int, int, int] = WHITE,
) -> Media:
    """The medium in a file or in bytes.

    What it is shows in its content, not in its name. `modality` picks a reading where a file has
    more than one: an animated GIF, APNG or WebP is an image (its first frame, with a note) or a
    video; an MP4, WebM or MKV is a video or its sound. `limits` are checked before decoding.
    `strict` turns what is otherwise a note about lost content (a sound that ends early, damaged
    packets) into an error. Transparent pixels are laid on `background`. Raises MediaError."""
    if modality is not None and modality not in SUFFIXES:
        raise unknown("modality", modality, SUFFIXES)
    with media_formats.open_source(source) as (file, label, suffix):
        found = media_formats.identify(file, label, suffix)
        if modality is not None and modality not in found.modalities:
            raise MediaError(
                f"{label} is a {found.name} file, which holds {' or '.join(found.modalities)}; "
                f"expected {modality}"
            )
        wanted = modality or found.modalities[0]
        notes: list[str] = []
        if found is media_formats.JSON:
            return _from_json(file.read(1 << 24), label, modality)
        if "image" in found.modalities:
            if wanted == "image":
                pil = media_image.decode(file, label, limits, background, notes)
                return _image(pil, notes)
            shots = media_image.decode_frames(file, label, limits, background, notes)
            frames, fps = media_video.at_constant_rate(*shots, None, notes)
            return Video(frames, fps, None, notes)
        if found in SOUND_FILES:
            samples, rate = media_audio.decode(file, label, found, limits, strict, notes)
            return Audio(samples, rate, rate, notes)
        clip = media_video.decode(
            file,
            label,
            found,
            limits,
            strict,
            notes,
            needs_pictures=modality == "video",
            needs_sound=modality == "audio",
        )
        if clip.frames is None:
            assert clip.samples is not None and clip.sample_rate is not None
            return Audio(clip.samples, clip.sample_rate, clip.sample_rate, notes)
        sound = None
        if clip.samples is not None and clip.sample_rate is not None:
            sound = Audio(clip.samples, clip.sample_rate, clip.sample_rate)
        return Video(clip.frames, clip.fps, sound, notes)


def stream_sound(
    source: Source,
    limits: Limits = Limits(),
    strict: bool = False,
    notes: list[str] | None = None,
    chunk_samples: int = 1 << 18,
) -> Iterator[Audio]:
    """The sound of a WAV, FLAC, OGG or MP3 file in chunks of about `chunk_samples` per channel.

    Joined, they are what `load` gives, in bounded memory: what a sound takes once decoded is not
    limited here, its duration is. What `load` would note is added to `notes` at the end. Raises
    MediaError, for other files too."""
    with media_formats.open_source(source) as (file, label, suffix):
        found = media_formats.identify(file, label, suffix)
        if found not in SOUND_FILES:
            raise MediaError(
                f"{label} is a {found.name} file, which isn't read in chunks; load it as a whole"
            )
        limits = dataclasses.replace(limits, max_bytes=1 << 60)
        parts: list[np.ndarray] = []
        rate = n_waiting = 0
        for block, rate in media_audio.blocks(
            file, label, found, limits, strict, [] if notes is None else notes
        ):
            media_audio.check_finite(block, label)
            parts.append(block)
            n_waiting += block.shape[1]
            if n_waiting >= chunk_samples:
                yield Audio(np.concatenate(parts, axis=1), rate, rate)
                parts, n_waiting = [], 0
        if parts:
            yield Audio(np.concatenate(parts, axis=1), rate, rate)


def is_long_sound(source: Source, seconds: float) -> bool:
    """True for a sound file that `stream_sound` reads and whose header says it lasts longer."""
    import soundfile

    try:
        with media_formats.open_source(source) as (file, label, suffix):
            if media_formats.identify(file, label, suffix) not in SOUND_FILES:
                return False
            return soundfile.info(file).duration > seconds
    except (MediaError, soundfile.LibsndfileError, RuntimeError, TypeError):
        return False  # whoever reads it says what is wrong


def _image(pil: PIL.Image.Image, notes: list[str]) -> Image:
    image = Image.__new__(Image)
    image.pil, image.notes = pil, notes
    return image


def save(media: Media, path: str | os.PathLike, force: bool = False) -> None:
    """Writes a medium in the format that the suffix of `path` names, whole or not at all.

    What had to be changed (samples clamped, a size padded to even) is added to `media.notes`.
    Raises MediaError for a suffix that can't hold this medium, naming those that can; InputError
    where `path` exists and `force` is false, or can't be written."""
    suffix = Path(os.fsdecode(path)).suffix.lower()
    _check_suffix(media, suffix)
    refuse_existing(path, force)
    data = to_bytes(media, suffix)
    with atomic_file(os.fsdecode(path), force) as temporary:
        temporary.write_bytes(data)


def save_sound(parts: Iterable[Audio], path: str | os.PathLike, force: bool = False) -> list[str]:
    """Writes a sound that comes in parts of one rate, at least one, as `save` writes the whole;
    returns the notes. Only a file that can't hold its rate or channels needs it whole."""
    suffix = Path(os.fsdecode(path)).suffix.lower()
    rest = iter(parts)
    first = next(rest)
    _check_suffix(first, suffix)
    refuse_existing(path, force)
    rate, n_channels, notes = first.sample_rate, first.n_channels, list[str]()
    if not media_audio.holds(suffix, rate, n_channels):
        whole = np.concatenate([part.samples for part in (first, *rest)], axis=1)
        medium = Audio(whole, rate)
        save(medium, path, force)
        return medium.notes
    samples = (part.samples for part in itertools.chain([first], rest))
    with atomic_file(os.fsdecode(path), force) as temporary:
        media_audio.write_parts(Path(temporary), samples, rate, n_channels, suffix, notes)
    return notes


def to_bytes(media: Media, suffix: str) -> bytes:
    """The bytes of the file that `save` would write under a name with that suffix (".png")."""
    _check_suffix(media, suffix)
    if isinstance(media, Image):
        return media_image.encode(media.pil, suffix)
    if isinstance(media, Audio):
        return media_audio.encode(media.samples, media.sample_rate, suffix, media.notes)
    if isinstance(media, Video):
        sound = None if media.audio is None else (media.audio.samples, media.audio.sample_rate)
        if suffix == ".gif":
            if sound is not None:
                _add(media.notes, "a GIF has no sound: the sound was left out")
            return media_image.encode_gif(media.frames, media.fps)
        return media_video.encode(media.frames, media.fps, sound, suffix, media.notes)
    body: dict[str, Any] = {"modality": modality_of(media), "values": media.values.tolist()}
    if isinstance(media, Region):
        body["kind"] = media.kind
    return (json.dumps(body) + "\n").encode()


def _check_suffix(media: Media, suffix: str) -> None:
    modality = modality_of(media)
    if modality not in SUFFIXES or suffix not in SUFFIXES[modality]:
        can = " ".join(SUFFIXES.get(modality, ()))
        raise MediaError(
            f"{modality} can't be written as {suffix or 'a file without suffix'!r}; "
            f"supported suffixes: {can}"
        )


def _add(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def _from_json(data: bytes, label: str, wanted: str | None) -> Media:
    try:
        body = json.loads(data)
        modality, values = body["modality"], np.asarray(body["values"], dtype=np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise MediaError(
            f"{label} is no region or action: expected JSON such as "
            f'{{"modality": "region", "kind": "point", "values": [0.5, 0.5]}}'
        ) from error
    if modality not in ("region", "action") or wanted not in (None, modality):
        raise MediaError(f"{label} holds {modality!r}; expected {wanted or 'region or action'}")
    return Region(values, body.get("kind", "box")) if modality == "region" else Action(values)
