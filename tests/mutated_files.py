"""Damages files of every container and says what reading each of them came to.

Run as a script by test_mutated_files.py: a crash or a hang ends this process and not the tests.
Prints two JSON lines per file: [kind, what was done, count], then the outcome: "refused" (an error
of ours in one line), "read", or what went wrong.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_CPU_S = 5.0  # of one file; the kernel ends the process then, in whatever C code it is
MOST_BYTES = 6 << 30  # of address space

IMAGES = (".png", ".jpg", ".webp", ".gif", ".bmp")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
CLIPS = (".mp4", ".webm", ".mkv")
Reader = Callable[[bytes], str]


def whole_file(suffix: str) -> bytes:
    """A small good file of a container."""
    from tiny_checkpoints import picture, sound

    from polyglyph.media import Audio, Image, Video, to_bytes

    if suffix in IMAGES:
        return to_bytes(Image(picture(23, 34)), suffix)
    if suffix in SOUNDS:
        return to_bytes(Audio(np.concatenate([sound(9000, i) for i in range(2)]), 16_000), suffix)
    frames = np.stack([picture(22, 30, i) for i in range(12)])
    return to_bytes(Video(frames, 12.0, Audio(sound(16_000), 16_000)), suffix)


def _flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(0, 8))
    return data


def _head(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, min(len(data), 256), rng.integers(1, 6)):
        data[place] = int(rng.integers(0, 256))
    return data


def _cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(1, len(data)))]


def _stretch(data: bytearray, rng: np.random.Generator) -> slice:
    start = int(rng.integers(0, len(data)))
    return slice(start, start + int(rng.integers(1, max(2, len(data) // 8))))


def _take_out(data: bytearray, rng: np.random.Generator) -> bytearray:
    del data[_stretch(data, rng)]
    return data or bytearray(b"\0")


def _double(data: bytearray, rng: np.random.Generator) -> bytearray:
    part = _stretch(data, rng)
    data[part.start : part.start] = data[part]
    return data


def _replace(data: bytearray, rng: np.random.Generator) -> bytearray:
    part = _stretch(data, rng)
    n = len(data[part])
    data[part] = bytes(n) if rng.integers(2) else rng.integers(0, 256, n, np.uint8).tobytes()
    return data


def _blow_up(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Four bytes as the largest numbers, signed and unsigned, of either order."""
    place = int(rng.integers(0, max(1, min(len(data), 600) - 4)))
    numbers = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0")
    data[place : place + 4] = numbers[int(rng.integers(0, 4))]
    return data


WAYS: tuple[Callable[[bytearray, np.random.Generator], bytearray], ...] = (
    _flip, _head, _cut, _take_out, _double, _replace, _blow_up,
)  # fmt: skip


def damaged(data: bytes, n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """n damaged copies with the name of what was done to each."""
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        way = WAYS[index % len(WAYS)]
        yield way.__name__.strip("_"), bytes(way(bytearray(data), rng))


def read_medium(data: bytes, whole: Any) -> str:
    """ "read", or what is wrong with a medium that was read."""
    from polyglyph.media import load

    medium = load(data)
    for values in (getattr(medium, name, None) for name in ("array", "samples", "frames")):
        if values is not None and (0 in values.shape or not np.isfinite(values).all()):
            return f"values of shape {values.shape}, or not finite"
    return "read" if medium.notes or _extent(medium) >= _extent(whole) else "shorter, silently"


def _extent(medium: Any) -> int:
    """How much of it there is: samples of all channels, frames, or pixels of a picture."""
    if hasattr(medium, "samples"):
        return medium.samples.size
    return getattr(medium, "n_frames", medium.width * medium.height)


def cases(kinds: Sequence[str], folder: Path) -> Iterator[tuple[str, bytes, Reader]]:
    """(kind, a whole file, its reader): the reader returns "read" or what is wrong with it."""
    from polyglyph.media import load

    for kind in kinds:
        if kind in OURS:
            yield from OURS[kind](folder)
            continue
        data = whole_file(kind)
        whole = load(data)
        yield kind, data, lambda given, whole=whole: read_medium(given, whole)


def codes_cases(folder: Path) -> Iterator[tuple[str, bytes, Reader]]:
    """A codes file of a picture and a sound."""
    from tiny_checkpoints import codecs, picture, sound

    from polyglyph.media import Audio, Image
    from polyglyph.tokenizers.base import load_codes, save_codes

    made = codecs()
    grids = (
        made["image"].encode(Image(picture(23, 34))),
        made["audio"].encode(Audio(sound(900), 4000)),
    )
    items = [("000000", "a.png", [grids[0]]), ("000001", "a.wav", [grids[1]])]
    save_codes(folder / "a.safetensors", items)
    path = folder / "damaged.safetensors"

    def read(data: bytes) -> str:
        path.write_bytes(data)
        found = load_codes(path)
        if found != items:
            return "other codes than were written, silently"
        for _, _, (grid,) in found:
            made[grid.modality].decode(grid)
        return "read"

    yield "codes", (folder / "a.safetensors").read_bytes(), read


def checkpoint_cases(folder: Path) -> Iterator[tuple[str, bytes, Reader]]:
    """The files of a codec's checkpoint."""
    from tiny_checkpoints import codecs, picture, save_codec_checkpoint

    from polyglyph.assembly import load_parts
    from polyglyph.media import Image

    image = Image(picture(23, 34))
    saved = save_codec_checkpoint(folder / "saved", codecs()["image"])
    due = load_parts(saved).tokenizers["image"].encode(image)
    parts = ("checkpoint.json", "tokenizers/image/codec.json")
    for name in (*parts, "tokenizers/image/weights.safetensors"):
        whole = (saved / name).read_bytes()

        def read(data: bytes, path: Path = saved / name, whole: bytes = whole) -> str:
            try:
                path.write_bytes(data)
                grid = load_parts(saved).tokenizers["image"].encode(image)
            finally:
                path.write_bytes(whole)
            return "read" if grid == due else "another codec than was saved, silently"

        yield f"checkpoint {name}", whole, read


OURS = {"codes": codes_cases, "checkpoint": checkpoint_cases}
KINDS = (*IMAGES, *SOUNDS, *CLIPS, *OURS)


def main(kinds: Sequence[str], n: int, seed: int, skip: int) -> None:
    """Reads n damaged files of each case, without the first `skip` of all."""
    from polyglyph.errors import InputError

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, whole, read in cases(kinds, Path(folder)):
            for way, data in damaged(whole, n, seed):
                count += 1
                if count <= skip:
                    continue
                print(json.dumps([kind, way, count]), flush=True)
                signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
                try:
                    outcome = read(data)
                except InputError as error:
                    outcome = "refused" if "\n" not in str(error) else f"two lines: {error}"
                except BaseException as error:
                    outcome = f"{type(error).__name__}: {error}"
                signal.setitimer(signal.ITIMER_PROF, 0)
                print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main(sys.argv[1].split(","), *map(int, sys.argv[2:5]))
