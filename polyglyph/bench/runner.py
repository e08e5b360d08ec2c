"""Runs benches by name: a table and a JSON file. A missed target is a result, not a failure.

The benches are the files of this folder; each holds a `BENCH`. Knows none of them by name.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyglyph import bench as bench_package
from polyglyph.errors import unknown

FORMAT = 1
_NO_BENCH = {"runner"}
Progress = Callable[[int, int, str], None]  # done, of, what


def no_progress(done: int, of: int, what: str) -> None:
    """Says nothing."""


@dataclass
class BenchResult:
    """One figure beside its target; None where it can't be measured here: `summary` says why."""

    bench: str
    value: float | None
    unit: str
    target: float
    at_most: bool  # whether the target is an upper limit, not a lower one
    summary: str  # what was compared, in a line
    samples: dict[str, list[float]] = field(default_factory=dict)  # all repetitions, in seconds
    facts: dict[str, Any] = field(default_factory=dict)
    hardware: str = ""
    seconds: float = 0.0

    @property
    def met(self) -> bool | None:
        """Whether the target was met on this machine; None: not measured."""
        if self.value is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def to_json(self) -> dict[str, Any]:
        """All fields, and `met`."""
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True)
class Bench:
    """What a bench's file offers: `run(quick, progress)` gives its result, or one for every row."""

    summary: str
    run: Callable[[bool, Progress], BenchResult | list[BenchResult]]


def list_benches() -> list[str]:
    """The names of all benches, sorted; imports none of them."""
    modules = pkgutil.iter_modules(bench_package.__path__)
    return sorted(m.name for m in modules if not m.ispkg and m.name not in _NO_BENCH)


def load_bench(name: str) -> Bench:
    """The bench of that name. InputError with the nearest name."""
    if name not in list_benches():
        raise unknown("bench", name, list_benches())
    return importlib.import_module(f"{bench_package.__name__}.{name}").BENCH


def run_benches(
    names: Iterable[str] = (),
    out: str | Path | None = None,
    *,
    quick: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> list[BenchResult]:
    """Runs benches (all, when none is named); `out` is a JSON file. `quick` is for smoke tests."""
    from polyglyph.checkpoint import atomic_file, refuse_existing
    from polyglyph.eval.machine import describe_machine

    benches = {name: load_bench(name) for name in dict.fromkeys(names) or list_benches()}
    if out is not None:
        refuse_existing(out, force)
    results = []
    for name, bench in benches.items():

        def tell(done: int, of: int, what: str, name: str = name) -> None:
            progress(done, of, f"{name}: {what}")

        began = time.perf_counter()
        made = bench.run(quick, tell)
        for result in made if isinstance(made, list) else [made]:
            result.bench = f"{name}: {result.bench}" if result.bench else name
            result.hardware = describe_machine()
            result.seconds = time.perf_counter() - began
            results.append(result)
    if out is not None:
        data = {"format": FORMAT, "quick": quick, "results": [r.to_json() for r in results]}
        with atomic_file(out, force=force) as temporary:
            temporary.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return results


def table(results: Iterable[BenchResult]) -> Any:
    """A rich table: one row per bench."""
    from rich.table import Table

    rows = Table(title="benches")
    for name in ("bench", "value", "target", "", "what"):
        rows.add_column(name)
    for result in results:
        rows.add_row(
            result.bench,
            "–" if result.value is None else f"{result.value:.3g} {result.unit}",
            f"{'≤' if result.at_most else '≥'} {result.target:g} {result.unit}",
            {True: "met", False: "missed", None: "not measured"}[result.met],
            result.summary,
        )
    return rows
