from __future__ import annotations

import json

import numpy as np
import pytest

from polyglyph.data.prepare import describe, prepare
from polyglyph.data.shards import Shards
from polyglyph.data.sources import open_source
from polyglyph.errors import FormatError, InputError
from polyglyph.media import Image, save
from polyglyph.sequence.document import Document, Segment


@pytest.fixture
def corpus(tmp_path):
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    save(Image(pixels), tmp_path / "p.png")
    documents = [
        Document([Segment("text", "чаша"), Segment("text", "b", "assistant", 0.5)]),
        Document([Segment("text", "a", loss_weight=0.0), Segment("image", tmp_path / "p.png")]),
    ]
    lines = [json.dumps(d.to_json({1: "p.png"} if i else None)) for i, d in enumerate(documents)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join([lines[0], "{broken", lines[1]]), "utf-8")
    return path


def test_each_line_is_its_document(corpus):
    source = open_source(corpus)
    assert source.length == 3
    assert [s.text for s in source.get(0)[0]] == ["чаша", "b"]
    assert source.get(0)[0][1].loss_weight == 0.5
    assert source.get(2)[0][1].image.size == (16, 16)
    assert source.captions(2) == ["a"]


def test_a_broken_line_is_skipped_and_named(corpus, tmp_path, codecs, grammar_of):
    grammar = grammar_of(codecs)
    done = prepare(open_source(corpus), codecs, grammar, tmp_path / "s")
    assert [e["source"] for e in done.errors] == ["corpus.jsonl:2"]
    assert done.errors[0]["type"] == "FormatError"
    parsed = [grammar.parse(Shards(tmp_path / "s").document(i)[0]) for i in range(2)]
    assert [[s.modality for s in d] for d in parsed] == [["text", "text"], ["text", "image"]]


def test_a_changed_file_is_another_source(corpus):
    before = describe(open_source(corpus))
    corpus.write_text(corpus.read_text("utf-8") + "\n{}", "utf-8")
    assert describe(open_source(corpus)) != before
    with pytest.raises(FormatError, match="a document is"):
        open_source(corpus).get(3)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(InputError, match="is empty"):
        open_source(tmp_path / "x.jsonl")
