"""Files as the verbs take and name them: reading any medium, expanding folders, naming results.

A text is a file of its own kind here: UTF-8 under .txt. Knows suffixes, no codes and no ids.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyglyph.cli.outcome import printable
from polyglyph.errors import InputError, MediaError, unknown

if TYPE_CHECKING:
    from polyglyph.cli.outcome import Outcome

TEXT_SUFFIX = ".txt"
LONG_S = 120.0
_LONGEST_NAME = 200  # bytes; file systems allow 255, and a suffix comes on top


def suffixes() -> dict[str, tuple[str, ...]]:
    """{modality: suffixes of the files that hold it}, the usual one first."""
    from polyglyph.media import SUFFIXES

    return {"text": (TEXT_SUFFIX,), **SUFFIXES}


def suffix_of(medium: Any) -> str:
    """The usual suffix of a result: clips are .mp4, not the .gif of a table's end."""
    from polyglyph.media import modality_of

    return suffixes()[modality_of(medium)][0]


def read(path: str | os.PathLike, modality: str | None = None, strict: bool = False) -> Any:
    """The text or medium in a file. MediaError where it can't be read."""
    from polyglyph.media import load

    check_modality(modality)
    known = suffixes()
    holds_text = os.fsdecode(path).lower().endswith(TEXT_SUFFIX)
    if holds_text if modality is None else TEXT_SUFFIX in known[modality]:
        return _read_text(path)
    return load(path, modality, strict=strict)


def check_modality(modality: str | None) -> None:
    """InputError with the nearest name for what is no modality; None is any."""
    if modality is not None and modality not in suffixes():
        raise unknown("modality", modality, suffixes())


def is_long(path: str | os.PathLike) -> bool:
    """True for a sound that is better read in chunks."""
    from polyglyph.media import is_long_sound

    return not os.fsdecode(path).lower().endswith(TEXT_SUFFIX) and is_long_sound(path, LONG_S)


def _read_text(path: str | os.PathLike) -> str:
    from polyglyph.checkpoint import shown

    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MediaError(f"{shown(path)}: {reason}; expected the path of a file") from error
    except UnicodeDecodeError as error:
        raise MediaError(
            f"{shown(path)}: byte {error.start} is not UTF-8; save the text as UTF-8"
        ) from error
    if not text:
        raise MediaError(f"{shown(path)} is empty (0 bytes); expected a text")
    return text


def note_all(outcome: Outcome, path: str | os.PathLike, medium: Any) -> None:
    """What had to be changed in a medium, a line each."""
    for note in getattr(medium, "notes", ()):
        outcome.note(f"note: {printable(path)}: {note}")


def expand(paths: Sequence[str]) -> list[str]:
    """The files under these paths, each once; a folder stands for its media, sorted.

    Not for its .txt and .json: beside media those are captions and lists more often than media. A
    pattern (`photos/*.png`, `**/*.wav`) stands for what it matches, as in a shell; a file of that
    very name wins. InputError for a folder without media and for a pattern that matches nothing."""
    from polyglyph.checkpoint import shown
    from polyglyph.media_formats import BY_SUFFIX

    known = {s for group in suffixes().values() for s in group} | set(BY_SUFFIX)
    known -= {TEXT_SUFFIX, ".json"}
    found: list[str] = []
    for path in matches(paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        inside = [os.path.join(top, name) for top, _, names in os.walk(path) for name in names]
        media = sorted(
            f
            for f in inside
            if os.path.splitext(f)[1].lower() in known and not os.path.basename(f).startswith(".")
        )
        if not media:
            raise InputError(
                f"folder {shown(path)} holds no media files; expected {' '.join(sorted(known))}"
            )
        found += media
    return list(dict.fromkeys(found))


def matches(paths: Iterable[str]) -> list[str]:
    """The paths, with each pattern that names no file replaced by what it matches, sorted."""
    from polyglyph.checkpoint import shown

    found: list[str] = []
    for path in paths:
        if os.path.lexists(path) or not glob.has_magic(path):
            found.append(path)
            continue
        matched = sorted(glob.glob(path, recursive=True))
        if not matched:
            raise InputError(f"no file matches {shown(path)}; check the pattern and the folder")
        found += matched
    return found


def write(medium: Any, path: Path, force: bool = False) -> None:
    """A text or medium as the file that `path` names, whole or not at all."""
    from polyglyph.checkpoint import atomic_file

    if isinstance(medium, str):
        with atomic_file(path, force) as temporary:
            temporary.write_text(medium, "utf-8")
        return
    medium.save(path, force)


def check_target(path: str, modality: str, force: bool) -> None:
    """InputError, before any slow work, unless `path` may hold `modality` and can be written."""
    from polyglyph.checkpoint import refuse_existing, shown

    known = suffixes()
    suffix = Path(path).suffix.lower()
    if modality in known and suffix not in known[modality]:
        can = " ".join(known[modality])
        raise InputError(
            f"output {shown(path)} can't hold {modality}: its suffix is {suffix or 'missing'}; "
            f"use one of {can}"
        )
    refuse_existing(path, force)
    check_writable(path)


def check_writable(path: str) -> None:
    """InputError where the folder that `path` goes into, or would go into, can't be written."""
    from polyglyph.checkpoint import shown

    parent = Path(os.path.abspath(path)).parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not os.path.isdir(parent):
        raise InputError(f"output {shown(path)} can't be written: {shown(parent)} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"output {shown(path)} can't be written: no permission in {shown(parent)}; "
            f"choose a folder that you may write"
        )


def refuse_input(path: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    """InputError where `path` is one of the inputs, under whatever name: it would be lost."""
    from polyglyph.checkpoint import shown

    if not os.path.exists(path):
        return
    for source in inputs:
        if os.path.exists(source) and os.path.samefile(path, source):
            raise InputError(
                f"output {shown(path)} is the input {shown(source)}; choose another name"
            )


class Names:
    """Names of results in one folder: that of the source, with the result's suffix.

    Two sources of one name are told apart by a hash of the whole path, so that the same inputs
    give the same names again."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def of(self, source: str | os.PathLike, suffix: str, keep_suffix: bool = False) -> str:
        """A name not given before. `keep_suffix`: photo.jpg gives photo.jpg.safetensors."""
        base = Path(printable(source)).name
        base = base if keep_suffix else Path(base).stem
        base = _clipped(base.replace("\0", "")) or "unnamed"
        name, n = base + suffix, 0
        while name in self._taken:
            mark = hashlib.sha256(f"{printable(source)}/{n}".encode()).hexdigest()[:8]
            name, n = f"{base}-{mark}{suffix}", n + 1
        self._taken.add(name)
        return name


def _clipped(name: str) -> str:
    return name.encode()[:_LONGEST_NAME].decode("utf-8", "ignore")
