"""Damaged files of every container: an error of ours in one line, or a valid result; never a
crash, a hang of over 5 s of CPU, or less than there was without a note."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from mutated_files import KINDS, OURS, WAYS

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "mutated_files.py"


def faults(kinds: Sequence[str], n: int, seed: int) -> tuple[Counter[str], list[str]]:
    """({outcome: count}, what went wrong) of n damaged files of each kind."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    skip = 0
    while True:
        words = [sys.executable, str(SCRIPT), ",".join(kinds), str(n), str(seed), str(skip)]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=3000,
            env={**os.environ, "PYTHONPATH": path},
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for (kind, way, count), outcome in zip(lines[::2], lines[1::2], strict=False):
            counts[outcome] += 1
            if outcome not in ("read", "refused"):
                wrong.append(f"{kind} {way} {count}: {outcome}")
        if done.returncode == 0:
            return counts, wrong
        assert len(lines) % 2, f"{done.returncode}: {done.stderr[-2000:]}"
        kind, way, skip = lines[-1]
        wrong.append(f"{kind} {way} {skip}: the process died with {done.returncode}")
        assert len(wrong) < 20, wrong


def test_every_container_survives_damage() -> None:
    media = [kind for kind in KINDS if kind not in OURS]
    counts, wrong = faults(media, 4, seed=1)
    assert not wrong and counts.total() == 4 * 13 and len(counts) == 2


def test_our_own_files_survive_damage() -> None:
    counts, wrong = faults(list(OURS), 2, seed=2)
    assert not wrong and counts.total() == 2 * 4 and counts["refused"] >= 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_damaged_files(kind: str) -> None:
    counts, wrong = faults([kind], 50 if kind == "checkpoint" else 134, seed=3)
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] and counts.total() >= 19 * len(WAYS)
