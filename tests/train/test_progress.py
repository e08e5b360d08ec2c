from __future__ import annotations

import io

import pytest

from polyglyph.train import progress as module
from polyglyph.train.progress import Progress, duration, figures


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_it_prints_a_line_now_and_then(clock):
    file = io.StringIO()
    with Progress(50, "tiny", file) as show:
        for step in range(10, 51, 10):
            show({"step": step, "loss": 1 / step, "ids_per_s": 8012.4})
            clock[0] += 15
    lines = file.getvalue().splitlines()
    assert lines == [
        "tiny 10/50  loss 0.100  8,012 ids/s",
        "tiny 30/50  loss 0.033  8,012 ids/s  30 s left",
        "tiny 50/50  loss 0.020  8,012 ids/s",
    ]


def test_a_resumed_run_is_timed_from_where_it_began(clock):
    file = io.StringIO()
    with Progress(1000, "tiny", file) as show:
        show({"step": 900, "loss": 1.0})
        clock[0] += 60
        show({"step": 950, "loss": 1.0})
    assert file.getvalue().splitlines()[-1].endswith("1 min 00 s left")


def test_on_a_terminal_it_draws_a_bar_with_name_steps_and_loss():
    file = Terminal()
    with Progress(20, "tiny-image", file) as show:
        show({"step": 5, "loss": 2.5, "media_per_s": 31.0})
        show({"step": 20, "loss": 1.5, "media_per_s": 31.0})
    text = file.getvalue()
    assert "tiny-image" in text and "20/20" in text and "1.500" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_line_without_loss_has_no_figures():
    assert figures({"step": 1, "bytes_per_id": 2.0}) == ""
