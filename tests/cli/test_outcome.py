from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import typer

from polyglyph.cli.outcome import (
    Outcome,
    Terminated,
    command,
    counted,
    explain,
    plain,
    printable,
)
from polyglyph.errors import InputError, MachineError, MediaError


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MediaError("a.png is empty"), 2, "a.png is empty"),
        (MachineError("the disk is full"), 1, "the disk is full"),
        (MemoryError("bad alloc"), 1, "memory is full"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 1, "memory is full"),
        (OSError(errno.ENOSPC, "No space left"), 1, "the disk is full"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "'a/b' can't be used: permission"),
        (OSError(errno.EIO, "Input/output error", "a"), 1, "the system refused"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (ZeroDivisionError("two\nlines"), 1, "internal error: ZeroDivisionError: two lines"),
    ],
)
def test_whatever_is_raised_has_a_status_and_one_line(
    error: BaseException, status: int, said: str
) -> None:
    found, text = explain(error)
    assert found == status and said in text and "\n" not in text


def test_a_batch_with_failed_items_goes_on_and_ends_with_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as end, command("verb", True, False) as outcome:
        outcome.add(file=Path("a"), n=np.int64(3), values=np.arange(2))
        outcome.fail(InputError("b is wrong"), "b")
        outcome.add(file="c")
    assert end.value.exit_code == 2
    captured = capsys.readouterr()
    body = json.loads(captured.out)
    assert captured.err == "error: b is wrong\n"
    assert set(body) == {"polyglyph", "command", "ok", "results", "errors", "seconds"}
    assert body["results"] == [{"file": "a", "n": 3, "values": [0, 1]}, {"file": "c"}]
    assert body["errors"] == [{"source": "b", "type": "InputError", "message": "b is wrong"}]


def test_our_fault_weighs_more_than_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome("verb")
    for error in (InputError("a"), MachineError("b"), InputError("c")):
        outcome.fail(error)
    assert outcome.status == 1
    outcome.fail(KeyboardInterrupt())
    assert outcome.status == 130


def test_a_traceback_is_shown_with_debug_only(capsys: pytest.CaptureFixture[str]) -> None:
    for debug in (False, True):
        with pytest.raises(typer.Exit), command("verb", False, debug):
            raise InputError("wrong")
        assert ("Traceback" in capsys.readouterr().err) == debug


def test_stdout_is_empty_but_for_json_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    with command("verb", True, False) as outcome:
        outcome.note("for people")
        outcome.show("data")
    captured = capsys.readouterr()
    assert captured.err == "for people\n" and json.loads(captured.out)["ok"]


def test_names_that_are_not_utf_8_can_be_printed() -> None:
    name = b"caf\xe9 \xf0\x9f\x8e\xb5.png".decode("utf-8", "surrogateescape")
    assert printable(name) == "caf\\xe9 🎵.png" and plain(Path(name)) == "caf\\xe9 🎵.png"


def test_one_thing_is_not_several() -> None:
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
