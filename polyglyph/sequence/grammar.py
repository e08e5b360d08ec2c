"""The grammar: documents to ids and back, the slots of ids, and the automaton, of one dialect.

A Template (template.py) says what stands at each position of a segment; rendering, parsing and
slots are readings of it, decoding steps the automaton (constraint.py) that compiles from the same
layouts. Knows no media and
no tokenizer, only the shapes of their codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polyglyph.constraint import END, Automaton, refusal
from polyglyph.errors import FormatError, InputError, ParseError, unknown
from polyglyph.sequence.compiler import Compiler, SpanNodes, header_length
from polyglyph.sequence.document import Document, Segment
from polyglyph.sequence.layout import Dialect, Layout
from polyglyph.sequence.template import Template, Templates
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import CodeGrid, Meta, SpanSpec, check_grid

MetaOf = Callable[[tuple[int, ...]], Meta]  # grid shape -> meta of a generated grid


class Stretch(NamedTuple):
    """Where a segment stands among the ids, begin and end id included."""

    start: int
    length: int
    modality: str
    loss_weight: float


@dataclass(frozen=True)
class Rendered:
    """A document as ids int64 (T,). `segments` leave out bos and eos."""

    ids: np.ndarray
    segments: list[Stretch]

    def loss_weights(self) -> np.ndarray:
        """float32 (T,): each segment's weight; bos has 0, eos that of the last segment."""
        weights = np.zeros(len(self.ids), np.float32)
        for start, length, _, weight in self.segments:
            weights[start : start + length] = weight
            weights[start + length :] = weight
        return weights


class Row(NamedTuple):
    """One line of `spell`."""

    position: int
    id: int
    name: str
    slot: str
    n_allowed: int


@dataclass
class Grammar:
    """Everything between documents of codes and ids.

    `fingerprints` names the codecs: rendering refuses codes of another one, parsing writes them
    into the grids. `metas` makes the meta of parsed grids from their shape; without, it is empty.
    """

    dialect: Dialect
    vocabulary: Vocabulary
    specs: Mapping[str, SpanSpec]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    metas: Mapping[str, MetaOf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._compiled = Compiler(self.dialect, self.vocabulary, self.specs).compile()
        self._templates = Templates(self.dialect, self.vocabulary, self.specs, self._compiled)
        self._entries = self._templates.entries
        spans = self._compiled.spans.items()
        self._span_of_begin = {n.begin_id: span for span, n in spans if n.begin_id >= 0}
        self._bare = [s for s in self.specs if self._layout(s).is_bare]
        self._bos = self.vocabulary.control(self.dialect.bos)
        self._eos = self.vocabulary.control(self.dialect.eos)
        self._pad = self.vocabulary.control(self.dialect.pad or self.dialect.eos)

    # -- what derives from the table -----------------------------------------------------------

    @property
    def automaton(self) -> Automaton:
        return self._compiled.automaton

    @property
    def slot_names(self) -> tuple[str, ...]:
        return self.automaton.slot_names

    @cached_property
    def forced_slots(self) -> np.ndarray:
        """bool (n_slots,): slots of at most one id; such positions carry no loss."""
        return self.automaton.slot_size <= 1

    @cached_property
    def code_slots(self) -> dict[str, np.ndarray]:
        """For each span the slots in which its codes may stand."""
        slots = self.automaton.slots.astype(np.int64)
        found = {}
        for span, spec in self.specs.items():
            codes = [self.vocabulary.id(span, q, 0) for q in range(spec.n_codebooks)]
            holds = [(slots[:, :, 0] <= i) & (i < slots[:, :, 1]) for i in codes]
            found[span] = np.flatnonzero(np.any(holds, axis=(0, 2)))
        return found

    def slots_of_modality(self, modality: str) -> np.ndarray:
        """Slots in which codes of `modality` may stand, of any of its codecs."""
        spans = [span for span, spec in self.specs.items() if spec.modality == modality]
        return np.unique(np.concatenate([self.code_slots[s] for s in spans] or [np.zeros(0, int)]))

    def begin(self, span: str) -> int:
        """The id that begins a segment of `span`, to force a target. InputError if it has none."""
        begin_id = self._nodes(span).begin_id
        if begin_id < 0:
            raise InputError(f"dialect {self.dialect.name} writes {span} without a begin id")
        return begin_id

    def begin_ids(self, span: str, grid: Sequence[int] | None = None) -> np.ndarray:
        """The ids before the first code, int64: begin and, for a given grid, its size.

        Empty where codes stand bare. Appended to a prompt they force target and size.
        """
        if self._layout(span).is_bare:
            return np.zeros(0, np.int64)
        if grid is None:
            return np.array([self.begin(span)])
        template = self.template(span, tuple(grid))
        n = 1 + header_length(self._layout(span), template.grid)
        return template.fixed[:n].copy()

    def n_ids(self, span: str, grid: Sequence[int]) -> int:
        """Length of a segment of `span` with this grid; bos and eos come on top."""
        return self.template(span, tuple(int(n) for n in grid)).length

    # -- documents to ids ----------------------------------------------------------------------

    def render(self, document: Iterable[Segment], *, complete: bool = True) -> Rendered:
        """bos, the segments, eos; without eos (a prompt) if not `complete`.

        InputError or FormatError for a segment without codes, with codes of another codec, or
        with a grid that the layout cannot write. Where a dialect writes text bare, neighbouring
        texts become one.
        """
        parts = [np.array([self._bos])]
        segments = []
        position = 1
        for index, segment in enumerate(document):
            grid = self._checked(index, segment)
            template = self.template(segment.codec, grid.shape)
            ids = template.fixed.copy()
            flat = grid.codes.reshape(grid.n_codebooks, -1)
            tables = [self.vocabulary.ids(segment.codec, q, c) for q, c in enumerate(flat)]
            ids[template.where] = np.stack(tables)[template.codebook, template.cell]
            parts.append(ids)
            weight = float(segment.loss_weight)
            segments.append(Stretch(position, len(ids), segment.modality, weight))
            position += len(ids)
        if complete:
            parts.append(np.array([self._eos]))
        return Rendered(np.concatenate(parts), segments)

    def _checked(self, index: int, segment: Segment) -> CodeGrid:
        span, grid = segment.codec, segment.codes
        if span not in self.specs:
            raise unknown("span", span, self.specs)
        if grid is None:
            raise InputError(f"segment {index} ({span}) has no codes; encode it first")
        due = self.fingerprints.get(span, "")
        if due and grid.fingerprint and grid.fingerprint != due:
            raise FormatError(
                f"segment {index}: {span} codes are of codec {grid.fingerprint[:12]}, this "
                f"vocabulary is for codec {due[:12]}; encode the medium with that codec"
            )
        check_grid(grid, self.specs[span])
        return grid

    def template(self, span: str, grid: tuple[int, ...]) -> Template:
        """What a segment of `span` with this grid looks like. InputError if it can't be written."""
        return self._templates.of(span, grid)

    # -- ids to documents ----------------------------------------------------------------------

    def parse(self, ids: np.ndarray, *, partial: bool = False) -> Document:
        """The document that ids (T,) spell: bos, segments, eos, then nothing but pad.

        Grids get the fingerprint and the meta of their span. ParseError, with position, slot and
        what was allowed, at the first id that does not fit, or at the end if it comes too early.
        `partial` takes what is whole instead: the segments before, and of a broken one the whole
        rows (or frames, or codes of a text), marked with meta {"partial": True}.
        """
        ids = np.asarray(ids).astype(np.int64)
        assert ids.ndim == 1
        document = Document()
        start = 1
        try:
            for start, length, span, template, codes in self._scan(ids):
                if template is not None:
                    document.append(self._segment(span, codes.reshape(len(codes), *template.grid)))
                start += length
        except ParseError as error:
            if not partial:
                raise
            document.extend(self._broken(ids, start, error.position))
        return document

    def _segment(self, span: str, codes: np.ndarray, **meta: bool) -> Segment:
        spec = self.specs[span]
        make = self.metas.get(span)
        grid_meta = make(codes.shape[1:]) if make is not None else Meta()
        fingerprint = self.fingerprints.get(span, "")
        grid = CodeGrid(spec.modality, codes, grid_meta, fingerprint)
        named = None if span == spec.modality else span
        return Segment(spec.modality, grid, codes=grid, span=named, meta=dict(meta))

    def _scan(self, ids: np.ndarray) -> Iterator[tuple[int, int, str, Template | None, np.ndarray]]:
        """(start, length, span, template, codes (Q, cells)) of each segment, in order.

        ParseError where the ids leave the grammar; the automaton finds the exact place.
        """
        inside = (ids >= 0) & (ids < self.vocabulary.size)
        safe = np.where(inside, ids, 0)
        entry = np.where(inside, self.vocabulary.entry_index(safe), -1)
        code = self.vocabulary.codes(safe)
        if not len(ids) or ids[0] != self._bos:
            raise self._refuse(ids, 0)
        position = 1
        while position < len(ids) and ids[position] != self._eos:
            found = self._match(ids, entry, code, position)
            if found is None:
                raise self._refuse(ids, position)
            span, template = found
            where = position + template.where
            codes = np.empty((self.specs[span].n_codebooks, math.prod(template.grid)), np.int32)
            codes[template.codebook, template.cell] = code[where]
            yield position, template.length, span, template, codes
            position += template.length
        if position >= len(ids) or (ids[position + 1 :] != self._pad).any():
            raise self._refuse(ids, position)

    def _match(
        self, ids: np.ndarray, entry: np.ndarray, code: np.ndarray, start: int
    ) -> tuple[str, Template] | None:
        """The span and template of the segment at `start`, or None if it is not well-formed."""
        span = self._span_of_begin.get(int(ids[start]))
        if span is None:
            bare = [s for s in self._bare if entry[start] in self._entries[s]]
            if not bare:
                return None
            span = bare[0]
        grid = self._read_grid(span, ids, entry, code, start)
        # A header of a few ids can claim a billion cells: never build more than is there.
        if grid is None or math.prod(grid) > len(ids) - start:
            return None
        template = self.template(span, grid)
        piece = slice(start, start + template.length)
        if piece.stop > len(ids):
            return None
        same = ids[piece] == template.fixed
        same[template.where] = entry[piece][template.where] == template.entry
        return (span, template) if same.all() else None

    def _read_grid(
        self, span: str, ids: np.ndarray, entry: np.ndarray, code: np.ndarray, start: int
    ) -> tuple[int, ...] | None:
        """The grid that a segment's header (or, of an open one, its length) says."""
        spec, layout = self.specs[span], self._layout(span)
        if layout.is_open:
            after = start + (not layout.is_bare) + (layout.after_size is not None)
            mine = np.isin(entry[after:], self._entries[span])
            n = len(mine) if mine.all() else int(mine.argmin())
            frames, rest = divmod(n, spec.n_codebooks)
            return None if rest or frames < self._least(layout) else (frames,)
        if layout.size == "none":
            return layout.fixed
        if layout.size == "ids":
            piece = slice(start + 1, start + 1 + spec.grid_rank)
            size_entry = [self.vocabulary.entries[i].span if i >= 0 else "" for i in entry[piece]]
            if size_entry != [self.dialect.size_span] * spec.grid_rank:
                return None
            return tuple(int(c) + 1 for c in code[piece])
        return self._read_digits(spec.grid_rank, layout, ids, start + 1)

    def _least(self, layout: Layout) -> int:
        return 1 if layout.is_bare else layout.min_frames

    def _read_digits(
        self, rank: int, layout: Layout, ids: np.ndarray, position: int
    ) -> tuple[int, ...] | None:
        assert layout.after_size is not None
        after_size = self.vocabulary.control(layout.after_size)
        digit_of = {id: str(i) for i, id in enumerate(self.dialect.digit_ids)}
        grid = []
        for axis in range(rank):
            text = ""
            while position < len(ids) and int(ids[position]) in digit_of:
                text += digit_of[int(ids[position])]
                position += 1
            due = self.dialect.star_id if axis < rank - 1 else after_size
            if position >= len(ids) or ids[position] != due:
                return None
            if not 0 < len(text) <= self.dialect.max_digits or text[0] == "0":
                return None
            grid.append(int(text))
            position += 1
        return tuple(grid)

    def _refuse(self, ids: np.ndarray, start: int) -> ParseError:
        """The error of ids that are legal before `start`, where a segment was due."""
        automaton = self.automaton
        state = automaton.initial()
        if start:
            state[0] = self._compiled.free
        legal, state = automaton.walk(ids[start:], state)
        position = start + len(legal)
        slot = int(automaton.slot_of(state[None])[0])
        if position == len(ids):
            what = "the end"
        else:
            id = int(ids[position])
            what = f"id {id} ({self.vocabulary.name_of(id)})"
        return refusal(position, what, self.slot_names[slot], automaton.slots[slot])

    def _broken(self, ids: np.ndarray, start: int, stop: int) -> list[Segment]:
        """What is whole of the segment ids[start:stop]: none, or one segment."""
        piece = ids[start:stop]
        if start >= stop:
            return []
        entry, code = self.vocabulary.entry_index(piece), self.vocabulary.codes(piece)
        span = self._span_of_begin.get(int(piece[0]), self._bare[0] if self._bare else "")
        if not span:
            return []
        spec, layout = self.specs[span], self._layout(span)
        grid: tuple[int, ...] | None = (1,)
        if not layout.is_open:
            grid = self._read_grid(span, piece, entry, code, 0)
        if grid is None:
            return []
        body = 0 if layout.is_bare else 1 + header_length(layout, grid)
        # Within one codebook the codes come in the order of the cells, in every layout.
        lines = [code[body:][entry[body:] == index] for index in self._entries[span]]
        unit = math.prod(grid[1:])
        whole = min(len(line) for line in lines) // unit
        if not whole:
            return []
        codes = np.stack([line[: whole * unit] for line in lines])
        codes = codes.reshape(spec.n_codebooks, whole, *grid[1:])
        return [self._segment(span, codes, partial=True)]

    # -- slots ---------------------------------------------------------------------------------

    def slots_of(self, ids: np.ndarray, segments: Iterable[Sequence] | None = None) -> np.ndarray:
        """Slot int32 (T,) of every position of legal ids, by template instead of by walking.

        `segments` are (start, length, ...) as in Rendered or a shard, of one document or of many
        in a row (each with its bos and eos); a last segment may be cut off behind its header.
        Without segments, ids are one document and are parsed: ParseError if they are not legal.
        """
        ids = np.asarray(ids)
        node_slot = self.automaton.tables.node_slot
        if segments is None:
            scanned = self._scan(ids.astype(np.int64))
            segments = [(start, length) for start, length, *_ in scanned]
        slots = np.full(len(ids), node_slot[self._compiled.free], np.int32)
        slots[ids == self._bos] = node_slot[self._compiled.start]
        if self._pad != self._eos:
            slots[ids == self._pad] = node_slot[END]
        elif len(ids):
            slots[1:][(ids[1:] == self._eos) & (ids[:-1] == self._eos)] = node_slot[END]
        for start, length, *_ in segments:
            known = self._slots_of_segment(ids[start : start + length], int(length))
            slots[start : start + length] = known[: len(ids) - start]
        return slots

    def _slots_of_segment(self, piece: np.ndarray, length: int) -> np.ndarray:
        span = self._span_of_begin.get(int(piece[0]))
        grid = (length,) if span is None else self._grid_of_segment(span, piece, length)
        if grid is None or math.prod(grid) > length:
            raise FormatError(
                f"a segment of {length} ids from {self.vocabulary.name_of(int(piece[0]))} is not "
                f"of dialect {self.dialect.name}; these ids belong to another vocabulary"
            )
        return self.template(span or self._bare[0], grid).slots

    def _grid_of_segment(self, span: str, piece: np.ndarray, length: int) -> tuple[int, ...] | None:
        """The grid of a legal segment whose length is known; the quick sibling of _read_grid."""
        spec, layout = self.specs[span], self._layout(span)
        if layout.is_open:
            around = 2 + (layout.after_size is not None)
            return ((length - around) // spec.n_codebooks,)
        if layout.size == "ids":
            sizes = self.vocabulary.codes(piece[1 : 1 + spec.grid_rank]) + 1
            return tuple(sizes.tolist())
        if layout.size == "none":
            return layout.fixed
        return self._read_digits(spec.grid_rank, layout, piece, 1)

    def spell(self, ids: np.ndarray) -> list[Row]:
        """A line per id: its name, its slot, and how many ids the slot holds.

        Behind an id that is not legal the slot is unknown ("?"), which holds nothing.
        """
        ids = np.asarray(ids).astype(np.int64)
        try:
            slots = self.slots_of(ids)
        except ParseError:
            slots, state = self.automaton.walk(ids)
            slots = np.append(slots, self.automaton.slot_of(state[None]))
        sizes = self.automaton.slot_size
        rows = []
        for position, id in enumerate(ids.tolist()):
            slot = slots[position] if position < len(slots) else None
            name = "?" if slot is None else self.slot_names[slot]
            n_allowed = 0 if slot is None else int(sizes[slot])
            rows.append(Row(position, id, self.vocabulary.name_of(id), name, n_allowed))
        return rows

    def _layout(self, span: str) -> Layout:
        return self.dialect.layout(self.specs[span].modality)

    def _nodes(self, span: str) -> SpanNodes:
        if span not in self.specs:
            raise unknown("span", span, self.specs)
        return self._compiled.spans[span]
