"""Claims about compiling layouts into the automaton's table."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.constraint import NO_LIMIT
from polyglyph.errors import ConfigError
from polyglyph.sequence.compiler import Compiler, header_length
from polyglyph.sequence.dialects import DIALECTS
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.layout import Dialect, Layout
from polyglyph.sequence.vocabulary import Entry, Vocabulary
from polyglyph.tokenizers.base import SpanSpec

SPECS = [SpanSpec("text", "text", 5, 1, 1), SpanSpec("image", "image", 6, 1, 2)]


def test_a_header_is_as_long_as_its_numbers() -> None:
    assert header_length(Layout(), (7,)) == 0
    assert header_length(Layout(size="ids"), (7, 12, 3)) == 3
    assert header_length(Layout(size="ids", after_size="img"), (7,)) == 2
    assert header_length(Layout(size="digits", after_size="img"), (7, 120)) == 6


def test_each_part_of_a_layout_is_a_node_with_its_own_slot() -> None:
    vocabulary = Vocabulary.build(SPECS, n_sizes=3)
    compiled = Compiler(DIALECTS["polyglyph"], vocabulary, {s.span: s for s in SPECS}).compile()
    automaton, image = compiled.automaton, compiled.spans["image"]
    slot = automaton.tables.node_slot
    sizes = {
        automaton.slot_names[slot[n]]: int(automaton.slot_size[slot[n]])
        for n in (
            compiled.start,
            compiled.free,
            image.sizes[0][0],
            image.cells[0],
            image.row_end,
            image.end,
        )
    }
    expected = {"start": 1, "next segment": 3, "size": 3, "image": 6, "row_end": 1, "end_image": 1}
    assert sizes == expected
    text = compiled.spans["text"]
    assert text.cells == [text.choice] and text.end == -1
    assert automaton.slot_size[slot[text.choice]] == 6


def test_sizes_close_when_their_smallest_body_no_longer_fits() -> None:
    vocabulary = Vocabulary.build(SPECS, n_sizes=3)
    compiled = Compiler(DIALECTS["polyglyph"], vocabulary, {s.span: s for s in SPECS}).compile()
    node = compiled.spans["image"].sizes[0][0]
    first = vocabulary.entry("size").start
    # Behind this id: the width, n rows of one code and a row end, end_image, eos.
    budgets = [5, 6, 7, 8, 9, 10, NO_LIMIT]
    states = np.array([[node, 0, 0, 1 << 15, 0, b] for b in budgets], np.int32)
    ranges = compiled.automaton.allowed_ranges(states)
    assert (ranges[:, 0, 1] - ranges[:, 0, 0]).tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert (ranges[1:, 0, 0] == first).all() and not ranges[:, 1:].any()


def test_layouts_that_cannot_be_parsed_are_refused_when_built() -> None:
    vocabulary = Vocabulary([Entry("x", 0, 4, 2), Entry("x", 1, 4, 6)], {"bos": 0, "eos": 1})
    for layout, rank, message in [
        (Layout(begin=None, end=None), 1, "one codebook"),
        (Layout(), 2, "needs its size"),
        (Layout(size="ids", order="delayed"), 2, "rank 1"),
        (Layout(fixed=(2,)), 2, "fixed grid"),
    ]:
        spec = SpanSpec("x", "x", 4, 2, rank)
        vocabulary_x = Vocabulary(
            [*vocabulary.entries, Entry("size", 0, 3, 10)],
            {**vocabulary.controls, "begin_x": 13, "end_x": 14, "pad": 15},
        )
        with pytest.raises(ConfigError, match=message):
            Grammar(Dialect("d", {"x": layout}), vocabulary_x, {"x": spec})
    spec = SpanSpec("x", "x", 3, 2, 1)
    with pytest.raises(ConfigError, match="4 ids for codebook 0, the codec has 3"):
        Grammar(Dialect("d", {"x": Layout()}), vocabulary_x, {"x": spec})
