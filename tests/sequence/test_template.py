"""Claims about what stands at each position of a segment."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.errors import InputError
from polyglyph.sequence.dialects import DIALECTS
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.template import Template
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import SpanSpec

SPECS = [
    SpanSpec("text", "text", 5, 1, 1),
    SpanSpec("video", "video", 6, 1, 3),
    SpanSpec("audio", "audio", 4, 3, 1),
]
VOCABULARY = Vocabulary.build(SPECS, n_sizes=4)


def template(span: str, grid: tuple[int, ...], order: str = "frame-major") -> tuple[Template, list]:
    dialect = DIALECTS["polyglyph"].with_order("audio", order)
    grammar = Grammar(dialect, VOCABULARY, {s.span: s for s in SPECS})
    made = grammar.template(span, grid)
    return made, [grammar.slot_names[i] for i in made.slots]


def test_a_video_has_size_rows_frames_and_end() -> None:
    made, slots = template("video", (2, 1, 2))
    names = ["begin_video", "size 2", "size 1", "size 2"]
    frame = ["", "", "row_end", "frame_end"]
    expected = [*names, *frame, *frame, "end_video"]
    is_code = np.isin(np.arange(made.length), made.where)
    written = ["" if c else VOCABULARY.name_of(i) for i, c in zip(made.fixed.tolist(), is_code)]
    assert written == expected
    assert slots[1:5] == ["size", "size", "size", "video"] and slots[-1] == "end_video"
    assert made.cell.tolist() == [0, 1, 2, 3] and not made.codebook.any()


def test_open_audio_may_end_at_frame_boundaries_only() -> None:
    _, slots = template("audio", (2,))
    may_end = "audio.0|end_audio"
    frames = ["audio.0", "audio.1", "audio.2", may_end, "audio.1", "audio.2"]
    assert slots == ["next segment", *frames, may_end]


def test_coarse_first_leaves_the_number_of_frames_open_until_codebook_one() -> None:
    made, slots = template("audio", (2,), "coarse-first")
    either = "audio.0|audio.1"
    body = ["audio.0", either, either, "audio.1", "audio.2", "audio.2"]
    assert slots == ["next segment", *body, "end_audio"]
    assert made.codebook.tolist() == [0, 0, 1, 1, 2, 2]


def test_delayed_leaves_it_open_at_the_start_of_each_step() -> None:
    made, slots = template("audio", (2,), "delayed")
    either = "audio.0|audio.1"
    # steps: (0,0) | (1,0) (0,1) | (1,1) (0,2) | (1,2)
    body = ["audio.0", either, "audio.1", either, "audio.2", "audio.2"]
    assert slots == ["next segment", *body, "end_audio"]
    assert list(zip(made.cell.tolist(), made.codebook.tolist())) == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (0, 2),
        (1, 2),
    ]


def test_an_empty_text_is_begin_and_end() -> None:
    made, slots = template("text", (0,))
    assert [VOCABULARY.name_of(i) for i in made.fixed.tolist()] == ["begin_text", "end_text"]
    assert slots == ["next segment", "text|end_text"] and made.where.size == 0


def test_grids_that_cannot_be_written_are_refused() -> None:
    for span, grid, message in [
        ("video", (1, 5, 1), "video grid of 1x5x1 codes cannot be written: each side is 1 to 4"),
        ("video", (0, 1, 1), "use a larger input"),
        ("audio", (0,), "each side is 1; use a larger"),
    ]:
        with pytest.raises(InputError, match=message):
            template(span, grid)
