"""A folder of results that is filled entry by entry, and filled up when the verb is run again.

`index.jsonl` has a line per finished entry, written after its files; `errors.jsonl` holds what
failed in the latest run. Knows no media and no codes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from polyglyph.cli.outcome import Outcome, counted, explain
from polyglyph.cli.progress import progress

INDEX, ERRORS = "index.jsonl", "errors.jsonl"
_UNFINISHED = ".tmp-*"  # what a killed run leaves of a file that it was writing


class ResultFolder:
    """The entries of a folder, and the one run that may add to them.

    `entries` is {key_of(entry): last entry} of the lines that `key_of` knows; it raises KeyError
    for another verb's. Inside `with`, the folder is there and locked, what a killed run left
    half-written is gone, and so are the errors of an earlier run; at its end, however it comes,
    those of this run are there."""

    def __init__(self, path: Path, outcome: Outcome, key_of: Callable[[dict], Any]) -> None:
        self.path, self.outcome = path, outcome
        self.entries: dict[Any, dict[str, Any]] = {}
        for line in read_lines(path / INDEX):
            try:
                self.entries[key_of(line)] = line
            except (KeyError, TypeError):
                continue

    def __enter__(self) -> ResultFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._index = open(self.path / INDEX, "a+b")
        _lock(self._index, self.path)
        for left in self.path.glob(_UNFINISHED):
            left.unlink(missing_ok=True)
        (self.path / ERRORS).unlink(missing_ok=True)
        size = self._index.seek(0, os.SEEK_END)
        if size:
            self._index.seek(size - 1)
            if self._index.read(1) != b"\n":  # a kill in the middle of a line
                self._index.write(b"\n")
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_empty = not self._index.tell()
        self._index.close()
        if is_empty:
            (self.path / INDEX).unlink(missing_ok=True)
        write_errors(self.path, self.outcome)

    def add(self, entry: dict[str, Any]) -> None:
        """Notes an entry whose files are written; it outlives a kill or a power cut."""
        self._index.write(json.dumps(entry).encode() + b"\n")
        self._index.flush()
        os.fsync(self._index.fileno())


def _lock(file: Any, folder: Path) -> None:
    """InputError where another run fills the folder; a system without locks goes without."""
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError

    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"output {shown(folder)} is being filled by another run; wait for it, or choose "
            f"another folder"
        ) from error
    except (ImportError, OSError):
        return


def stamp(path: str | os.PathLike) -> dict[str, int]:
    """What tells a file from a later version of it."""
    found = os.stat(path)
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def refuse_foreign(folder: Path) -> None:
    """InputError for a folder that holds something, but no index of ours."""
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError

    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"output {shown(folder)} is a file; expected a folder")
    if not folder.is_dir() or (folder / INDEX).is_file():
        return
    ours = {ERRORS, *(path.name for path in folder.glob(_UNFINISHED))}
    if any(name not in ours for name in os.listdir(folder)):
        raise InputError(
            f"output {shown(folder)} exists and holds other files; choose another folder, or pass "
            f"-f to write into it"
        )


def each(
    outcome: Outcome, items: Sequence[Any], doing: str, name_of: Callable[[Any], str], strict: bool
) -> Iterator[tuple[Any, Any]]:
    """(item, attempt) in turn, with progress; `with attempt:` records what fails inside.

    Whatever an item's fault is, the others are still done; with `strict` the first failure is the
    end. A disk that is full ends it at once."""
    with progress(doing) as tell:
        for done, item in enumerate(items):
            name = name_of(item)
            tell(done, len(items), f"{doing} {os.path.basename(name)}")
            yield item, attempt(outcome, name)
            if strict and outcome.errors:
                left = len(items) - done - 1
                are_left = f"{counted(left, 'input')} {'is' if left == 1 else 'are'} left"
                outcome.note(f"stopped at the first error (--strict): {are_left}")
                return


@contextmanager
def attempt(outcome: Outcome, source: str) -> Iterator[None]:
    """Records an exception as the failure of `source`; a full disk is raised again."""
    from polyglyph.errors import MachineError

    try:
        yield
    except Exception as error:
        status, message = explain(error)
        if isinstance(error, MachineError) or (status == 1 and "disk is full" in message):
            raise
        outcome.fail(error, source)


def read_lines(path: Path) -> list[Any]:
    """The values of a JSONL file; lines that are no JSON are left out."""
    if not path.is_file():
        return []
    values = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values


def write_errors(folder: Path, outcome: Outcome) -> None:
    """errors.jsonl of this run in the place of an earlier one's; none where nothing failed."""
    from polyglyph.checkpoint import atomic_file

    path = folder / ERRORS
    if not outcome.errors:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path, force=True) as temporary:
        lines = (json.dumps(error) + "\n" for error in outcome.errors)
        temporary.write_text("".join(lines), "utf-8")
