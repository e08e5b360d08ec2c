"""The exact search for the nearest code against vector-quantize-pytorch's, in evaluation.

The case is that of `bench kernels`; here its indices are compared, too. The peer holds matrices of
vectors × codes, 16 GiB for the issue's 65,536 vectors: with less memory free there are fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from polyglyph.bench.codec_rows.published import agreement, residual_search
from polyglyph.bench.runner import BenchResult

N_TURNS = 5


def rows(quick: bool, say: Callable[[str], None]) -> Iterator[BenchResult]:
    """Time, memory beyond the result, and codes that are not the peer's and no ties."""
    from polyglyph.bench.kernel_cases import cpu
    from polyglyph.bench.kernel_cases.measuring import OURS, measure, results

    case = cpu.search_case(quick)
    say(case.name)
    last: dict[str, Any] = {}
    sides = {name: _kept(name, side, last) for name, side in case.sides.items()}
    found = measure(replace(case, sides=sides), quick, 1 if quick else N_TURNS)
    n, due = len(last[OURS][0]) if OURS in last else 0, cpu.SEARCH[0]
    said = "" if quick or n in (0, due) else f"; {n:,} of {due:,} vectors, for want of memory"
    for row in results(case, found):
        row.summary += said
        yield row
    yield _same(f"{case.name}, codes that differ and are no tie", last, found.failed, said)


def _kept(name: str, side: Any, last: dict[str, Any]) -> Any:
    """A side whose latest codes (N,) and inputs are kept in `last`."""

    def made(inputs: Any) -> Callable[[], Any]:
        thunk = side(inputs)

        def call() -> Any:
            result = thunk()
            codes = result[-1] if isinstance(result, tuple) else result
            last[name] = (codes.reshape(-1), inputs)
            return result

        return call

    return made


def _same(name: str, last: dict[str, Any], failed: dict[str, str], said: str) -> BenchResult:
    if failed or len(last) != 2:
        why = "; ".join(f"{side}: {reason}" for side, reason in failed.items())
        return BenchResult(name, None, "codes", 0.0, True, f"not measured: {why}")
    (ours, (x, codebook)), (theirs, _) = last.values()
    search = residual_search(x, codebook[None])
    facts = agreement(np.asarray(ours)[None], np.asarray(theirs)[None], search)
    summary = f"{facts['same']:.4%} of {len(ours):,} the same, {facts['ties']} ties{said}"
    return BenchResult(name, facts["wrong"], "codes", 0.0, True, summary, facts=facts)
