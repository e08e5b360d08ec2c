"""Claims about the grammar, over every dialect and modality."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyglyph.errors import FormatError, InputError, ParseError
from polyglyph.sequence.dialects import DIALECTS, emu3, emu3_vocabulary
from polyglyph.sequence.document import Document, Segment
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.layout import Dialect, Layout
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import CodeGrid, ImageMeta, SpanSpec

N_SIZES = 5
SPECS = [
    SpanSpec("text", "text", 11, 1, 1),
    SpanSpec("image", "image", 7, 1, 2),
    SpanSpec("video", "video", 6, 2, 3),
    SpanSpec("audio", "audio", 5, 3, 1),
    SpanSpec("region", "region", 4, 1, 1),
    SpanSpec("action", "action", 3, 1, 2),
    SpanSpec("audio-speech", "audio", 9, 1, 1),
]
OWN = DIALECTS["polyglyph"]


def named(specs: list[SpanSpec]) -> dict[str, SpanSpec]:
    return {spec.span: spec for spec in specs}


def own(dialect: Dialect = OWN, specs: list[SpanSpec] = SPECS) -> Grammar:
    return Grammar(dialect, Vocabulary.build(specs, n_sizes=N_SIZES), named(specs))


def real_emu3() -> Grammar:
    specs = [SpanSpec("text", "text", 151643, 1, 1), SpanSpec("image", "image", 32768, 1, 2)]
    return Grammar(emu3(range(15, 25), 9), emu3_vocabulary(), named(specs))


def other_layouts() -> Grammar:
    """What the two above leave out: separators between rows only, a fixed grid without an end,
    codes by name, sizes in front of interleaved orders, digits in front of three axes."""
    layouts = {
        "text": Layout(min_frames=0),
        "image": Layout(fixed=(2, 3), end=None, row_end="row_end", row_end_last=False),
        "video": Layout(
            size="digits",
            after_size="img",
            row_end="row_end",
            row_end_last=False,
            frame_end="frame_end",
            frame_end_last=False,
        ),
        "audio": Layout(size="ids", order="delayed"),
        "region": Layout(size="ids", order="coarse-first", after_size="img"),
        "action": Layout(size="digits", after_size="img"),
    }
    specs = [*SPECS[:4], SpanSpec("region", "region", 4, 2, 1), SPECS[5]]
    specs[0] = SpanSpec("text", "text", 20, 1, 1)
    plain = Vocabulary.build(specs, n_sizes=N_SIZES)
    entries = list(plain.entries)
    at = [e.span for e in entries].index("image")
    by_name = np.random.default_rng(3).permutation(entries[at].table)
    entries[at] = dataclasses.replace(entries[at], ids=tuple(by_name.tolist()))
    vocabulary = Vocabulary(entries, plain.controls | {"img": plain.size})
    text = vocabulary.entry("text").start
    dialect = Dialect("other", layouts).with_digits(range(text + 4, text + 14), text + 2)
    return Grammar(dialect, vocabulary, named(specs))


GRAMMARS = {
    "polyglyph": own(),
    "coarse-first": own(OWN.with_order("audio", "coarse-first")),
    "delayed": own(OWN.with_order("audio", "delayed")),
    "emu3": real_emu3(),
    "other": other_layouts(),
}


def grid_of(grammar: Grammar, span: str, rng: np.random.Generator) -> tuple[int, ...]:
    spec, layout = grammar.specs[span], grammar.dialect.layout(grammar.specs[span].modality)
    if layout.fixed:
        return layout.fixed
    if layout.size == "digits" and rng.random() < 0.2:
        return (*(1,) * (spec.grid_rank - 1), int(rng.choice([9, 10, 99, 100])))
    low = 0 if layout.is_open and not layout.min_frames else 1
    return tuple(rng.integers(low, N_SIZES + 1, spec.grid_rank).tolist())


def make_segment(grammar: Grammar, span: str, grid: tuple[int, ...], seed: int = 0) -> Segment:
    spec = grammar.specs[span]
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, spec.codebook_size, (spec.n_codebooks, *grid)).astype(np.int32)
    return Segment(
        spec.modality,
        CodeGrid(spec.modality, codes),
        span=None if span == spec.modality else span,
    )


def make_document(grammar: Grammar, spans: list[str], seed: int) -> Document:
    rng = np.random.default_rng(seed)
    document = Document()
    for span in spans:
        is_bare = grammar.dialect.layout(grammar.specs[span].modality).is_bare
        if is_bare and document and document[-1].codec == span:
            continue  # texts that stand bare would become one
        grid = grid_of(grammar, span, rng)
        document.append(make_segment(grammar, span, grid, int(rng.integers(1 << 30))))
    return document


@st.composite
def documents(draw: st.DrawFn) -> tuple[Grammar, Document]:
    grammar = GRAMMARS[draw(st.sampled_from(sorted(GRAMMARS)))]
    spans = draw(st.lists(st.sampled_from(sorted(grammar.specs)), max_size=5))
    return grammar, make_document(grammar, spans, draw(st.integers(0, 1 << 30)))


SETTINGS = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(documents())
def test_parse_inverts_render_for_every_dialect_and_modality(
    pair: tuple[Grammar, Document],
) -> None:
    grammar, document = pair
    parsed = grammar.parse(grammar.render(document).ids)
    assert parsed.same_codes(document)
    assert [s.modality for s in parsed] == [s.modality for s in document]


@pytest.mark.parametrize("name", GRAMMARS)
def test_each_modality_alone_at_its_smallest_and_at_odd_sizes(name: str) -> None:
    grammar = GRAMMARS[name]
    for span in grammar.specs:
        for seed in range(4):
            grid = grid_of(grammar, span, np.random.default_rng(seed))
            document = Document([make_segment(grammar, span, grid, seed)])
            rendered = grammar.render(document)
            assert grammar.parse(rendered.ids).same_codes(document)
            assert len(rendered.ids) == grammar.n_ids(span, grid) + 2


def test_parse_is_equal_and_not_only_in_codes_when_metas_and_fingerprints_are_known() -> None:
    grammar = own()
    grammar.metas = {"image": lambda shape: ImageMeta(8 * shape[0], 8 * shape[1])}
    grammar.fingerprints = {"image": "ab" * 32}
    codes = np.arange(6, dtype=np.int32).reshape(1, 2, 3)
    grid = CodeGrid("image", codes, ImageMeta(16, 24), "ab" * 32)
    document = Document([Segment("image", grid)])
    assert grammar.parse(grammar.render(document).ids) == document


@SETTINGS
@given(documents())
def test_slots_by_template_equal_the_slots_of_the_automatons_walk(
    pair: tuple[Grammar, Document],
) -> None:
    grammar, document = pair
    rendered = grammar.render(document)
    walked = grammar.automaton.slots_of_ids(rendered.ids)
    assert np.array_equal(grammar.slots_of(rendered.ids, rendered.segments), walked)
    assert np.array_equal(grammar.slots_of(rendered.ids), walked)


def test_slots_of_packed_documents_with_a_cut_tail_equal_those_of_each() -> None:
    grammar = GRAMMARS["polyglyph"]
    rendered = [
        grammar.render(make_document(grammar, list(grammar.specs), seed)) for seed in range(3)
    ]
    ids = np.concatenate([r.ids for r in rendered]).astype(np.uint16)
    starts = np.cumsum([0] + [len(r.ids) for r in rendered])
    segments = [
        (start + s.start, s.length) for start, r in zip(starts, rendered) for s in r.segments
    ]
    expected = np.concatenate([grammar.automaton.slots_of_ids(r.ids) for r in rendered])
    assert np.array_equal(grammar.slots_of(ids, segments), expected)
    kept = [s for s in segments if s[0] + 4 < len(ids) - 9]
    assert np.array_equal(grammar.slots_of(ids[:-9], kept), expected[:-9])
    padded = np.append(ids, [grammar.vocabulary.control("pad")] * 3)
    end = grammar.slots_of(padded, segments)[-3:]
    assert grammar.slot_names[end[0]] == "end" and grammar.forced_slots[end].all()


@SETTINGS
@given(documents(), st.integers(0, 1 << 30))
def test_one_foreign_or_missing_id_is_refused_exactly_where_the_automaton_dies(
    pair: tuple[Grammar, Document], seed: int
) -> None:
    grammar, document = pair
    rng = np.random.default_rng(seed)
    ids = grammar.render(document).ids
    at = int(rng.integers(len(ids)))
    if rng.random() < 0.4:
        ids = ids[:at]
    elif rng.random() < 0.5:
        ids = np.delete(ids, at)
    else:
        ids[at] = rng.choice([-1, grammar.vocabulary.size, rng.integers(grammar.vocabulary.size)])
    slots, state = grammar.automaton.walk(ids)
    legal = len(slots) == len(ids) and bool(grammar.automaton.is_end(state[None])[0])
    if legal:
        assert np.array_equal(grammar.render(grammar.parse(ids)).ids, ids)
        return
    with pytest.raises(ParseError) as caught:
        grammar.parse(ids)
    assert caught.value.position == len(slots)
    assert caught.value.slot == grammar.slot_names[grammar.automaton.slot_of(state[None])[0]]
    assert str(len(slots)) in str(caught.value) and caught.value.allowed


def test_row_26_an_id_outside_its_span_or_the_vocabulary_is_named_with_position_and_slot() -> None:
    grammar = GRAMMARS["polyglyph"]
    ids = grammar.render(Document([make_segment(grammar, "image", (2, 2))])).ids
    image = grammar.vocabulary.entry("image")
    allowed = f"{image.start}..{image.start + image.size - 1}"
    for wrong in (-7, grammar.vocabulary.size, image.start + image.size, image.start - 1):
        broken = ids.copy()
        broken[5] = wrong
        for read in (grammar.parse, grammar.automaton.slots_of_ids, grammar.slots_of):
            with pytest.raises(ParseError, match=f"id {wrong}") as caught:
                read(broken)
            assert (caught.value.position, caught.value.slot) == (5, "image")
            assert caught.value.allowed == allowed and allowed in str(caught.value)
    grid = CodeGrid("image", np.full((1, 2, 2), 7, np.int32))
    with pytest.raises(FormatError, match=r"code 7 .* outside 0\.\.6"):
        grammar.render(Document([Segment("image", grid)]))


def test_row_27_a_broken_image_is_reported_and_its_whole_rows_can_be_had() -> None:
    grammar = GRAMMARS["polyglyph"]
    document = Document(
        [make_segment(grammar, "text", (3,)), make_segment(grammar, "image", (4, 3))]
    )
    ids = grammar.render(document).ids
    start = int(np.flatnonzero(ids == grammar.begin("image"))[0])
    cases = {
        "too few codes": np.delete(ids, start + 12),  # in the third row
        "no end": ids[: start + 13],
        "nested": np.insert(ids, start + 13, grammar.begin("text")),
    }
    for name, broken in cases.items():
        with pytest.raises(ParseError):
            grammar.parse(broken)
        partial = grammar.parse(broken, partial=True)
        assert partial[0].same_codes(document[0]), name
        assert partial[1].meta == {"partial": True}
        whole = partial[1].codes.codes
        assert whole.shape == (1, 2, 3) and np.array_equal(whole, document[1].codes.codes[:, :2])


@pytest.mark.parametrize("name", ["polyglyph", "coarse-first", "delayed", "other"])
def test_partial_audio_keeps_the_frames_that_have_all_codebooks(name: str) -> None:
    grammar = GRAMMARS[name]
    document = Document([make_segment(grammar, "audio", (5,))])
    ids = grammar.render(document).ids
    partial = grammar.parse(ids[:-4], partial=True)  # eos, end and two codes are missing
    kept = partial[0].codes.codes
    assert kept.shape[1] in (3, 4)
    assert np.array_equal(kept, document[0].codes.codes[:, : kept.shape[1]])
    assert grammar.parse(ids[:-1], partial=True).same_codes(document)
    assert len(grammar.parse(ids[:2], partial=True)) == 0


def test_row_53_text_that_spells_a_control_id_stays_text() -> None:
    def encode(text: str, size: int) -> CodeGrid:  # a text tokenizer of bytes
        return CodeGrid("text", np.frombuffer(text.encode(), np.uint8)[None].astype(np.int32))

    wide = [SpanSpec("text", "text", 256, 1, 1), *SPECS[1:]]
    for grammar in (own(specs=wide), GRAMMARS["emu3"]):
        vocabulary = grammar.vocabulary
        span = vocabulary.entry("text")
        for name, control in [*vocabulary.controls.items(), ("|image start|", 151852)]:
            for text in (name, f"<{name}>", f"<|{name}|>", str(control), chr(control % 128)):
                grid = encode(text, span.size)
                document = Document([Segment("text", text, codes=grid)])
                rendered = grammar.render(document)
                _, length, _, _ = rendered.segments[0]
                n_bare = length - grid.n_tokens
                body = rendered.ids[1 + n_bare // 2 :][: grid.n_tokens]
                assert np.isin(body, span.table).all()
                assert not np.isin(body, list(vocabulary.controls.values())).any()
                parsed = grammar.parse(rendered.ids)
                assert len(parsed) == 1 and parsed.same_codes(document)


def test_adding_a_modality_moves_no_existing_id_and_keeps_old_documents() -> None:
    old = own(specs=SPECS[:3])
    ids = old.render(make_document(old, ["text", "image", "video"], 5)).ids
    vocabulary = old.vocabulary.extend(SPECS[3:])
    new = Grammar(OWN, vocabulary, named(SPECS))
    for entry in old.vocabulary.entries:
        assert np.array_equal(entry.table, vocabulary.entry(entry.span, entry.codebook).table)
    taken = {k: v for k, v in old.vocabulary.controls.items() if not k.startswith("reserved")}
    assert taken.items() <= vocabulary.controls.items()
    assert new.parse(ids).same_codes(old.parse(ids))
    assert old.vocabulary.size < vocabulary.size


def test_a_prompt_has_no_eos_and_begin_ids_force_target_and_size() -> None:
    grammar = GRAMMARS["polyglyph"]
    document = Document([make_segment(grammar, "text", (4,))])
    whole, prompt = grammar.render(document), grammar.render(document, complete=False)
    assert np.array_equal(whole.ids[:-1], prompt.ids)
    image = grammar.render(Document([make_segment(grammar, "image", (3, 2))])).ids
    assert np.array_equal(grammar.begin_ids("image", (3, 2)), image[1:4])
    assert grammar.begin_ids("image").tolist() == [grammar.begin("image")] == [image[1]]
    assert GRAMMARS["emu3"].begin_ids("text").size == 0
    with pytest.raises(InputError, match="without a begin id"):
        GRAMMARS["emu3"].begin("text")


def test_loss_weights_follow_their_segments() -> None:
    grammar = GRAMMARS["polyglyph"]
    document = Document(
        [make_segment(grammar, "text", (2,)), make_segment(grammar, "region", (3,))]
    )
    document[0].loss_weight = 0.0
    document[1].loss_weight = 0.5
    rendered = grammar.render(document)
    assert rendered.loss_weights().tolist() == [0.0] * 5 + [0.5] * 7
    assert [tuple(s) for s in rendered.segments] == [(1, 4, "text", 0.0), (5, 6, "region", 0.5)]


def test_wrong_segments_are_refused_before_anything_is_written() -> None:
    grammar = own()
    with pytest.raises(InputError, match="has no codes"):
        grammar.render(Document([Segment("text", "hello")]))
    with pytest.raises(InputError, match="unknown span 'depth'"):
        grammar.render(Document([Segment("depth", CodeGrid("depth", np.zeros((1, 2), np.int32)))]))
    with pytest.raises(InputError, match="each side is 1 to 5"):
        grammar.render(Document([make_segment(grammar, "image", (2, 6))]))
    with pytest.raises(InputError, match="larger input"):
        grammar.render(Document([make_segment(grammar, "audio", (0,))]))
    grammar.fingerprints = {"image": "aa" * 32}
    foreign = CodeGrid("image", np.zeros((1, 1, 1), np.int32), fingerprint="bb" * 32)
    with pytest.raises(FormatError, match=r"bbbbbbbbbbbb.*aaaaaaaaaaaa"):
        grammar.render(Document([Segment("image", foreign)]))


def test_spell_names_every_id_and_its_slot_also_of_broken_ids() -> None:
    grammar = GRAMMARS["polyglyph"]
    ids = grammar.render(Document([make_segment(grammar, "image", (1, 2))])).ids
    rows = grammar.spell(ids)
    assert [r.name for r in rows[:4]] == ["bos", "begin_image", "size 1", "size 2"]
    assert [r.slot for r in rows[4:7]] == ["image", "image", "row_end"]
    assert [r.n_allowed for r in rows[4:8]] == [7, 7, 1, 1]
    broken = grammar.spell(np.array([ids[0], ids[1], ids[4], 10**9]))
    assert (broken[2].slot, broken[3].slot) == ("size", "?")
    assert broken[3].name == "outside the vocabulary" and len(grammar.spell(ids[:3])) == 3


def test_a_header_that_claims_a_billion_codes_is_refused_without_building_them() -> None:
    grammar = GRAMMARS["emu3"]
    nines = [24, 24, 24, 24]
    ids = np.array([151849, 151852, *nines, 9, *nines, 151851, 151854, 151850])
    with pytest.raises(ParseError) as caught:
        grammar.parse(ids)
    assert (caught.value.position, caught.value.slot) == (13, "image")


def test_slots_know_their_modality() -> None:
    grammar = GRAMMARS["polyglyph"]
    names = {m: [grammar.slot_names[i] for i in grammar.slots_of_modality(m)] for m in OWN.layouts}
    assert names["image"] == ["image"] and names["text"] == ["text|end_text"]
    assert set(names["audio"]) >= {"audio.0", "audio.1", "audio-speech|end_audio-speech"}
    assert grammar.slots_of_modality("smell").size == 0
