from __future__ import annotations

import io
import sys

import pytest

from polyglyph.cli.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working") as tell:
        tell(1, 3, "one")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_terminal_sees_what_is_done_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("working") as tell:
        tell(2, 3, "encoding b.png")
    assert "encoding b.png" in terminal.getvalue() and "2/3" in terminal.getvalue()
    assert not capsys.readouterr().out
