from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from polyglyph.data import prepare as module
from polyglyph.data.prepare import content_key, encode_segments, prepare
from polyglyph.data.shards import Shards
from polyglyph.errors import InputError, MachineError
from polyglyph.media import Image
from polyglyph.sequence.document import Document, Segment


def every_byte(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_shards_hold_what_rendering_each_document_gives(tmp_path, codecs, grammar_of, little):
    grammar = grammar_of(codecs)
    done = prepare(little(3), codecs, grammar, tmp_path / "s", n=11, items_per_shard=4)
    shards = Shards(tmp_path / "s", grammar)
    documents = [d for i in range(11) for d in little(3).get(i)]
    assert (done.n_documents, done.n_shards, done.n_made) == (len(documents), 3, 3)
    assert shards.n_documents == len(documents)
    for i, document in enumerate(documents):
        for segment in document:
            segment.codes = codecs[segment.codec].encode(segment.content)
        due = grammar.render(document)
        ids, segments = shards.document(i)
        assert np.array_equal(ids, due.ids)
        found = [(s, n, shards.modalities[m], w) for s, n, m, w in segments.tolist()]
        assert found == [tuple(stretch) for stretch in due.segments]
        assert grammar.parse(ids).same_codes(document)


def test_a_run_that_was_killed_continues_to_the_same_bytes(
    tmp_path, codecs, grammar_of, little, monkeypatch
):
    grammar = grammar_of(codecs)
    prepare(little(3), codecs, grammar, tmp_path / "whole", n=11, items_per_shard=4)
    written = []

    def killed(path, array, real=module.write_array):
        written.append(path)
        if len(written) == 5:  # in the middle of the second shard
            raise KeyboardInterrupt
        return real(path, array)

    monkeypatch.setattr(module, "write_array", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(little(3), codecs, grammar, tmp_path / "cut", n=11, items_per_shard=4)
    with pytest.raises(InputError, match="not finished; run the same `prepare` again"):
        Shards(tmp_path / "cut")
    monkeypatch.undo()
    source = little(3)
    done = prepare(source, codecs, grammar, tmp_path / "cut", n=11, items_per_shard=4)
    assert (done.n_made, done.n_shards, source.n_read) == (2, 3, 7)
    assert every_byte(tmp_path / "cut") == every_byte(tmp_path / "whole")


def test_more_items_add_shards_and_move_none(tmp_path, codecs, grammar_of, little):
    grammar = grammar_of(codecs)
    prepare(little(), codecs, grammar, tmp_path / "s", n=6, items_per_shard=4)
    before = every_byte(tmp_path / "s")
    done = prepare(little(), codecs, grammar, tmp_path / "s", n=9, items_per_shard=4)
    after = every_byte(tmp_path / "s")
    assert done.n_made == 2  # the second was not full, the third is new
    assert after["shard-00000.ids.npy"] == before["shard-00000.ids.npy"]
    prepare(little(), codecs, grammar, tmp_path / "t", n=9, items_per_shard=4)
    assert after == every_byte(tmp_path / "t")


def test_other_settings_are_refused_and_named(tmp_path, codecs, other_codecs, grammar_of, little):
    grammar = grammar_of(codecs)
    prepare(little(), codecs, grammar, tmp_path / "s", n=4)
    before = every_byte(tmp_path / "s")
    with pytest.raises(InputError, match="another source: seed was 0 and is 1"):
        prepare(little(1), codecs, grammar, tmp_path / "s", n=4)
    with pytest.raises(InputError, match="another grammar: fingerprints was"):
        prepare(little(), other_codecs, grammar_of(other_codecs), tmp_path / "s", n=4)
    with pytest.raises(InputError, match="another items_per_shard"):
        prepare(little(), codecs, grammar, tmp_path / "s", n=4, items_per_shard=2)
    assert every_byte(tmp_path / "s") == before


def test_a_folder_of_something_else_is_refused(tmp_path, codecs, grammar_of, little):
    (tmp_path / "letters.txt").write_text("keep me")
    with pytest.raises(InputError, match="exists and holds no shards"):
        prepare(little(), codecs, grammar_of(codecs), tmp_path, n=4)
    assert [p.name for p in tmp_path.iterdir()] == ["letters.txt"]


def test_bad_items_are_skipped_and_recorded(tmp_path, codecs, grammar_of, little):
    grammar = grammar_of(codecs, n_sizes=3)  # pictures of four codes a side don't fit the header
    source = little(3, length=9, bad=(2, 7))
    done = prepare(source, codecs, grammar, tmp_path / "s", items_per_shard=4)
    lines = [json.loads(x) for x in (tmp_path / "s" / "errors.jsonl").read_text().splitlines()]
    assert lines == done.errors
    damaged = [line for line in lines if line["type"] == "MediaError"]
    assert [line["source"] for line in damaged] == ["little 2", "little 7"]
    assert damaged[0]["message"] == "item 2 is damaged"
    assert len(lines) > len(damaged)
    fits = [
        d
        for i in range(9)
        if i not in (2, 7)
        for d in little(3).get(i)
        if all(max(s.image.size) <= 48 for s in d.of("image"))
    ]
    assert done.n_documents == len(fits) == Shards(tmp_path / "s", grammar).n_documents


def test_a_source_of_nothing_but_bad_items_is_an_error(tmp_path, codecs, grammar_of, little):
    with pytest.raises(InputError, match=r"not one document .* little: item 0 is damaged"):
        prepare(little(length=2, bad=(0, 1)), codecs, grammar_of(codecs), tmp_path / "s")


def test_an_endless_source_wants_a_number(tmp_path, codecs, grammar_of, little):
    with pytest.raises(InputError, match="endless; say how many"):
        prepare(little(), codecs, grammar_of(codecs), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_equal_media_are_encoded_once(codecs):
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    one, same = Image(pixels), Image(pixels.copy())
    other = Image(pixels[::-1].copy())
    documents = [
        Document([Segment("image", one), Segment("text", "a")]),
        Document([Segment("text", "a"), Segment("image", one)]),
        Document([Segment("image", same), Segment("image", other)]),
    ]
    encode_segments(documents, codecs)
    assert (codecs["image"].n_encoded, codecs["text"].n_encoded) == (2, 1)
    for document in documents:
        for segment in document:
            due = codecs[segment.modality].encode(segment.content)
            assert segment.codes.same_codes(due)
    assert content_key(one) == content_key(same) != content_key(other)


def test_a_share_of_the_prompts_pass_their_codec_once_and_no_target_does(
    tmp_path, codecs, grammar_of, little
):
    grammar = grammar_of(codecs)
    plain = prepare(little(3), codecs, grammar, tmp_path / "a", n=40)
    assert (
        plain.n_documents
        == prepare(little(3), codecs, grammar, tmp_path / "b", n=40, reread=0.5).n_documents
    )
    once, twice = (Shards(tmp_path / name, grammar) for name in "ab")
    documents = [d for i in range(40) for d in little(3).get(i)]
    n_reread = 0
    for i, document in enumerate(documents):
        given, target = (
            [grammar.parse(s.document(i)[0])[k].codes for s in (once, twice)] for k in (0, 1)
        )
        assert target[0].same_codes(target[1])
        codec = codecs[document[0].codec]
        again = codec.encode(codec.decode(given[0]))
        assert given[1].same_codes(given[0]) or given[1].same_codes(again)
        n_reread += not given[1].same_codes(given[0])
    assert 5 <= n_reread <= 35  # half of 40 prompts that are pictures
    with pytest.raises(InputError, match="reread"):
        prepare(little(3), codecs, grammar, tmp_path / "b", n=40)


def test_progress_ends_at_the_number_of_items(tmp_path, codecs, grammar_of, little):
    seen: list[tuple[int, int]] = []
    prepare(
        little(), codecs, grammar_of(codecs), tmp_path / "s", n=9, items_per_shard=4,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (9, 9) and seen == sorted(seen)


def test_row_30_the_dtype_follows_the_size_of_the_vocabulary(tmp_path, codecs, grammar_of, little):
    few, many = grammar_of(codecs), grammar_of(codecs, wide=True)
    assert few.vocabulary.size <= 1 << 16 < many.vocabulary.size
    for grammar, dtype in ((few, "uint16"), (many, "uint32")):
        folder = tmp_path / dtype
        prepare(little(), codecs, grammar, folder, n=2)
        shards = Shards(folder, grammar)
        assert shards.manifest["dtype"] == dtype == shards.shards[0].ids.dtype.name
    top = max(int(Shards(tmp_path / "uint32").document(i)[0].max()) for i in range(4))
    assert top > 1 << 16


def test_row_34_a_full_disk_keeps_whole_shards_and_says_what_is_needed(
    tmp_path, codecs, grammar_of, little, monkeypatch
):
    grammar = grammar_of(codecs)
    calls = []

    def full(file, array, **options):
        calls.append(file)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return np.lib.format.write_array(file, array)

    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(MachineError, match=r"shard-00001 needs \d+ bytes: .*no space left"):
        prepare(little(), codecs, grammar, tmp_path / "s", n=8, items_per_shard=4)
    assert not [p for p in (tmp_path / "s").iterdir() if p.name.startswith(".tmp")]
    monkeypatch.undo()
    assert prepare(little(), codecs, grammar, tmp_path / "s", n=8, items_per_shard=4).n_made == 1
