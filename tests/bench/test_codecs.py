"""The table of codecs: parts in their order, each row told as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from polyglyph.bench import codecs
from polyglyph.bench.runner import BenchResult, run_benches


def row(name: str, value: float | None) -> BenchResult:
    return BenchResult(name, value, "×", 1.0, at_most=False, summary=f"of {name}")


def part(*names: str) -> codecs.Part:
    def rows(quick: bool, say: Callable[[str], None]) -> Iterator[BenchResult]:
        assert quick and torch.get_num_threads() == 1
        for name in names:
            yield row(name, 2.0)

    return rows


def test_rows_come_in_order_and_are_told_as_they_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codecs, "PARTS", (part("a", "b"), part("c")))
    told: list[tuple[int, int, str]] = []
    torch.set_num_threads(2)
    try:
        found = run_benches(
            ["codecs"], quick=True, progress=lambda done, of, what: told.append((done, of, what))
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [made.bench for made in found] == ["codecs: a", "codecs: b", "codecs: c"]
    assert told == [
        (0, 2, "codecs: a: 2 × (of a)"),
        (0, 2, "codecs: b: 2 × (of b)"),
        (1, 2, "codecs: c: 2 × (of c)"),
        (2, 2, "codecs: done"),
    ]


def test_threads_come_back_when_a_part_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(quick: bool, say: Callable[[str], None]) -> Iterator[BenchResult]:
        raise OSError("no such disk")
        yield row("never", None)

    monkeypatch.setattr(codecs, "PARTS", (broken,))
    before = torch.get_num_threads()
    with pytest.raises(OSError, match="disk"):
        run_benches(["codecs"], quick=True)
    assert torch.get_num_threads() == before


def test_a_row_without_a_figure_is_told_with_its_reason() -> None:
    assert codecs.told(row("z", None)) == "z: – (of z)"
