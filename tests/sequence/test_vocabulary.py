"""Claims about the joint vocabulary."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polyglyph.errors import FormatError, InputError
from polyglyph.sequence.vocabulary import N_RESERVED, Entry, Vocabulary
from polyglyph.tokenizers.base import SpanSpec

SPECS = [SpanSpec("text", "text", 13, 1, 1), SpanSpec("audio", "audio", 5, 3, 1)]


def test_every_id_is_one_code_one_control_or_unused() -> None:
    vocabulary = Vocabulary.build(SPECS, n_sizes=4)
    assert vocabulary.spans == ("size", "text", "audio")
    assert vocabulary.size == 5 + 2 * N_RESERVED + 4 + 13 + 3 * 5
    controls = set(vocabulary.controls.values())
    for id in range(vocabulary.size):
        found = vocabulary.locate(id)
        assert (found is None) == (id in controls)
        if found is not None:
            assert vocabulary.id(*found) == id
    assert vocabulary.locate(-1) is None and vocabulary.locate(vocabulary.size) is None


def test_codes_become_ids_and_back_for_runs_and_for_arbitrary_maps() -> None:
    ids = (9, 3, 7, 4)
    vocabulary = Vocabulary([Entry("a", 0, 3, 0), Entry("b", 0, 4, ids=ids)], {"bos": 8}, 12)
    codes = np.array([[3, 0], [2, 2]], np.int32)
    assert vocabulary.ids("b", 0, codes).tolist() == [[4, 9], [7, 7]]
    assert np.array_equal(vocabulary.codes(vocabulary.ids("b", 0, codes)), codes)
    assert vocabulary.entry_index(np.array([0, 9, 8, 11])).tolist() == [0, 1, -1, -1]
    assert vocabulary.size == 12


def test_extending_moves_nothing_and_order_decides_the_ids() -> None:
    small = Vocabulary.build(SPECS[:1], n_sizes=4)
    large = small.extend(SPECS[1:])
    assert large == Vocabulary.build(SPECS, n_sizes=4) and large.sha256 != small.sha256
    assert large.to_json()["spans"][: len(small.entries)] == small.to_json()["spans"]
    many = [SpanSpec(f"s{i}", "text", 2, 1, 1) for i in range(N_RESERVED + 3)]
    grown = large.extend(many)
    assert grown.control("end_s18") > grown.control("begin_s18") >= large.size
    assert all(grown.control(n) == i for n, i in large.controls.items() if "reserved" not in n)
    assert len(set(grown.controls.values())) == len(grown.controls)
    with pytest.raises(FormatError, match="already in the vocabulary"):
        large.extend(SPECS[1:])


def test_begin_ids_stand_side_by_side_however_late_a_span_came() -> None:
    vocabulary = Vocabulary.build(SPECS[:1]).extend(SPECS[1:])
    begins = [vocabulary.control(f"begin_{span}") for span in ("text", "audio")]
    assert begins == [vocabulary.control("eos") + 1, vocabulary.control("eos") + 2]


def test_json_gives_the_same_vocabulary_and_hash() -> None:
    named = Vocabulary([Entry("b", 0, 3, ids=(5, 1, 2))], {"bos": 0}, 7)
    for vocabulary in (Vocabulary.build(SPECS), named):
        again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
        assert again == vocabulary and again.sha256 == vocabulary.sha256
        assert hash(again) == hash(vocabulary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, this version reads up to 1"),
        ({"spans": [{"span": "a"}]}, "not a vocabulary"),
        ({"controls": {"bos": 0, "eos": 0}}, "used twice"),
        ({"controls": {"bos": 3}}, "is the id of a code"),
        ({"size": 4}, "has an id 7"),
        ({"spans": [{"span": "a", "codebook": 0, "size": 2, "ids": [1, 1]}]}, "not a vocabulary"),
        ({"spans": [{"span": s, "codebook": 0, "size": 2, "start": 1} for s in "ab"]}, "two codes"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(change: dict, message: str) -> None:
    good = Vocabulary([Entry("a", 0, 5, 3)], {"bos": 0}).to_json()
    with pytest.raises(FormatError, match=message):
        Vocabulary.from_json({**good, **change})


def test_names_are_for_people_and_unknown_ones_name_the_nearest() -> None:
    vocabulary = Vocabulary.build(SPECS, n_sizes=4)
    sizes = vocabulary.entry("size").start
    names = [vocabulary.name_of(i) for i in (1, sizes + 3, vocabulary.id("audio", 2, 4), 10**6)]
    assert names == ["bos", "size 4", "audio.2 4", "outside the vocabulary"]
    assert vocabulary.name_of(vocabulary.id("text", 0, 7)) == "text 7"
    with pytest.raises(InputError, match="did you mean 'begin_audio'"):
        vocabulary.control("begin_adio")
    with pytest.raises(InputError, match=r"unknown span 'imgae\.0'"):
        vocabulary.entry("imgae")
