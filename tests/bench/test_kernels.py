"""Rows of `bench kernels`: both sides as often, the same result, and what can't run says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polyglyph.bench import kernels
from polyglyph.bench.kernel_cases import cpu, gpu, measuring
from polyglyph.bench.runner import run_benches, table


def test_the_whole_table_is_printed_on_a_machine_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = torch.get_num_threads()
    rows = run_benches(["kernels"], quick=True)
    assert torch.get_num_threads() == before
    measured = [row for row in rows if row.value is not None]
    assert len(measured) >= 4 and all(row.value > 0 for row in measured if row.unit == "×")
    rest = [row for row in rows if row.value is None]
    assert {row.met for row in rest} == {None}
    assert {row.summary for row in rest} == {"not measured: no CUDA device"}
    for word in ("SDPA flash", "SDPA cuDNN", "FlexAttention", "torch.compile", "a copy"):
        assert any(row.bench.endswith(word) for row in rest), word
    assert table(rows).row_count == len(rows)


@pytest.mark.parametrize("case", cpu.cases(True), ids=lambda case: case.name)
def test_both_sides_compute_the_same(case: measuring.Case) -> None:
    inputs = case.make(True, 3)
    ours, theirs = (side(inputs)() for side in case.sides.values())
    if case.name.startswith("nearest"):
        assert torch.equal(ours, theirs[1][0].reshape(-1))
    elif case.name.startswith("packed"):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    else:  # another loss, the same shapes: what is compared is the work
        assert [x.shape for x in ours] == [x.shape for x in theirs]
        assert all(x.isfinite().all() for x in ours)


def test_a_side_that_cannot_run_is_said_and_the_others_are_measured() -> None:
    def missing(inputs: object) -> measuring.Thunk:
        raise ImportError("no such peer\nmore lines")

    case = measuring.Case(
        "case",
        "cpu",
        lambda quick, seed: torch.ones(3),
        {"ours": lambda x: lambda: x + 1, "peer": missing, "other": lambda x: lambda: x.exp()},
        {"peer": 2.0, "other": 0.5},
        {"peer": 0.1},
    )
    found = measuring.measure(case, True, 3)
    assert len(found.seconds["ours"]) == len(found.seconds["other"]) == 3
    peer, other, memory = measuring.results(case, found)
    assert peer.value is None and peer.summary == "not measured: peer: no such peer"
    assert memory.value is None and memory.at_most and other.value is not None


def test_rates_weigh_times_by_the_useful_work() -> None:
    case = measuring.Case("c", "cpu", lambda q, s: 0, {}, {"peer": 0.8})
    found = measuring.Measured(
        {"ours": [2.0], "peer": [8.0]}, {"ours": [0], "peer": [0]}, {"ours": 1.0, "peer": 5.0}
    )
    (row,) = measuring.results(case, found)
    assert row.value == pytest.approx(0.8) and row.met


@pytest.mark.skipif(not measuring.has_memory_figures(), reason="no peak memory per call here")
def test_extra_memory_is_what_is_held_beyond_the_result() -> None:
    """In a process of its own: one that has freed much takes new blocks out of what it holds."""
    if not measuring.has_memory_figures():
        pytest.skip("this system says nothing of a process's peak")
    code = """
import torch
from polyglyph.bench.kernel_cases import measuring

def side(inputs):
    def call():
        large = torch.ones(64 << 20, dtype=torch.uint8)
        return torch.ones(16 << 20, dtype=torch.uint8) + large[: 16 << 20]
    return call

print(*measuring._timed(side, None, "cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, extra = map(float, done.stdout.split())
    assert seconds > 0 and 70 << 20 < extra < 100 << 20


def test_a_folder_of_rows_is_resumed_and_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [case for case in kernels.list_cases(True) if case.name.startswith("packed")]
    monkeypatch.setattr(kernels, "list_cases", lambda quick: listed)
    assert kernels.main(["-o", str(tmp_path), "--quick", "--seconds", "-1"]) == 3
    assert kernels.main(["-o", str(tmp_path), "--quick"]) == 0
    (file,) = tmp_path.glob("*.json")
    text = file.read_text()
    assert kernels.main(["-o", str(tmp_path), "--quick", "--commit", "abc"]) == 0
    assert file.read_text() == text, "what is measured is not measured again"
    assert json.loads(text)[0]["hardware"]
    page = (tmp_path / "README.md").read_text()
    assert "commit abc" in page and "against SDPA with the dense mask | " in page


def test_every_row_has_a_name_of_its_own() -> None:
    cases = kernels.list_cases(False)
    assert len({case.name for case in cases}) == len(cases)
    assert len({kernels._file_name(case.name) for case in cases}) == len(cases)
    for case in cases:
        assert set(case.targets) | set(case.memory) <= set(case.sides)
        assert "ours" in case.sides
    assert all(case.device == "cuda" for case in gpu.cases(False))


@pytest.mark.gpu
@pytest.mark.parametrize("case", gpu.cases(True), ids=lambda case: case.name)
def test_cases_of_a_gpu_run_at_small_sizes(case: measuring.Case) -> None:
    found = measuring.measure(case, True, 1)
    assert "ours" not in found.failed, found.failed
