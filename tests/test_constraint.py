"""Claims about the automaton: budgets, batches, devices. Its tables come from small grammars."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyglyph.constraint import DEAD, END, NO_LIMIT, Automaton, allowed_ranges, step
from polyglyph.errors import ParseError
from polyglyph.sequence.dialects import DIALECTS, emu3, emu3_vocabulary
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.layout import Dialect, Layout
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import SpanSpec

SPECS = [
    SpanSpec("text", "text", 12, 1, 1),
    SpanSpec("image", "image", 3, 1, 2),
    SpanSpec("video", "video", 2, 2, 3),
    SpanSpec("audio", "audio", 2, 3, 1),
    SpanSpec("region", "region", 3, 1, 1),
    SpanSpec("action", "action", 2, 1, 2),
]


def build(dialect: Dialect, specs: list[SpanSpec] = SPECS, n_sizes: int = 3) -> Grammar:
    vocabulary = Vocabulary.build(specs, n_sizes=n_sizes)
    vocabulary = Vocabulary(vocabulary.entries, vocabulary.controls | {"img": vocabulary.size})
    text = vocabulary.entry("text").start
    dialect = dialect.with_digits(range(text + 1, text + 11), text + 11)
    return Grammar(dialect, vocabulary, {s.span: s for s in specs})


def digits_dialect() -> Dialect:
    text = Layout(begin=None, end=None)
    image = Layout(
        size="digits",
        after_size="img",
        row_end="row_end",
        row_end_last=False,
        frame_end="frame_end",
        frame_end_last=False,
    )
    region = Layout(size="ids", order="coarse-first")
    audio = Layout(size="ids", order="delayed", after_size="img")
    action = Layout(fixed=(2, 2), end=None)
    layouts = {"text": text, "image": image, "video": image, "region": region}
    return Dialect("digits", {**layouts, "audio": audio, "action": action})


OWN = DIALECTS["polyglyph"]
GRAMMARS = {
    "polyglyph": build(OWN),
    "coarse-first": build(OWN.with_order("audio", "coarse-first")),
    "delayed": build(OWN.with_order("audio", "delayed")),
    "digits": build(digits_dialect()),
    "emu3": Grammar(
        emu3(range(15, 25), 9),
        emu3_vocabulary(),
        {
            "text": SpanSpec("text", "text", 151643, 1, 1),
            "image": SpanSpec("image", "image", 32768, 1, 2),
        },
    ),
}


def sample(ranges: np.ndarray, rng: np.random.Generator, temperature: float) -> np.ndarray:
    """An id (B,) from ranges (B, 4, 2): near 0 mostly the first, at 1 and above evenly."""
    sizes = ranges[..., 1] - ranges[..., 0]
    total = sizes.sum(1)
    assert (total > 0).all()
    at = (rng.random(len(ranges)) ** (1 / min(temperature, 1)) * total).astype(int)
    before = np.cumsum(sizes, 1) - sizes
    which = (at[:, None] >= before + (sizes == 0) * NO_LIMIT).sum(1) - 1
    rows = np.arange(len(ranges))
    return ranges[rows, which, 0] + at - before[rows, which]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(GRAMMARS)),
    st.sampled_from([0.05, 0.5, 1.0, 2.0, 50.0]),
    st.integers(0, 1 << 30),
)
def test_constrained_random_walks_of_a_batch_end_in_budget_and_always_parse(
    name: str, temperature: float, seed: int
) -> None:
    grammar, rng = GRAMMARS[name], np.random.default_rng(seed)
    automaton = grammar.automaton
    budgets = rng.integers(2, 90, 23)
    states = np.stack([automaton.initial(int(n)) for n in budgets])
    ids: list[np.ndarray] = []
    while not automaton.is_end(states).all():
        ids.append(sample(automaton.allowed_ranges(states), rng, temperature))
        states = automaton.step(states, ids[-1])
        assert len(ids) <= 90
    eos = grammar.vocabulary.control("eos")
    for row, budget in zip(np.stack(ids, 1), budgets):
        length = int(np.argmax(row == eos)) + 1
        assert length <= budget
        written = row[:length]
        assert np.array_equal(grammar.render(grammar.parse(written)).ids, written)
        assert len(grammar.parse(row)) == len(grammar.parse(written))  # padded behind eos


def reachable(
    automaton: Automaton, depth: int, left_out: list[int]
) -> tuple[list[tuple[int, ...]], list[list[tuple[int, int]]], list[int]]:
    """States within `depth` ids of the start: their counters, (id, successor), and distance.

    One id stands for all of its class and number; those `left_out` are not followed.
    """
    representatives = automaton.tables.class_of.astype(np.int64) * 1000 + automaton.tables.value_of
    ids = np.setdiff1d(np.unique(representatives, return_index=True)[1], left_out)

    def key(state: np.ndarray) -> tuple[int, ...]:
        between = state[0] == after_begin
        return (int(state[0]), 0, 0, 0) if between else tuple(state[:4].tolist())

    start = automaton.initial()
    after_begin = automaton.step(start[None], np.array([1]))[0, 0]
    index = {key(start): 0}
    keys, far, successors = [key(start)], [0], []
    for current in keys:
        here = len(successors)
        successors.append([])
        if current[0] == END or far[here] == depth:
            continue
        states = np.array([[*current, 0, NO_LIMIT]], np.int32).repeat(len(ids), 0)
        for id, after in zip(ids.tolist(), automaton.step(states, ids)):
            if after[0] == DEAD:
                continue
            if key(after) not in index:
                index[key(after)] = len(keys)
                keys.append(key(after))
                far.append(far[here] + 1)
            successors[here].append((id, index[key(after)]))
    return keys, successors, far


@pytest.mark.parametrize("order", ["frame-major", "coarse-first", "delayed", "digits"])
def test_the_budget_closes_exactly_the_ids_after_which_no_document_fits(order: str) -> None:
    specs = [SPECS[0], SPECS[3], SPECS[1]]
    if order == "digits":
        grammar = build(dataclasses.replace(digits_dialect(), max_digits=2), specs)
    else:
        grammar = build(OWN.with_order("audio", order), [*specs, *SPECS[4:]])
    automaton, depth = grammar.automaton, 19
    # Sizes of digits 0 to 3 are enough: up to 33 times 33 codes, most of which never fit.
    big_digits = list(grammar.dialect.digit_ids[4:]) if order == "digits" else []
    keys, successors, far = reachable(automaton, depth, big_digits)
    needed = np.full(len(keys), 10**6)
    needed[[k[0] == END for k in keys]] = 0
    for _ in range(depth):  # the shortest way to the end, by relaxation
        for i, ways in enumerate(successors):
            needed[i] = min([needed[i], *(needed[j] + 1 for _, j in ways)])
    checked = 0
    for i, ways in enumerate(successors):
        budgets = [b for b in range(1, depth - far[i] + 1) if needed[i] <= b]
        if keys[i][0] == END or not budgets:
            continue
        states = np.array([[*keys[i], 0, b] for b in budgets], np.int32)
        mask = automaton.allowed_mask(states)
        slot = automaton.slots[automaton.slot_of(states)[0]]
        for row, budget in zip(mask, budgets):
            for id, j in ways:
                assert row[id] == (needed[j] <= budget - 1), (keys[i], budget, id)
                assert ((slot[:, 0] <= id) & (id < slot[:, 1])).any()
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize("name", GRAMMARS)
def test_torch_tables_step_and_narrow_as_numpy_does(name: str) -> None:
    automaton, rng = GRAMMARS[name].automaton, np.random.default_rng(1)
    states = np.stack([automaton.initial(int(n)) for n in rng.integers(2, 60, 9)])
    tables = automaton.tables.to("cpu")
    for _ in range(60):
        tensor = torch.from_numpy(states)
        ranges = automaton.allowed_ranges(states)
        assert np.array_equal(allowed_ranges(tables, torch, tensor).numpy(), ranges)
        assert np.array_equal(automaton.allowed_ranges(tensor).numpy(), ranges)
        mask = automaton.allowed_mask(states[:2])
        assert np.array_equal(automaton.allowed_mask(tensor[:2]).numpy(), mask)
        assert np.array_equal(automaton.forced(tensor).numpy(), automaton.forced(states))
        assert np.array_equal(automaton.slot_of(tensor).numpy(), automaton.slot_of(states))
        ids = sample(ranges, rng, 1.0).astype(np.int64)
        ids[rng.random(9) < 0.01] = rng.integers(-1, automaton.vocabulary_size + 1)
        after = automaton.step(states, ids)
        stepped = step(tables, torch, tensor, torch.from_numpy(ids))
        assert stepped.dtype == torch.int32 and np.array_equal(stepped.numpy(), after)
        assert np.array_equal(automaton.step(tensor, torch.from_numpy(ids)).numpy(), after)
        alive = ~automaton.is_dead(after)
        states = np.where(alive[:, None], after, automaton.initial(30))


@pytest.mark.gpu
def test_a_cuda_device_steps_as_numpy_does() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    automaton, rng = GRAMMARS["delayed"].automaton, np.random.default_rng(4)
    states = np.stack([automaton.initial(int(n)) for n in rng.integers(2, 60, 9)])
    on_device = torch.from_numpy(states).cuda()
    for _ in range(60):
        ranges = automaton.allowed_ranges(states)
        assert np.array_equal(automaton.allowed_ranges(on_device).cpu().numpy(), ranges)
        mask = automaton.allowed_mask(on_device)
        assert np.array_equal(mask.cpu().numpy(), automaton.allowed_mask(states))
        ids = sample(ranges, rng, 1.0).astype(np.int64)
        states = automaton.step(states, ids)
        on_device = automaton.step(on_device, torch.from_numpy(ids).cuda())
        assert on_device.is_cuda and np.array_equal(on_device.cpu().numpy(), states)


def test_a_batch_steps_as_its_rows_one_by_one_and_leaves_its_input_alone() -> None:
    automaton, rng = GRAMMARS["delayed"].automaton, np.random.default_rng(2)
    states = np.stack([automaton.initial(n) for n in (5, 20, 50)])
    for _ in range(40):
        before = states.copy()
        ids = sample(automaton.allowed_ranges(states), rng, 1.0)
        after = automaton.step(states, ids)
        single = [automaton.step(states[i : i + 1], ids[i : i + 1])[0] for i in range(3)]
        assert np.array_equal(after, np.stack(single)) and np.array_equal(states, before)
        states = after


@pytest.mark.parametrize("name", GRAMMARS)
def test_slots_are_at_most_four_sorted_disjoint_ranges_inside_the_vocabulary(name: str) -> None:
    automaton = GRAMMARS[name].automaton
    for table in (automaton.slots, automaton.tables.levels):
        assert table.shape[1:] == (4, 2)
        for ranges in table:
            used = ranges[ranges[:, 1] > ranges[:, 0]]
            assert np.array_equal(ranges[: len(used)], used) and not ranges[len(used) :].any()
            assert (np.diff(used.reshape(-1)) > 0).all()
            assert used.size == 0 or 0 <= used.min() <= used.max() <= automaton.vocabulary_size
    assert len(automaton.slot_names) == len(automaton.slots) == len(automaton.slot_size)


def test_forced_names_the_only_id_and_the_budget_can_force_one() -> None:
    grammar = GRAMMARS["polyglyph"]
    automaton, vocabulary = grammar.automaton, grammar.vocabulary
    text, end = vocabulary.entry("text").start, vocabulary.control("end_text")
    states = np.stack([automaton.initial(5), automaton.initial(4)])
    assert automaton.forced(states).tolist() == [vocabulary.control("bos")] * 2
    states = automaton.step(states, automaton.forced(states))
    states = automaton.step(states, np.array([grammar.begin("text")] * 2))
    assert automaton.forced(states).tolist() == [-1, end]
    states = automaton.step(states, np.array([text, end]))
    assert automaton.forced(states).tolist() == [end, vocabulary.control("eos")]


def test_a_wrong_id_is_dead_for_good_and_the_end_stays_the_end() -> None:
    grammar = GRAMMARS["polyglyph"]
    automaton, eos = grammar.automaton, grammar.vocabulary.control("eos")
    states = np.stack([automaton.initial()] * 3)
    states = automaton.step(states, np.array([1, 1, automaton.vocabulary_size]))
    states = automaton.step(states, np.array([eos, -5, 1]))
    assert automaton.is_end(states).tolist() == [True, False, False]
    assert automaton.is_dead(states).tolist() == [False, True, True]
    again = automaton.step(states, np.array([7, eos, eos]))
    assert np.array_equal(again[:, 0], states[:, 0])
    assert not automaton.allowed_mask(again[1:]).any()
    assert automaton.forced(again).tolist() == [grammar.vocabulary.control("pad"), -1, -1]


def test_walking_refuses_ids_behind_the_end_that_are_not_pad() -> None:
    grammar = GRAMMARS["polyglyph"]
    eos, pad = grammar.vocabulary.control("eos"), grammar.vocabulary.control("pad")
    names = [grammar.slot_names[i] for i in grammar.automaton.slots_of_ids(np.array([1, eos, pad]))]
    assert names == ["start", "next segment", "end"]
    with pytest.raises(ParseError, match="id 1 at position 2") as caught:
        grammar.automaton.slots_of_ids(np.array([1, eos, 1]))
    assert (caught.value.position, caught.value.slot) == (2, "end")
