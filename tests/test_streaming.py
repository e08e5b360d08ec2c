from __future__ import annotations

import threading
from typing import Any

import pytest

from polyglyph.errors import InputError
from polyglyph.streaming import run_in_thread


def test_ids_come_in_the_order_they_were_reported() -> None:
    def work(on_ids: Any) -> None:
        for i in range(50):
            on_ids(0, [i, i + 1])

    assert list(run_in_thread(work)) == [[i, i + 1] for i in range(50)]


def test_an_error_of_the_work_is_raised_where_the_ids_are_read() -> None:
    def work(on_ids: Any) -> None:
        on_ids(0, [7])
        raise InputError("nothing fits")

    events = run_in_thread(work)
    assert next(events) == [7]
    with pytest.raises(InputError, match="nothing fits"):
        next(events)


def test_a_reader_that_stops_early_stops_the_work() -> None:
    reached: list[int] = []

    def work(on_ids: Any) -> None:
        for i in range(10**9):
            reached.append(i)
            on_ids(0, [i])

    events = run_in_thread(work)
    assert next(events) == [0]
    events.close()  # joins the thread: it would never return if the work went on
    assert len(reached) < 10**9
    assert not [t for t in threading.enumerate() if t.name == "polyglyph-stream"]
