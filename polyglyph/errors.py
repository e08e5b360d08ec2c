"""Errors that a user meets: one line saying what was expected, what came, what to do.

Holds the classes, their exit status and the "did you mean" message. Knows nothing of any floor
above. A wrong input exits with 2, a failure of the machine or of ours with 1; our own invariants
are bare asserts, not errors of this file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN_OPTIONS = 24


class PolyglyphError(Exception):
    """Everything that polyglyph raises on purpose. `exit_status` is what a command ends with."""

    exit_status = 1


class InputError(PolyglyphError, ValueError):
    """What the user gave is wrong: an argument, a file, a name."""

    exit_status = 2


class MediaError(InputError):
    """A media file or array that can't be read, is out of limits or can't be written as asked."""


class ConfigError(InputError):
    """A configuration with an unknown key, a value of the wrong kind or broken TOML."""


class FormatError(InputError):
    """An artefact of ours (checkpoint, codes file, shard) that is broken, foreign or too new."""


class ParseError(InputError):
    """Ids that the grammar doesn't allow.

    `position` is the index of the first wrong id (the length, for a sequence that ends early),
    `slot` the name of the slot there and `allowed` what might have stood there, in words."""

    def __init__(self, message: str, position: int = -1, slot: str = "", allowed: str = "") -> None:
        super().__init__(message)
        self.position = position
        self.slot = slot
        self.allowed = allowed

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.position, self.slot, self.allowed)


class MachineError(PolyglyphError):
    """The machine failed, not the input: disk full, not writable, out of memory."""

    exit_status = 1


class MissingExtraError(InputError):
    """An optional package is needed and isn't installed; the message names the extra."""


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error to raise where the import of an optional package failed."""
    return MissingExtraError(
        f"this needs the package {package!r}, which is not installed; "
        f"install it with: pip install 'polyglyph[{extra}]'"
    )


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that a mistyped `name` most likely meant, or None."""
    pool = sorted(set(options))
    by_folded = {option.casefold(): option for option in reversed(pool)}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.5)
    return by_folded[close[0]] if close else None


def unknown(
    kind: str, name: str, options: Iterable[str], error: type[InputError] = InputError
) -> InputError:
    """`unknown KIND 'x'; did you mean 'y'? (available: ...)`, as an error to raise."""
    pool = list(options)
    guess = nearest(name, pool)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return error(f"unknown {kind} {name!r}{hint} (available: {_listed(pool)})")


def _listed(options: Sequence[str]) -> str:
    if not options:
        return "none"
    shown = ", ".join(options[:_SHOWN_OPTIONS])
    rest = len(options) - _SHOWN_OPTIONS
    return f"{shown} and {rest} more" if rest > 0 else shown
