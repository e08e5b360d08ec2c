"""Kernels against what a user would take instead: the table of targets, on any machine.

The rows of a CPU are measured everywhere, one thread, CPU seconds; those of a GPU where there is
one, else they say so. Both sides of a row run in this process, in turn, on fresh random inputs.

    polyglyph bench kernels -o FILE            all rows in one file
    python -m polyglyph.bench.kernels -o DIR   a file per case, resumable, and a Markdown table"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyglyph.bench.runner import Bench, BenchResult, Progress

if TYPE_CHECKING:
    from polyglyph.bench.kernel_cases.measuring import Case

N_TURNS = {"cpu": 5, "cuda": 11}


def list_cases(quick: bool) -> list[Case]:
    """All cases, those of the CPU first."""
    from polyglyph.bench.kernel_cases import cpu, gpu

    return cpu.cases(quick) + gpu.cases(quick)


def run(quick: bool, progress: Progress) -> list[BenchResult]:
    """All rows; the number of threads is as before afterwards."""
    cases = list_cases(quick)
    found: list[BenchResult] = []
    for i, case in enumerate(cases):
        progress(i, len(cases), case.name)
        found += run_case(case, quick)
    progress(len(cases), len(cases), "done")
    return found


def run_case(case: Case, quick: bool) -> list[BenchResult]:
    """The rows of one case, measured or said to be unmeasured."""
    import torch

    from polyglyph.bench.kernel_cases.measuring import all_unmeasured, measure, results

    if case.device == "cuda" and not torch.cuda.is_available():
        return all_unmeasured(case, "no CUDA device")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return results(case, measure(case, quick, 1 if quick else N_TURNS[case.device]))
    finally:
        torch.set_num_threads(n_threads)


BENCH = Bench("kernels against what a user would take instead, on the CPU and on a GPU", run)


# --- a file per case, for a machine that is lent for minutes ------------------------------------


def run_folder(folder: Path, quick: bool, devices: Iterable[str], seconds: float) -> bool:
    """Measure the cases whose file isn't there, until the time is up; False when some are left."""
    from polyglyph.checkpoint import atomic_file
    from polyglyph.eval.machine import describe_machine

    folder.mkdir(parents=True, exist_ok=True)
    began, complete = time.monotonic(), True
    for case in list_cases(quick):
        path = folder / f"{_file_name(case.name)}.json"
        if case.device not in devices or path.is_file():
            continue
        if time.monotonic() - began > seconds:
            complete = False
            continue
        print(case.name, file=sys.stderr, flush=True)
        rows = run_case(case, quick)
        for row in rows:
            row.bench, row.hardware = f"kernels: {row.bench}", describe_machine()
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps([row.to_json() for row in rows], indent=1), "utf-8")
    return complete


def _file_name(name: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return "-".join(filter(None, kept.split("-")))


def collect(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's files, by name of the case."""
    files = sorted(folder.glob("*.json"))
    return [row for file in files for row in json.loads(file.read_text("utf-8"))]


def as_markdown(rows: Iterable[dict[str, Any]], heading: str) -> str:
    """A table of rows as `BenchResult.to_json` gives them."""
    lines = [f"# {heading}", "", "| case | value | target | | what |", "|---|---|---|---|---|"]
    for row in rows:
        value = "–" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
        target = f"{'≤' if row['at_most'] else '≥'} {row['target']:.3g} {row['unit']}"
        state = {True: "met", False: "missed", None: "not measured"}[row["met"]]
        name = row["bench"].removeprefix("kernels: ")
        cells = (name, value, target, state, row["summary"].replace("|", "/"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _heading() -> str:
    from importlib.util import find_spec

    from polyglyph.eval.machine import describe_machine

    version = "no triton"
    if find_spec("triton") is not None:
        import triton

        version = f"triton {triton.__version__}"
    return f"Kernels on {describe_machine()}, {version}"


def main(arguments: list[str] | None = None) -> int:
    """0: all is measured; 3: the time was up before."""
    parser = argparse.ArgumentParser(prog="python -m polyglyph.bench.kernels")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", action="append", choices=list(N_TURNS), default=[])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start none after this")
    parser.add_argument("--quick", action="store_true", help="small sizes, once: a smoke test")
    parser.add_argument("--commit", default="", help="named in the table's heading")
    options = parser.parse_args(arguments)
    devices = options.device or list(N_TURNS)
    complete = run_folder(options.output, options.quick, devices, options.seconds)
    heading = _heading() + (f", commit {options.commit}" if options.commit else "")
    text = as_markdown(collect(options.output), heading)
    (options.output / "README.md").write_text(text, "utf-8")
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
