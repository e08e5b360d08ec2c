"""Turns a function that reports ids by callback into an iterator over them.

The work runs in a thread of its own; a consumer that stops early stops it at its next id. Knows
nothing of what the ids mean.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

OnIds = Callable[[int, list[int]], None]


class _Stopped(BaseException):
    """Raised inside the work when nobody listens any more; no error of anyone's."""


def run_in_thread(work: Callable[[OnIds], Any]) -> Iterator[list[int]]:
    """The ids that `work(on_ids)` reports, in order; an error of the work is raised here."""
    events: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def on_ids(row: int, ids: list[int]) -> None:
        if stopped.is_set():
            raise _Stopped
        events.put(list(ids))

    def run() -> None:
        try:
            work(on_ids)
        except _Stopped:
            pass
        except BaseException as error:  # handed on: the consumer raises it
            events.put(error)
        finally:
            events.put(None)

    thread = threading.Thread(target=run, name="polyglyph-stream", daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        stopped.set()
        thread.join()
