"""A user's own folder of pictures, clips or sounds as media for codec training.

Every item is a cut of one file, chosen by (seed, index) alone: a square crop at a random scale, a
stretch of a clip, a second of a sound. A file that can't be read is left out from then on, and
said in `errors`. Knows nothing of codecs; captions and ids are the business of sources/folder.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyglyph.errors import InputError
from polyglyph.lookup import find
from polyglyph.media import SUFFIXES, Image, Video, load, mix_channels, resample

CACHE_BYTES = 512 << 20
_STREAM = 11  # of the random numbers, apart from those of the built-in media
# A crop covers at least 1 / 16 of the shorter side squared: smaller ones of a photograph are flat.
_LARGEST_SCALE = 4


@dataclass(frozen=True)
class Cut:
    """The size of one item: pixels a side, frames, or samples at a rate."""

    side: int = 72
    n_frames: int = 8
    fps: float = 8.0
    n_samples: int = 16_000
    sample_rate: int = 16_000
    n_channels: int = 1


class MediaFolder:
    """folder(modality, seed, index) → one medium: uint8 (side, side, 3), uint8
    (n_frames, side, side, 3) or float32 (n_channels, n_samples).

    `path` is searched with all its folders, files in the order of their names. InputError where it
    holds no file of `modality`, and later when none of them can be read. `errors` gets one
    {"source", "type", "message"} per file that was left out."""

    def __init__(self, path: str | Path, modality: str, cut: Cut) -> None:
        root = Path(path)
        if not root.is_dir():
            raise InputError(f"data source '{path}' is no folder; expected one of {modality} files")
        self.root, self.cut = root, cut
        self.cutter: Callable[[_Files, Path, np.random.Generator], np.ndarray]
        self.cutter = find(_CUTTERS, modality, "medium of codec training")
        suffixes = SUFFIXES[modality]
        self.files = [
            file
            for file in sorted(root.rglob("*"))
            if file.suffix.lower() in suffixes and not _is_hidden(file.relative_to(root))
        ]
        if not self.files:
            raise InputError(
                f"data source '{path}' holds no {modality}; expected files such as "
                f"{', '.join('x' + suffix for suffix in suffixes[:3])}"
            )
        self.opened = _Files(cut)
        self.broken: set[Path] = set()
        self.errors: list[dict[str, Any]] = []

    def __call__(self, modality: str, seed: int, index: int) -> np.ndarray:
        rng = np.random.default_rng((seed, _STREAM, index))
        first = int(rng.integers(len(self.files)))
        state = rng.bit_generator.state
        for k in range(len(self.files)):
            file = self.files[(first + k) % len(self.files)]
            if file in self.broken:
                continue
            # The same numbers for every file that is tried: what was tried before plays no part.
            rng.bit_generator.state = state
            try:
                return self.cutter(self.opened, file, rng)
            except InputError as error:
                self._leave_out(file, error)
        raise InputError(
            f"data source '{self.root}': none of its {len(self.files)} files can be read; "
            f"the first: {self.errors[0]['message'] if self.errors else 'left out before'}"
        )

    def _leave_out(self, file: Path, error: InputError) -> None:
        self.broken.add(file)
        name = str(file.relative_to(self.root))
        self.errors.append({"source": name, "type": type(error).__name__, "message": str(error)})


class _Files:
    """Decoded files, shrunk to the largest scale that is cut from, the latest in memory."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._held: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, file: Path, read: Callable[[Path, Cut], np.ndarray]) -> np.ndarray:
        if file in self._held:
            self._held.move_to_end(file)
            return self._held[file]
        array = read(file, self.cut)
        self._held[file] = array
        self._bytes += array.nbytes
        while self._bytes > CACHE_BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return array


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


# --- pictures and clips ------------------------------------------------------------------------


def _resized(frames: np.ndarray, short: int) -> np.ndarray:
    """uint8 (F, H, W, 3) with `short` pixels on the shorter side."""
    h, w = frames.shape[1:3]
    if min(h, w) == short:
        return frames
    import PIL.Image

    size = (max(short, round(w * short / min(h, w))), max(short, round(h * short / min(h, w))))
    kind = PIL.Image.Resampling.BICUBIC
    return np.stack([np.asarray(PIL.Image.fromarray(f).resize(size, kind)) for f in frames])


def _shrunk(frames: np.ndarray, side: int) -> np.ndarray:
    short = min(frames.shape[1:3])
    return _resized(frames, min(max(short, side), _LARGEST_SCALE * side))


def _read_picture(file: Path, cut: Cut) -> np.ndarray:
    medium = load(file, "image")
    assert isinstance(medium, Image)
    return _shrunk(medium.array[None], cut.side)


def _read_clip(file: Path, cut: Cut) -> np.ndarray:
    """Frames at about the wanted rate."""
    medium = load(file, "video")
    assert isinstance(medium, Video)
    if not medium.n_frames:
        raise InputError(f"{file.name} holds no frames")
    step = max(1, round(medium.fps / cut.fps))
    return _shrunk(medium.frames[::step], cut.side)


def _crop(frames: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square of `side` pixels, at one random place and scale for all frames."""
    largest = min(frames.shape[1:3])
    short = round(side * (largest / side) ** rng.random())
    scaled = _resized(frames, short)
    y, x = (int(rng.integers(n - side + 1)) for n in scaled.shape[1:3])
    return scaled[:, y : y + side, x : x + side]


def cut_picture(files: _Files, file: Path, rng: np.random.Generator) -> np.ndarray:
    """uint8 (side, side, 3)."""
    return _crop(files.get(file, _read_picture), files.cut.side, rng)[0]


def cut_clip(files: _Files, file: Path, rng: np.random.Generator) -> np.ndarray:
    """uint8 (n_frames, side, side, 3); the last frame stands where a clip is too short."""
    frames, n = files.get(file, _read_clip), files.cut.n_frames
    start = int(rng.integers(max(1, len(frames) - n + 1)))
    part = frames[start : start + n]
    part = _crop(part, files.cut.side, rng)
    return np.concatenate([part, np.repeat(part[-1:], n - len(part), axis=0)])


# --- sounds ------------------------------------------------------------------------------------


def cut_sound(files: _Files, file: Path, rng: np.random.Generator) -> np.ndarray:
    """float32 (n_channels, n_samples); zeros follow a sound that is too short.

    Only the stretch itself is read where the format can be entered in its middle."""
    cut, place = files.cut, float(rng.random())
    found = _read_stretch(file, cut, place)
    samples, rate = _whole_stretch(file, cut, place) if found is None else found
    if not samples.shape[1]:
        raise InputError(f"{file.name} holds no samples")
    if not np.isfinite(samples).all():
        raise InputError(f"{file.name} holds samples that are not finite")
    return fit_sound(samples, rate, cut)


def fit_sound(samples: np.ndarray, rate: int, cut: Cut) -> np.ndarray:
    """float32 (C, S) at `rate` Hz → (n_channels, n_samples) at the rate of `cut`, within ±1."""
    samples = np.asarray(mix_channels(samples, cut.n_channels), np.float32)
    if rate != cut.sample_rate:
        samples = np.asarray(resample(samples, rate, cut.sample_rate), np.float32)
    samples = samples[:, : cut.n_samples]
    samples = np.pad(samples, ((0, 0), (0, cut.n_samples - samples.shape[1])))
    return np.clip(samples, -1, 1)


def _n_needed(cut: Cut, rate: int) -> int:
    return -(-cut.n_samples * rate // cut.sample_rate) + 1


def _read_stretch(file: Path, cut: Cut, place: float) -> tuple[np.ndarray, int] | None:
    """(samples (C, S), rate) from `place` of 0…1; None where soundfile can't do it."""
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            if not sound.seekable():
                return None
            n = _n_needed(cut, sound.samplerate)
            sound.seek(int(place * max(0, sound.frames - n)))
            samples = sound.read(n, dtype="float32", always_2d=True)
            return samples.T, sound.samplerate
    except (soundfile.LibsndfileError, OSError):
        return None  # `load` knows more formats, and says what is wrong with this file


def _whole_stretch(file: Path, cut: Cut, place: float) -> tuple[np.ndarray, int]:
    medium: Any = load(file, "audio")
    n = _n_needed(cut, medium.sample_rate)
    start = int(place * max(0, medium.n_samples - n))
    return medium.samples[:, start : start + n], medium.sample_rate


_CUTTERS = {
    "image": "polyglyph.data.media_folder:cut_picture",
    "video": "polyglyph.data.media_folder:cut_clip",
    "audio": "polyglyph.data.media_folder:cut_sound",
}
