from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyglyph.errors import InputError, PolyglyphError
from polyglyph.kernels.sampling_head import sampling_head
from polyglyph.model import generate as module
from polyglyph.model.generate import generate
from polyglyph.model.sampling import Sampling
from polyglyph.model.transformer import ModelConfig, Transformer

V = 31


class Cycle:
    """Slot 0: any of 10..19 or 3. Slot 1: 20..29. Slot 2: id 5 only. 3 ends the row."""

    TABLE = np.array(
        [[[3, 4], [10, 20]], [[20, 30], [0, 0]], [[5, 6], [0, 0]], [[0, 0], [0, 0]]], np.int32
    )

    def slot_of(self, states: np.ndarray) -> np.ndarray:
        return states[:, 0]

    def allowed_ranges(self, states: np.ndarray) -> np.ndarray:
        return np.pad(self.TABLE, ((0, 0), (0, 2), (0, 0)))[states[:, 0]]

    def step(self, states: np.ndarray, ids: np.ndarray) -> np.ndarray:
        states = states.copy()
        states[:, 0] = np.where(ids == 3, 3, (states[:, 0] + 1) % 3)
        return states

    def is_end(self, states: np.ndarray) -> np.ndarray:
        return states[:, 0] == 3


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        vocabulary_size=V, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=12, context=40
    )
    model = Transformer(config)
    for parameter in model.parameters():
        parameter.data.mul_(8.0 if parameter.ndim == 2 else 1.0)
    return model


PROMPTS = [[1], [7, 8, 9, 10, 11], [2, 2], [30, 4, 3]]
STATES = np.array([[slot, 0, 0, 0, 0, 99] for slot in (0, 1, 2, 0)], np.int32)


def run(model: Transformer, rows: list[int], **options: Any) -> list[list[int]]:
    given: dict[str, Any] = {"max_new": 12, "sampling": Sampling(), **options}
    if "unconditional" in given:
        given["unconditional"] = [given["unconditional"][row] for row in rows]
    return generate(
        model, [PROMPTS[row] for row in rows], Cycle(), STATES[rows],
        seeds=[100 + row for row in rows], **given,
    )  # fmt: skip


def follows_the_grammar(row: int, ids: list[int]) -> bool:
    automaton, states = Cycle(), STATES[[row]]
    for id in ids:
        starts, stops = automaton.allowed_ranges(states)[0].T
        if not ((starts <= id) & (id < stops)).any():
            return False
        states = automaton.step(states, np.array([id]))
    return True


def naive(model: Transformer, row: int, n: int, guidance: float, other: list[int]) -> list[int]:
    """Greedy, uncached, over the whole head: the definition."""
    automaton, states, new = Cycle(), STATES[[row]], []
    while len(new) < n and not automaton.is_end(states)[0]:
        scores = []
        for prompt in (PROMPTS[row], other):
            logits = model(torch.tensor([prompt + new]))[0, -1] @ model.head_weight.T
            mask = torch.full((V,), -torch.inf)
            for start, stop in automaton.allowed_ranges(states)[0].tolist():
                mask[start:stop] = 0.0
            scores.append((logits + mask).log_softmax(-1))
        mixed = scores[1] + guidance * (scores[0] - scores[1]) if guidance != 1 else scores[0]
        new.append(int(mixed.nan_to_num(-torch.inf).argmax()))
        states = automaton.step(states, np.array(new[-1:]))
    return new


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_equals_the_uncached_definition(model: Transformer, guidance: float) -> None:
    others = [[1], [1, 2], [1], [9, 9, 9]]
    got = run(
        model, [0, 1, 2, 3], sampling=Sampling(temperature=0, guidance=guidance),
        unconditional=others,
    )  # fmt: skip
    assert got == [naive(model, row, 12, guidance, others[row]) for row in range(4)]


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_a_batch_equals_its_rows_one_by_one(model: Transformer, temperature: float) -> None:
    options: dict[str, Any] = {
        "sampling": {0: Sampling(temperature=temperature, guidance=1.5), 1: Sampling(top_k=4)},
        "unconditional": [[1]] * 4,
    }
    together = run(model, [0, 1, 2, 3], **options)
    assert together == [run(model, [row], **options)[0] for row in range(4)]
    assert run(model, [3, 1], **options) == [together[3], together[1]]
    assert all(follows_the_grammar(row, ids) for row, ids in enumerate(together))


def test_the_seed_decides_alone(model: Transformer) -> None:
    first, again = run(model, [0, 1]), run(model, [0, 1])
    assert first == again
    other = generate(model, PROMPTS[:2], Cycle(), STATES[:2], max_new=12, seeds=[5, 6])
    assert other != first


def test_forced_ids_cost_no_head_and_only_legal_rows_are_read(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(*arguments: Any) -> Any:
        pieces = sampling_head(*arguments)
        sizes.extend(piece.logits.shape[1] for piece in pieces)
        return pieces

    monkeypatch.setattr(module, "sampling_head", counted)
    (ids,) = run(model, [2])
    assert ids[0] == 5
    assert len(sizes) == sum(id != 5 for id in ids) and set(sizes) <= {10, 11}


def test_rows_stop_where_they_are_told_and_stream_what_they_return(model: Transformer) -> None:
    streamed: dict[int, list[int]] = {row: [] for row in range(4)}
    got = run(
        model, [0, 1, 2, 3], stop=lambda states: (states[:, 0] == 2) | (states[:, 0] == 3),
        on_ids=lambda row, ids: streamed[row].extend(ids),
    )  # fmt: skip
    assert got == [streamed[row] for row in range(4)]
    assert got[2] == [] and len(got[1]) == 1 and len(got[0]) <= 2
    assert all(len(ids) <= 12 for ids in run(model, [0, 1, 2]))


def test_no_row_outgrows_the_context(model: Transformer) -> None:
    long = [10] * 35
    (ids,) = generate(
        model, [long], Cycle(), STATES[1:2], max_new=99, seeds=[0], stop=lambda s: s[:, 0] < 0
    )
    assert len(ids) == 5


def test_wrong_prompts_are_named(model: Transformer) -> None:
    def one(prompt: list[int], **options: Any) -> None:
        generate(model, [prompt], Cycle(), STATES[:1], max_new=3, seeds=[0], **options)

    with pytest.raises(InputError, match=r"41 ids.*context of 40"):
        one([1] * 41)
    with pytest.raises(InputError, match="empty"):
        one([])
    with pytest.raises(InputError, match="outside 0"):
        one([31])
    with pytest.raises(InputError, match="one seed per prompt"):
        generate(model, [[1]], Cycle(), STATES[:1], max_new=3, seeds=[])
    closed = STATES[:1].copy()
    closed[0, 0] = 3  # nothing is allowed behind the end
    with pytest.raises(InputError, match="nothing fits"):
        generate(
            model, [[1]], Cycle(), closed, max_new=3, seeds=[0], stop=lambda s: s[:, 0] < 0
        )  # fmt: skip


@pytest.mark.parametrize(
    "name, part",
    [("embedding", "the embedding"), ("blocks.1.feed_forward.down.weight", "layer 1"),
     ("blocks.0.attention.qkv.weight", "layer 0"), ("norm.weight", "the last norm")],
)  # fmt: skip
def test_states_that_are_not_finite_name_their_layer(
    model: Transformer, name: str, part: str
) -> None:
    parameter = dict(model.named_parameters())[name]
    kept = parameter.data.clone()
    parameter.data.view(-1)[:1] = torch.nan
    try:
        with pytest.raises(PolyglyphError, match=f"not finite from {part} on"):
            generate(model, [[0, 1, 0]], Cycle(), STATES[:1], max_new=3, seeds=[0])
    finally:
        parameter.data.copy_(kept)


def test_what_the_real_automaton_constrains_parses_at_any_temperature() -> None:
    from polyglyph.sequence.dialects import DIALECTS
    from polyglyph.sequence.grammar import Grammar
    from polyglyph.sequence.vocabulary import Vocabulary
    from polyglyph.tokenizers.base import SpanSpec

    specs = [
        SpanSpec("text", "text", 7, 1, 1),
        SpanSpec("image", "image", 5, 1, 2),
        SpanSpec("audio", "audio", 3, 2, 1),
    ]
    vocabulary = Vocabulary.build(specs, n_sizes=6)
    grammar = Grammar(DIALECTS["polyglyph"], vocabulary, {spec.span: spec for spec in specs})
    torch.manual_seed(1)
    config = ModelConfig(
        vocabulary_size=vocabulary.size, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=8,
        context=60,
    )  # fmt: skip
    bos = vocabulary.controls["bos"]
    automaton = grammar.automaton
    states = automaton.step(np.repeat(automaton.initial(40)[None], 5, 0), np.full(5, bos, np.int64))
    rows = generate(
        Transformer(config), [[bos]] * 5, automaton, states, max_new=59, seeds=range(5),
        sampling=Sampling(temperature=2.0),
    )  # fmt: skip
    assert len({tuple(row) for row in rows}) > 1
    for ids in rows:
        assert len(ids) <= 39
        document = grammar.parse(np.array([bos, *ids], np.int64))
        assert grammar.render(document).ids.tolist() == [bos, *ids]
