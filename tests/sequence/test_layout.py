"""Claims about layouts as data and the order of codes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polyglyph.errors import ConfigError
from polyglyph.sequence.dialects import DIALECTS
from polyglyph.sequence.layout import FRAME_END, ROW_END, Dialect, Layout, axes, linearise


def test_frame_major_writes_all_codebooks_of_a_cell_before_the_next() -> None:
    assert linearise(Layout(), 3, (2,)).tolist() == [0, 1, 2, 3, 4, 5]
    assert linearise(Layout(), 3, (0,)).tolist() == []


def test_coarse_first_writes_codebook_after_codebook() -> None:
    order = linearise(Layout(order="coarse-first"), 3, (2,))
    assert [(i // 3, i % 3) for i in order] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_delayed_sorts_by_frame_plus_codebook_and_fills_nothing() -> None:
    order = linearise(Layout(order="delayed"), 3, (4,))
    pairs = [(i // 3, i % 3) for i in order]
    cells = [(frame, q) for frame in range(4) for q in range(3)]
    assert pairs == sorted(cells, key=lambda p: (p[0] + p[1], p[1]))
    assert len(set(pairs)) == 12


@pytest.mark.parametrize("row_last", [True, False])
@pytest.mark.parametrize("frame_last", [True, False])
def test_separators_stand_behind_rows_and_frames_as_told(row_last: bool, frame_last: bool) -> None:
    layout = Layout(
        size="ids",
        row_end="r",
        row_end_last=row_last,
        frame_end="f",
        frame_end_last=frame_last,
    )
    expected: list[int] = []
    for frame in range(2):
        for row in range(3):
            expected += range((frame * 3 + row) * 4, (frame * 3 + row) * 4 + 4)  # 2 cells, 2 codes
            expected += [ROW_END] * (row < 2 or row_last)
        expected += [FRAME_END] * (frame < 1 or frame_last)
    assert linearise(layout, 2, (2, 3, 2)).tolist() == expected


def test_axes_count_from_the_columns() -> None:
    assert [axes(g) for g in ((5,), (4, 5), (3, 4, 5))] == [(1, 1, 5), (1, 4, 5), (3, 4, 5)]


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_survive_json(name: str) -> None:
    dialect = DIALECTS[name].with_digits(range(10), 12)
    assert Dialect.from_json(json.loads(json.dumps(dialect.to_json()))) == dialect


def test_unknown_words_and_contradictions_are_refused() -> None:
    for fields, message in [
        ({"order": "frame_major"}, "did you mean 'frame-major'"),
        ({"size": "id"}, "did you mean 'ids'"),
        ({"size": "digits"}, "set after_size"),
        ({"begin": None}, "neither end nor size"),
        ({"end": None}, "size written or fixed"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Layout(**fields)
    with pytest.raises(ConfigError, match="unknown modality of dialect emu3 'audio'"):
        DIALECTS["emu3"].layout("audio")
    for data in ({}, {"name": "x", "layouts": {"text": {"beginn": "b"}}}):
        with pytest.raises(ConfigError, match="not a dialect"):
            Dialect.from_json(data)
    changed = DIALECTS["polyglyph"].with_order("audio", "delayed")
    assert changed.layout("audio").order == "delayed"
    assert np.array_equal(linearise(changed.layout("audio"), 1, (3,)), linearise(Layout(), 1, (3,)))
