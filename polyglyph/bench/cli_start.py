"""Seconds from `polyglyph --help` to its end: what a person waits before the first word."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from polyglyph.bench.runner import Bench, BenchResult, Progress
from polyglyph.errors import MachineError

TARGET_S = 0.6
_START = "import sys; sys.argv[0] = 'polyglyph'; from polyglyph.cli import main; main()"


def start(arguments: tuple[str, ...] = ("--help",)) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one start in a fresh interpreter."""
    before = os.times()
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _START, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    wall_s = time.perf_counter() - began
    after = os.times()
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise MachineError(f"polyglyph {' '.join(arguments)} failed: {' '.join(last)}")
    spent = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return wall_s, spent


def run(quick: bool, progress: Progress) -> BenchResult:
    """The median of seven starts after one that warms the disk cache (quick: of two)."""
    n = 2 if quick else 7
    start()
    wall, cpu = [], []
    for i in range(n):
        progress(i, n, "starting")
        wall_s, cpu_s = start()
        wall.append(wall_s)
        cpu.append(cpu_s)
    progress(n, n, "starting")
    return BenchResult(
        "",
        statistics.median(wall),
        "s",
        TARGET_S,
        at_most=True,
        summary=f"polyglyph --help, median of {n} (CPU {statistics.median(cpu):.2f} s)",
        samples={"wall_s": wall, "cpu_s": cpu},
    )


BENCH = Bench("seconds of polyglyph --help", run)
