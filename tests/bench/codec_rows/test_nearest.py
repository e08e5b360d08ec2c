"""The search's rows: both figures, and indices that are the peer's, ties declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyglyph.bench.codec_rows import nearest
from polyglyph.bench.kernel_cases import cpu


def silent(what: str) -> None:
    pass


def test_time_memory_and_indices_are_reported() -> None:
    time, memory, same = nearest.rows(True, silent)
    assert time.value is not None and time.value > 0 and time.target == 3 and not time.at_most
    assert memory.target == 1 / 50 and memory.at_most
    assert same.value == 0 and same.met and same.facts["same"] == 1
    assert all("96 × 16, K = 64" in row.bench for row in (time, memory, same))


def test_a_wrong_index_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(inputs: Any) -> Callable[[], Any]:
        from polyglyph.kernels.nearest_code import nearest_code

        return lambda: (nearest_code(*inputs) + 1) % 64

    monkeypatch.setattr(cpu, "_nearest", shifted)
    same = list(nearest.rows(True, silent))[-1]
    assert same.value == 96 and not same.met


def test_a_peer_that_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(inputs: Any) -> Callable[[], Any]:
        raise ImportError("no such peer")

    monkeypatch.setattr(cpu, "_vector_quantize", missing)
    rows = list(nearest.rows(True, silent))
    assert [row.value for row in rows] == [None] * 3
    assert all("no such peer" in row.summary for row in rows)


def test_fewer_vectors_are_searched_where_memory_is_short_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "_free_bytes", lambda: 5.5 * 2**30)
    case = cpu.search_case(False)
    assert case.name == "nearest code, 16,384 × 256, K = 16,384"
    monkeypatch.setattr(cpu, "_free_bytes", lambda: 19 * 2**30)
    assert cpu.search_case(False).name.startswith("nearest code, 65,536")

    small = cpu.search_case(True)
    monkeypatch.setattr(cpu, "search_case", lambda quick: small)
    monkeypatch.setattr(nearest, "N_TURNS", 1)
    for row in nearest.rows(False, silent):
        assert row.summary.endswith("96 of 65,536 vectors, for want of memory")
    assert torch.is_tensor(small.make(True, 0)[0])
