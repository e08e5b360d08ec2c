from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polyglyph.data.prepare import prepare
from polyglyph.data.shards import SEGMENT, Shards, ids_dtype, write_json
from polyglyph.errors import FormatError, InputError


@pytest.fixture
def folder(tmp_path, codecs, grammar_of, little) -> Path:
    prepare(little(), codecs, grammar_of(codecs), tmp_path / "s", n=7, items_per_shard=3)
    return tmp_path / "s"


def test_the_largest_id_decides_the_dtype():
    assert ids_dtype(1) == ids_dtype(65_536) == np.uint16
    assert ids_dtype(65_537) == np.uint32


def test_documents_count_through_all_shards(folder):
    shards = Shards(folder)
    lengths = [len(shards.document(i)[0]) for i in range(shards.n_documents)]
    assert lengths == shards.lengths.tolist() and sum(lengths) == shards.n_ids
    assert [shards.locate(int(i))[1] for i in shards.first_document[:-1]] == [0, 0, 0]
    assert len(shards.shards) == 3


def test_a_folder_says_all_that_spelling_needs(folder, codecs, grammar_of):
    shards, due = Shards(folder), grammar_of(codecs)
    ids, _ = shards.document(1)
    assert shards.grammar.spell(ids) == due.spell(ids)
    assert shards.grammar.vocabulary == due.vocabulary


def test_row_28_a_truncated_shard_is_refused_and_named(folder):
    path = folder / "shard-00001.ids.npy"
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError, match=rf"shard-00001.*{cut} bytes, expected {len(whole)}"):
            Shards(folder)
    path.unlink()
    with pytest.raises(FormatError, match=r"shard-00001\.ids\.npy is missing"):
        Shards(folder)


@pytest.mark.parametrize("part", ["ids", "docs", "segments"])
def test_row_28_a_flipped_byte_is_refused_and_named(folder, part):
    path = folder / f"shard-00002.{part}.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"shard-00002\.{part}\.npy doesn't match its sha256"):
        Shards(folder)


def test_row_28_counts_that_disagree_are_refused(folder):
    path = folder / "shard-00000.json"
    info = json.loads(path.read_text())
    write_json(path, {**info, "n_documents": info["n_documents"] + 1})
    with pytest.raises(FormatError, match=r"shard-00000: its arrays .* disagree"):
        Shards(folder)


def test_row_29_shards_of_another_codec_are_refused_with_both_marks(
    folder, other_codecs, grammar_of
):
    with pytest.raises(FormatError, match="image codes of codec corners, expected codec retrained"):
        Shards(folder, grammar_of(other_codecs))


def test_row_29_shards_of_another_vocabulary_are_refused(folder, codecs, grammar_of):
    other = grammar_of(codecs, n_sizes=17)
    with pytest.raises(FormatError, match=f"expected {other.vocabulary.sha256[:12]}"):
        Shards(folder, other)


def test_row_26_an_id_outside_the_vocabulary_is_refused_with_its_place(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["grammar"]["vocabulary_size"] = 40
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(FormatError, match=r"shard-00000: id \d+ at position \d+ is outside"):
        Shards(folder)


def test_a_newer_format_is_refused_naming_both(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**manifest, "format": 7})
    with pytest.raises(FormatError, match="format 7; this polyglyph reads up to format 1"):
        Shards(folder)


def test_a_missing_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="no such folder; make it with `prepare`"):
        Shards(tmp_path / "nowhere")


def test_segments_are_plain_and_packed():
    assert SEGMENT.itemsize == 8 + 4 + 1 + 4 and not SEGMENT.hasobject
