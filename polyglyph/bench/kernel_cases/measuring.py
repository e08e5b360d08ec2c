"""One case: ours and its peers on the same inputs, in one process, in turn.

Every turn draws fresh inputs and lets the sides run one after the other, in an order that turns
round; the figure is a ratio of medians. On a CPU one thread and CPU seconds; on a GPU events, with
the L2 cache overwritten before each call. Extra memory is what a call holds at its peak beyond the
tensors it returns. Knows no kernel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyglyph.bench.runner import BenchResult

Thunk = Callable[[], Any]  # what is timed; returns the tensors it made
Side = Callable[[Any], Thunk]  # inputs -> thunk; what it does before it returns is not timed
FLUSH_BYTES = 256 << 20  # more than the L2 cache of any of these GPUs
OURS = "ours"


@dataclass(frozen=True)
class Case:
    """`make(quick, seed)` gives the inputs; `sides` holds "ours" and the peers by name."""

    name: str
    device: str
    make: Callable[[bool, int], Any]
    sides: Mapping[str, Side]
    targets: Mapping[str, float]  # peer -> at least this often our time (of equal work)
    memory: Mapping[str, float] = field(default_factory=dict)  # peer -> at most, of its extra bytes
    # inputs -> useful work of each side, where the sides don't do the same
    work: Callable[[Any], Mapping[str, float]] | None = None


@dataclass
class Measured:
    """What came of the sides' turns."""

    seconds: dict[str, list[float]]
    extra_bytes: dict[str, list[int]]
    work: Mapping[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # side -> why


def measure(case: Case, quick: bool, n_turns: int) -> Measured:
    """Time every side n_turns times after one turn that isn't counted. A side that can't run here
    (not installed, not supported, out of memory) is said to have failed, and why."""
    found = Measured({name: [] for name in case.sides}, {name: [] for name in case.sides})
    for turn in range(n_turns + 1):
        inputs = case.make(quick, turn)
        if case.work is not None:
            found.work = case.work(inputs)
        for name in list(case.sides)[:: -1 if turn % 2 else 1]:
            if name in found.failed:
                continue
            try:
                seconds, extra = _timed(case.sides[name], inputs, case.device)
            except (RuntimeError, ImportError, TypeError, ValueError, MemoryError) as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                found.failed[name] = lines[0][:200]
                continue
            if turn:  # the first one allocates and compiles
                found.seconds[name].append(seconds)
                found.extra_bytes[name].append(extra)
    return found


def _timed(side: Side, inputs: Any, device: str) -> tuple[float, int]:
    thunk = side(inputs)
    if device == "cuda":
        return _timed_on_gpu(thunk)
    before = _resident_bytes(reset=True)
    began = time.process_time()
    made = thunk()
    seconds = time.process_time() - began
    return seconds, _peak_resident_bytes() - before - n_bytes(made)


def _timed_on_gpu(thunk: Thunk) -> tuple[float, int]:
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    # The flush again, so that the GPU is busy while the call is being launched.
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    del flush
    torch.cuda.reset_peak_memory_stats()
    begin.record()
    made = thunk()
    end.record()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before - n_bytes(made)
    return begin.elapsed_time(end) * 1e-3, extra


def n_bytes(made: Any) -> int:
    """Bytes of the tensors in a result."""
    if isinstance(made, Tensor):
        return made.numel() * made.element_size()
    return sum(map(n_bytes, made)) if isinstance(made, tuple | list) else 0


def _resident_bytes(reset: bool = False) -> int:
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        except OSError:
            return 0
    return _status("VmRSS")


def _peak_resident_bytes() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def has_memory_figures() -> bool:
    """Whether this system says what a process holds at its peak, call by call."""
    path = Path("/proc/self/clear_refs")
    try:
        path.write_text("5")
    except OSError:
        return False
    return True


def results(case: Case, found: Measured) -> list[BenchResult]:
    """A row for each peer's time, and for each peer's memory that has a target."""
    rows = []
    for peer, target in case.targets.items():
        name, why = f"{case.name}, against {peer}", _failure(found, peer)
        if why is not None:
            rows.append(unmeasured(name, target, why))
            continue
        ours, theirs = (statistics.median(found.seconds[side]) for side in (OURS, peer))
        work = found.work.get(OURS, 1.0) / found.work.get(peer, 1.0) if found.work else 1.0
        facts = {"work": dict(found.work), "extra_bytes": dict(found.extra_bytes)}
        rows.append(
            BenchResult(
                name,
                theirs / ours * work,
                "×",
                target,
                at_most=False,
                summary=f"{_time(ours)} against {_time(theirs)}",
                samples={f"{side}_s": found.seconds[side] for side in (OURS, peer)},
                facts=facts,
            )
        )
    for peer, target in case.memory.items():
        name, why = f"{case.name}, memory against {peer}", _failure(found, peer)
        if why is None and case.device == "cpu" and not has_memory_figures():
            why = "the system doesn't say what a call holds"
        if why is not None:
            rows.append(unmeasured(name, target, why, at_most=True))
            continue
        ours, theirs = (statistics.median(found.extra_bytes[side]) for side in (OURS, peer))
        rows.append(
            BenchResult(
                name,
                max(0.0, ours) / max(1.0, theirs),
                "of it",
                target,
                at_most=True,
                summary=f"{ours / 2**20:,.0f} MiB extra against {theirs / 2**20:,.0f} MiB",
                facts={"extra_bytes": {side: found.extra_bytes[side] for side in (OURS, peer)}},
            )
        )
    return rows


def unmeasured(name: str, target: float, why: str, at_most: bool = False) -> BenchResult:
    """The row of a figure that this machine can't give."""
    unit = "of it" if at_most else "×"
    return BenchResult(name, None, unit, target, at_most=at_most, summary=f"not measured: {why}")


def all_unmeasured(case: Case, why: str) -> list[BenchResult]:
    """All rows of a case that can't run."""
    rows = [unmeasured(f"{case.name}, against {p}", t, why) for p, t in case.targets.items()]
    return rows + [
        unmeasured(f"{case.name}, memory against {p}", t, why, at_most=True)
        for p, t in case.memory.items()
    ]


def _failure(found: Measured, peer: str) -> str | None:
    for side in (OURS, peer):
        if side in found.failed:
            return f"{side}: {found.failed[side]}"
    return None


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
