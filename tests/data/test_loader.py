from __future__ import annotations

import hashlib

import numpy as np
import pytest

from polyglyph.data.loader import IGNORE, Batch, DataConfig, Loader
from polyglyph.data.prepare import prepare
from polyglyph.data.shards import Shards
from polyglyph.errors import InputError


@pytest.fixture
def corpus(tmp_path, codecs, grammar_of, little):
    grammar = grammar_of(codecs)
    prepare(little(5), codecs, grammar, tmp_path / "s", n=20, items_per_shard=6)
    return Shards(tmp_path / "s", grammar), grammar


def make(corpus, seed: int = 1, **options) -> Loader:
    shards, grammar = corpus
    config = {"batch_size": 4, "row_length": 67, "prompt_dropout": 0.0, **options}
    return Loader(shards, grammar, DataConfig(shards="s", **config), seed)


def documents_of(batch: Batch) -> list[np.ndarray]:
    """The ids of each document, cut out of the rows by doc_id."""
    found = []
    for ids, doc in zip(batch.ids, batch.doc_id, strict=True):
        found += [ids[doc == k] for k in range(doc.max() + 1)]
    return found


def digest(batches: list[Batch]) -> str:
    """Of the rows of all ranks, whatever their order."""
    rows = [row.tobytes() for batch in batches for row in batch.ids]
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def test_an_epoch_shows_every_document_once_and_whole(corpus):
    shards, _ = corpus
    loader = make(corpus, batch_size=1)
    seen: list[int] = []
    for step in range(1000):
        batch = loader.sample(step)
        for document, ids in zip(batch.documents, documents_of(batch), strict=True):
            assert np.array_equal(ids, shards.document(int(document))[0])
        seen += batch.documents.tolist()
        if len(seen) >= shards.n_documents:
            break
    assert sorted(seen) == list(range(shards.n_documents))
    assert seen != sorted(seen)


def test_targets_slots_and_weights_are_those_of_the_next_id(corpus):
    shards, grammar = corpus
    batch = make(corpus).sample(3)
    documents = iter(batch.documents.tolist())
    for b, row in enumerate(batch.doc_id):
        for k in range(row.max() + 1):
            at = np.flatnonzero(row == k)
            ids, segments = shards.document(next(documents))
            walked = grammar.automaton.slots_of_ids(ids)
            due = np.zeros(len(ids))
            for start, length, _, weight in segments.tolist():
                due[start : start + length] = weight
            due[-1] = segments["loss_weight"][-1]
            assert np.array_equal(batch.positions[b, at], np.arange(len(ids)))
            assert np.array_equal(batch.targets[b, at[:-1]], ids[1:])
            assert np.array_equal(batch.slots[b, at[:-1]], walked[1:])
            assert np.array_equal(batch.weights[b, at[:-1]], due[1:])
            assert batch.targets[b, at[-1]] == IGNORE and batch.weights[b, at[-1]] == 0
        padding = row < 0
        assert (batch.targets[b, padding] == IGNORE).all()
        assert (batch.weights[b, padding] == 0).all()


def test_a_batch_is_a_function_of_its_step_alone(corpus):
    forward = make(corpus, prompt_dropout=0.3)
    backward = make(corpus, prompt_dropout=0.3)
    steps = list(range(9))  # more than one epoch
    late = {step: backward.sample(step) for step in reversed(steps)}
    for step in steps:
        batch = forward.sample(step)
        for name, value in vars(batch).items():
            assert np.array_equal(value, getattr(late[step], name)), name
    assert digest([forward.sample(0)]) != digest([make(corpus, seed=2).sample(0)])


def test_the_global_batch_is_the_same_on_any_number_of_ranks(corpus):
    loader = make(corpus)
    for step in range(6):
        whole = digest([loader.sample(step)])
        for world in (2, 4):
            assert digest([loader.sample(step, r, world) for r in range(world)]) == whole
    with pytest.raises(InputError, match="no multiple of the 3 ranks"):
        loader.sample(0, 0, 3)


def test_epochs_differ_in_order_and_in_who_lost_the_prompt(corpus):
    loader = make(corpus, prompt_dropout=0.5)
    first, second = loader.dropped(0), loader.dropped(1)
    assert first.any() and (first != second).any()
    assert np.array_equal(first, make(corpus, prompt_dropout=0.5).dropped(0))
    plans = [loader._plan(epoch)[0].documents for epoch in (0, 1)]
    assert not np.array_equal(*plans) and np.array_equal(*map(np.sort, plans))


def test_a_document_without_its_prompt_is_bos_target_eos(corpus):
    shards, grammar = corpus
    loader = make(corpus, prompt_dropout=1.0)
    batch = loader.sample(0)
    for document, ids in zip(batch.documents, documents_of(batch), strict=True):
        whole, segments = shards.document(int(document))
        start, length = segments["start"][-1], segments["length"][-1]
        due = [whole[0], *whole[start : start + length], whole[-1]]
        assert ids.tolist() == due
        assert len(grammar.parse(ids)) == 1
    for b, row in enumerate(batch.doc_id):
        for k in range(row.max() + 1):
            at = np.flatnonzero(row == k)
            walked = grammar.automaton.slots_of_ids(batch.ids[b, at])
            assert np.array_equal(batch.slots[b, at[:-1]], walked[1:])
            assert (batch.weights[b, at[:-1]] == 1).all()


def test_the_share_without_prompt_is_the_one_asked_for(corpus):
    loader = make(corpus, prompt_dropout=0.25)
    share = np.mean([loader.dropped(epoch).mean() for epoch in range(40)])
    assert abs(share - 0.25) < 0.03


def test_documents_longer_than_a_row_are_refused_or_left_out(corpus):
    shards, _ = corpus
    room = int(np.unique(shards.lengths)[-2])
    n_long = int((shards.lengths > room).sum())
    with pytest.raises(InputError, match=rf"{n_long} of {shards.n_documents} .* = {room}: docu"):
        make(corpus, row_length=room)
    loader = make(corpus, row_length=room, skip_long=True)
    assert loader.n_skipped == n_long > 0
    assert max(len(d) for step in range(9) for d in documents_of(loader.sample(step))) == room


def test_n_ids_counts_no_padding(corpus):
    batch = make(corpus).sample(0)
    assert batch.n_ids == sum(map(len, documents_of(batch))) < batch.ids.size


def test_prompts_carry_the_weight_that_is_asked_for_and_targets_keep_theirs(corpus):
    plain, heavy = make(corpus).sample(0), make(corpus, prompt_weight=0.25).sample(0)
    assert np.array_equal(plain.ids, heavy.ids)
    targets = plain.weights > 0
    assert targets.any() and np.array_equal(plain.weights[targets], heavy.weights[targets])
    prompts = ~targets & (plain.targets >= 0)
    assert prompts.any() and (heavy.weights[prompts] == 0.25).all()
    assert (heavy.weights[plain.targets < 0] == 0).all()
