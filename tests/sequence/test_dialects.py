"""Claims about the dialects: ours has a layout per modality, Emu3's is the published one."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from polyglyph.errors import ConfigError, ParseError
from polyglyph.sequence.dialects import DIALECTS, emu3, emu3_vocabulary
from polyglyph.sequence.document import Document, Segment
from polyglyph.sequence.grammar import Grammar
from polyglyph.tokenizers import MODALITIES
from polyglyph.tokenizers.base import CodeGrid, SpanSpec


@cache
def real_emu3() -> Grammar:
    specs = [SpanSpec("text", "text", 151643, 1, 1), SpanSpec("image", "image", 32768, 1, 2)]
    return Grammar(emu3(range(15, 25), 9), emu3_vocabulary(), {s.span: s for s in specs})


def document_of(grammar: Grammar, grid: tuple[int, ...]) -> Document:
    codes = np.random.default_rng(0).integers(0, 32768, (1, *grid)).astype(np.int32)
    return Document([Segment("image", CodeGrid("image", codes))])


def test_our_own_dialect_writes_every_modality() -> None:
    assert set(DIALECTS["polyglyph"].layouts) == set(MODALITIES)
    assert [name for name, d in DIALECTS.items() if d.name != name] == []


def test_emu3_writes_the_published_ids() -> None:
    grammar = real_emu3()
    codes = np.array([[[0, 1, 2], [16381, 4, 32767]]], np.int32)
    text = CodeGrid("text", np.array([[7, 20]], np.int32))
    document = Document([Segment("text", text), Segment("image", CodeGrid("image", codes))])
    eol, eof, v = 151846, 151847, 151854
    image = [151852, 17, 9, 18, 151851, v, v + 1, v + 2, eol, v + 16381, v + 4, v + 32767, eol]
    expected = [151849, 7, 20, *image, eof, 151853, 151850]
    assert grammar.render(document).ids.tolist() == expected
    wide = grammar.begin_ids("image", (90, 100)).tolist()
    assert wide == [151852, 24, 15, 9, 16, 15, 15, 151851]
    with pytest.raises(ParseError) as caught:  # a zero in front of a size
        grammar.parse(np.array([151849, 151852, 15]))
    assert caught.value.slot == "first digit" and caught.value.allowed == "16..24"


def test_emu3_and_emu3_5_layouts_refuse_each_others_stream() -> None:
    emu = real_emu3()
    layout = dataclasses.replace(emu.dialect.layout("image"), row_end_last=False, frame_end=None)
    layouts = {**emu.dialect.layouts, "image": layout}
    other = Grammar(dataclasses.replace(emu.dialect, layouts=layouts), emu.vocabulary, emu.specs)
    document = document_of(emu, (2, 3))
    a, b = emu.render(document).ids, other.render(document).ids
    assert len(a) == len(b) + 2
    assert emu.parse(a).same_codes(other.parse(b))
    for grammar, ids in ((emu, b), (other, a)):
        with pytest.raises(ParseError):
            grammar.parse(ids)


@pytest.mark.parametrize("n", [9, 10, 99, 100, 999])
def test_emu3_sizes_of_every_number_of_digits_come_back(n: int) -> None:
    grammar = real_emu3()
    for grid in ((1, n), (n, 2)):
        document = document_of(grammar, grid)
        rendered = grammar.render(document)
        assert grammar.parse(rendered.ids).same_codes(document)
        header = rendered.ids[1 : 1 + len(grammar.begin_ids("image", grid))]
        digits = "".join({9: "*"}.get(i, str(i - 15)) for i in header[1:-1].tolist())
        assert digits == f"{grid[0]}*{grid[1]}"


def test_a_text_tokenizer_that_joins_digits_cannot_write_digit_sizes() -> None:
    specs = real_emu3().specs
    vocabulary = emu3_vocabulary()
    for digits, star in [((), -1), ([15] * 10, 9), (range(15, 24), 9), (range(15, 25), 15)]:
        with pytest.raises(ConfigError, match="ten different ids"):
            Grammar(emu3(digits, star), vocabulary, specs)
    with pytest.raises(ConfigError, match="must all be text ids"):
        Grammar(emu3(range(15, 25), 151852), vocabulary, specs)
    with pytest.raises(ConfigError, match="ranges of ids, at most 4"):
        Grammar(emu3(range(15, 35, 2), 9), vocabulary, specs)
