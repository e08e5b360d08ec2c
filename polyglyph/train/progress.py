"""What a person sees of a run: a bar with the time left, on stderr; plain lines off a terminal.

`Progress` is called with log lines, so it fits every loop's `on_log`. Knows no loop.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any, TextIO

PLAIN_EVERY_S = 20.0
_RATES = (("ids_per_s", "ids/s"), ("media_per_s", "media/s"))


class Progress(AbstractContextManager["Progress"]):
    """`with Progress(n_steps, "tiny") as show: train_model(config, out, on_log=show)`."""

    def __init__(self, n_steps: int, name: str, file: TextIO | None = None) -> None:
        self.n_steps, self.name = n_steps, name
        self.file = file or sys.stderr
        self._bar: Any = None
        self._first: tuple[int, float] | None = None  # step and time of the first line
        self._said = -PLAIN_EVERY_S

    def __enter__(self) -> Progress:
        if self.file.isatty():
            self._bar, self._task = self._make_bar()
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _make_bar(self) -> tuple[Any, Any]:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeRemainingColumn(),
            progress.TimeElapsedColumn(),
        )
        bar = progress.Progress(
            *columns, console=Console(file=self.file), speed_estimate_period=300
        )
        return bar, bar.add_task(self.name, total=self.n_steps, figures="")

    def __call__(self, line: dict[str, Any]) -> None:
        """Shows one log line."""
        step, now = int(line["step"]), time.monotonic()
        if self._bar is not None:
            if self._first is None:  # a resumed run did not do its first steps just now
                self._bar.reset(self._task, completed=step)
            self._bar.update(self._task, completed=step, figures=figures(line))
        if self._first is None:
            self._first = step, now
        if self._bar is None and (now - self._said >= PLAIN_EVERY_S or step >= self.n_steps):
            self._said = now
            left = self._left(step, now)
            text = f"{self.name} {step}/{self.n_steps}  {figures(line)}"
            print(text + (f"  {duration(left)} left" if left else ""), file=self.file, flush=True)

    def _left(self, step: int, now: float) -> float | None:
        assert self._first is not None
        done = step - self._first[0]
        return (now - self._first[1]) / done * (self.n_steps - step) if done else None


def figures(line: dict[str, Any]) -> str:
    """The loss and the rate of a log line, as far as it has them."""
    parts = [f"loss {line['loss']:.3f}"] if "loss" in line else []
    parts += [f"{line[key]:,.0f} {unit}" for key, unit in _RATES if key in line]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 1 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
