"""What a verb ends in: results, errors, notes, one exit status, and one JSON object if asked.

stdout carries data only, stderr notes and errors, one line each. Knows no verb.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import typer

from polyglyph.errors import InputError, MachineError, PolyglyphError

INTERRUPTED, TERMINATED = 130, 143
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRONG_PATH = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
)  # fmt: skip


class Terminated(BaseException):
    """SIGTERM came: unwind, so that nothing half-written is left."""


class Outcome:
    """Collects what one run of a verb did.

    results: JSON-able, one entry per thing made. A failed item of a batch is recorded with `fail`
    and the verb goes on; the exit status is then 2, or 1 where the machine was at fault.
    """

    def __init__(self, command: str, as_json: bool = False, debug: bool = False) -> None:
        self.command, self.as_json, self.debug = command, as_json, debug
        self.results: list[Any] = []
        self.errors: list[dict[str, str]] = []
        self.status = 0
        self._began = time.perf_counter()

    def add(self, **result: Any) -> None:
        self.results.append(result)

    def fail(self, error: BaseException, source: str | os.PathLike = "") -> None:
        """Records an error and says it in one line; the worst status so far stays."""
        status, message = explain(error)
        kind, where = type(error).__name__, printable(source)
        self.errors.append({"source": where, "type": kind, "message": message})
        rank = {0: 0, 2: 1, 1: 2}
        self.status = max(self.status, status, key=lambda s: rank.get(s, 3))
        if self.debug:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        self.note(f"error: {message}" if where in message else f"error: {where}: {message}")

    def note(self, text: str) -> None:
        """One line on stderr."""
        print(" ".join(text.split("\n")), file=sys.stderr, flush=True)

    def show(self, renderable: Any) -> None:
        """A text or a rich table on stdout; nothing with --json."""
        if self.as_json:
            return
        if isinstance(renderable, str):
            print(renderable, flush=True)
            return
        from rich.console import Console

        # A pipe has no width of its own: tables keep their columns there.
        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
        console.print(renderable)

    def close(self) -> None:
        """Prints the JSON object, where one was asked for."""
        if not self.as_json:
            return
        from polyglyph import __version__

        body = {
            "polyglyph": __version__,
            "command": self.command,
            "ok": self.status == 0,
            "results": self.results,
            "errors": self.errors,
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        # ASCII: file names may hold bytes that no encoding of stdout can write.
        print(json.dumps(body, default=plain), flush=True)


@contextlib.contextmanager
def command(name: str, as_json: bool, debug: bool) -> Iterator[Outcome]:
    """The frame of every verb: whatever happens inside ends in an exit status."""
    outcome = Outcome(name, as_json, debug)
    try:
        yield outcome
    except (typer.Exit, BrokenPipeError):
        raise
    except BaseException as error:
        outcome.fail(error)
    outcome.close()
    if outcome.status:
        raise typer.Exit(outcome.status)


def explain(error: BaseException) -> tuple[int, str]:
    """(exit status, one line) of anything that may be raised."""
    text = " ".join(str(error).split())
    if isinstance(error, PolyglyphError):
        return error.exit_status, text
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, Terminated):
        return TERMINATED, "terminated"
    if isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text:
        return MachineError.exit_status, f"memory is full: {text[:200]}; use smaller inputs"
    if isinstance(error, OSError) and error.errno in _FULL:
        return MachineError.exit_status, f"the disk is full: {text}; free some space, run again"
    if isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename is not None:
        reason = (error.strerror or text).lower()
        return InputError.exit_status, f"{printable(error.filename)!r} can't be used: {reason}"
    if isinstance(error, OSError):
        return MachineError.exit_status, f"the system refused: {text}"
    return 1, f"internal error: {type(error).__name__}: {text[:300]} (--debug shows where)"


def printable(path: str | os.PathLike) -> str:
    """A path as text that any output takes; bytes that aren't UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def counted(n: int, noun: str) -> str:
    """`n` things, in words: "1 file", "2 files"; a noun whose plural ends in s."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def plain(value: Any) -> Any:
    """numpy numbers and arrays, and paths, as JSON values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return printable(value) if isinstance(value, os.PathLike) else str(value)
