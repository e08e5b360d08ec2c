"""From a dialect, a vocabulary and the shapes of the codes to an automaton.

The only reader of `Layout` beside `linearise`: each part of a layout becomes a node here. Knows
nothing of documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyglyph.constraint import (
    ADVANCE,
    CARRY,
    CELL,
    COARSE_FIRST,
    DELAYED,
    END,
    FRAME_MAJOR,
    GOTO,
    KIND,
    LAST,
    LIMITED,
    MAX_COUNT,
    OPEN_ORDER,
    ORDER,
    PACK,
    QS,
    READ,
    START,
    TAIL,
    Automaton,
    body_length,
)
from polyglyph.errors import ConfigError
from polyglyph.sequence.layout import Dialect, Layout, axes
from polyglyph.sequence.table import Builder
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import SpanSpec

_KINDS = {"frame-major": FRAME_MAJOR, "coarse-first": COARSE_FIRST, "delayed": DELAYED}


@dataclass
class SpanNodes:
    """The nodes of one span's layout; -1 where the layout has no such part."""

    begin_id: int = -1
    sizes: list[list[int]] = field(default_factory=list)  # per axis; of digits, one per digit
    after_size: int = -1
    cells: list[int] = field(default_factory=list)  # one per codebook
    choice: int = -1  # where an open layout may end, or go on
    row_end: int = -1
    frame_end: int = -1
    end: int = -1


@dataclass
class Compiled:
    automaton: Automaton
    start: int
    free: int  # the node between segments
    spans: dict[str, SpanNodes]


class Compiler:
    """Compiles once; `compile` is the door."""

    def __init__(
        self, dialect: Dialect, vocabulary: Vocabulary, specs: Mapping[str, SpanSpec]
    ) -> None:
        self.dialect, self.vocabulary, self.specs = dialect, vocabulary, specs
        self.builder = Builder(vocabulary.size)
        self.start = self.builder.node("start")
        self.free = self.builder.node("next segment")
        self.spans = {span: SpanNodes() for span in specs}

    def compile(self) -> Compiled:
        builder, dialect = self.builder, self.dialect
        builder.edge(self.start, self._control(dialect.bos), self.free)
        builder.edge(self.free, self._control(dialect.eos), END)
        builder.edge(END, self._control(dialect.pad or dialect.eos), END)
        if any(dialect.layout(s.modality).size == "ids" for s in self.specs.values()):
            entry = self.vocabulary.entry(dialect.size_span)
            if entry.size > MAX_COUNT:
                raise ConfigError(f"{entry.size} size ids are too many; at most {MAX_COUNT}")
            builder.values[entry.table] = np.arange(1, entry.size + 1)
        for spec in self.specs.values():
            layout = dialect.layout(spec.modality)
            check_layout(layout, spec, dialect, self.vocabulary)
            if layout.is_bare:
                codes = self.vocabulary.entry(spec.span).table
                builder.edge(self.free, codes, self.free, need=2)
                self.spans[spec.span].choice = self.free
            else:
                self._span(spec, layout)
        return Compiled(builder.build(self.start), self.start, self.free, self.spans)

    def _control(self, name: str, span: str = "") -> np.ndarray:
        return np.array([self.vocabulary.control(name.format(span=span))])

    def _span(self, spec: SpanSpec, layout: Layout) -> None:
        builder, nodes = self.builder, self.spans[spec.span]
        assert layout.begin is not None
        nodes.begin_id = int(self._control(layout.begin, spec.span)[0])
        ordered = is_interleaved(layout, spec)
        for q in range(spec.n_codebooks):
            name = f"{spec.span}.{q}" if spec.n_codebooks > 1 else spec.span
            may_end = layout.is_open and not ordered and q == 0
            if may_end:
                nodes.choice = builder.node(f"{name}|{layout.end}".format(span=spec.span))
            is_choice = may_end and layout.min_frames == 0
            nodes.cells.append(nodes.choice if is_choice else builder.node(name, codebook=q))
        if layout.end is None:
            nodes.end = self.free
        elif nodes.choice < 0:
            nodes.end = builder.node(layout.end.format(span=spec.span))
            builder.edge(nodes.end, self._control(layout.end, spec.span), self.free)
        index = builder.layout()
        row = builder.layouts[index]
        self._separators(spec, layout, nodes, index)
        n_tail = (layout.end is not None) + 1  # the end id and eos
        row[[QS, CELL, TAIL]] = spec.n_codebooks, nodes.cells[0], n_tail
        row[KIND] = _KINDS[layout.order] if ordered else FRAME_MAJOR
        row[[CARRY, CARRY + 1, CARRY + 2]] = nodes.row_end, nodes.frame_end, nodes.end
        row[[LAST, LAST + 1]] = layout.row_end_last, layout.frame_end_last
        if layout.is_open:
            self._open_body(spec, layout, nodes, index, n_tail)
        else:
            self._sized_body(spec, nodes, index, ordered)
        first = self._header(spec, layout, nodes, index, n_tail, ordered)
        grid = layout.fixed or (1,) * spec.grid_rank
        counters = _initial_counters(layout, spec.grid_rank, ordered)
        least = 1 + header_length(layout, grid) + n_tail
        if not layout.is_open or layout.min_frames:
            least += int(body_length(row, *axes(grid)))
        builder.begin(self.free, np.array([nodes.begin_id]), first, counters, need=least)

    def _separators(self, spec: SpanSpec, layout: Layout, nodes: SpanNodes, index: int) -> None:
        for level, name in ((1, layout.row_end), (2, layout.frame_end)):
            if name is None:
                continue
            node = self.builder.node(name.format(span=spec.span))
            ids = self._control(name, spec.span)
            # A separator's edge counts the row (or frame) it closes; the next id decides the rest.
            self.builder.edge(node, ids, END, op=ADVANCE, level=level, layout=index)
            if level == 1:
                nodes.row_end = node
            else:
                nodes.frame_end = node

    def _codes(self, spec: SpanSpec, codebook: int) -> np.ndarray:
        return self.vocabulary.entry(spec.span, codebook).table

    def _sized_body(self, spec: SpanSpec, nodes: SpanNodes, index: int, ordered: bool) -> None:
        for q, node in enumerate(nodes.cells):
            codes = self._codes(spec, q)
            if ordered:
                self.builder.edge(node, codes, END, op=ORDER, layout=index, codebook=q)
            elif q + 1 < spec.n_codebooks:
                self.builder.edge(node, codes, nodes.cells[q + 1], op=GOTO)
            else:
                self.builder.edge(node, codes, END, op=ADVANCE, level=0, layout=index)

    def _open_body(
        self, spec: SpanSpec, layout: Layout, nodes: SpanNodes, index: int, n_tail: int
    ) -> None:
        builder, n_codebooks = self.builder, spec.n_codebooks
        first = self._codes(spec, 0)
        assert layout.end is not None
        if builder.layouts[index][KIND] != FRAME_MAJOR:
            name = f"{spec.span}.0|{spec.span}.1"
            nodes.choice = builder.node(name, kind=OPEN_ORDER, layout=index)
            builder.layouts[index][START] = nodes.choice
            self._sized_body(spec, nodes, index, ordered=True)
            common: dict[str, Any] = {"op": ORDER, "layout": index}
            builder.edge(nodes.choice, first, END, limited=True, **common)
            builder.edge(nodes.choice, self._codes(spec, 1), END, fix=1, codebook=1, **common)
            return
        for q, node in enumerate(nodes.cells):
            after = nodes.cells[q + 1] if q + 1 < n_codebooks else nodes.choice
            if node != nodes.choice:
                builder.edge(node, self._codes(spec, q), after)
            if q == 0:
                builder.edge(nodes.choice, first, after, need=n_codebooks + n_tail)
        builder.edge(nodes.choice, self._control(layout.end, spec.span), self.free)

    def _header(
        self,
        spec: SpanSpec,
        layout: Layout,
        nodes: SpanNodes,
        index: int,
        n_tail: int,
        ordered: bool,
    ) -> int:
        """Nodes of the size; returns the node that the begin id leads to."""
        builder = self.builder
        next_node = nodes.cells[0]
        if layout.after_size is not None and layout.size != "digits":
            nodes.after_size = builder.node(layout.after_size.format(span=spec.span))
            ids = self._control(layout.after_size, spec.span)
            builder.edge(nodes.after_size, ids, next_node)
        if layout.size == "digits":
            return self._digits(spec, layout, nodes, index, n_tail, ordered, next_node)
        if nodes.after_size >= 0:
            next_node = nodes.after_size
        if layout.size == "none":
            return next_node
        sizes = self.vocabulary.entry(self.dialect.size_span).table
        for axis in range(spec.grid_rank):  # from the last axis (columns) back to the first
            rest = axis + (nodes.after_size >= 0) + n_tail
            level, shift = (1, 0) if ordered else (axis, PACK)
            node = builder.node(
                "size", kind=LIMITED, layout=index, axis=level, shift=shift, rest=rest
            )
            columns: dict[str, Any] = {"op": READ, "level": level, "shift": shift, "layout": index}
            builder.edge(node, sizes, next_node, limited=True, **columns)
            nodes.sizes.insert(0, [node])
            next_node = node
        return next_node

    def _digits(
        self,
        spec: SpanSpec,
        layout: Layout,
        nodes: SpanNodes,
        index: int,
        n_tail: int,
        ordered: bool,
        next_node: int,
    ) -> int:
        """A number per axis in text ids, without leading zeros, `star` between two numbers."""
        builder, dialect = self.builder, self.dialect
        digits = np.array(dialect.digit_ids)
        builder.values[digits] = np.arange(10)
        assert layout.after_size is not None
        separator = self._control(layout.after_size, spec.span)
        name = layout.after_size.format(span=spec.span)
        for axis in range(spec.grid_rank):
            level, shift = (1, 0) if ordered else (axis, PACK)
            rest = 1 + 2 * axis + n_tail
            fields = {"layout": index, "axis": level, "shift": shift, "base": 10, "rest": rest}
            columns = {"op": READ, "level": level, "shift": shift, "base": 10, "layout": index}
            numbers = [builder.node("first digit", kind=LIMITED, **fields)]
            for _ in range(dialect.max_digits - 1):
                numbers.append(builder.node(f"digit|{name}", kind=LIMITED, **fields))
            numbers.append(builder.node(name))
            for i, node in enumerate(numbers):
                if i < dialect.max_digits:
                    legal = digits[1:] if i == 0 else digits
                    builder.edge(node, legal, numbers[i + 1], limited=True, **columns)
                if i > 0:
                    builder.edge(node, separator, next_node)
            nodes.sizes.insert(0, numbers)
            next_node = numbers[0]
            separator, name = np.array([dialect.star_id]), "*"
        return next_node


def is_interleaved(layout: Layout, spec: SpanSpec) -> bool:
    """True where codebooks come in another order than frame by frame."""
    return layout.order != "frame-major" and spec.n_codebooks > 1


def _initial_counters(layout: Layout, rank: int, ordered: bool) -> tuple[int, int, int]:
    """(column, row, frame) behind the begin id: what is fixed; what is read or open is 0."""
    if ordered:
        return 0, layout.fixed[0] if layout.fixed else 0, 0
    if layout.is_open:
        return 0, 0, 0
    if layout.fixed:
        frame, row, column = axes(layout.fixed)
        return column << PACK, row << PACK, frame << PACK
    return 0, (rank < 2) << PACK, (rank < 3) << PACK  # an axis that the grid lacks counts to one


def header_length(layout: Layout, grid: tuple[int, ...]) -> int:
    """Ids between the begin id and the body."""
    after = layout.after_size is not None
    if layout.size == "digits":
        return sum(len(str(n)) for n in grid) + len(grid) - 1 + after
    return (len(grid) if layout.size == "ids" else 0) + after


def check_layout(layout: Layout, spec: SpanSpec, dialect: Dialect, vocabulary: Vocabulary) -> None:
    """ConfigError where a layout cannot write codes of this shape with these ids."""
    what = f"dialect {dialect.name}, span {spec.span}"
    for q in range(spec.n_codebooks):
        size = vocabulary.entry(spec.span, q).size
        if size != spec.codebook_size:
            raise ConfigError(
                f"{what}: the vocabulary has {size} ids for codebook {q}, the codec has "
                f"{spec.codebook_size} codes"
            )
    if layout.is_open and spec.grid_rank != 1:
        raise ConfigError(f"{what}: a grid of rank {spec.grid_rank} needs its size in the layout")
    if layout.order != "frame-major" and spec.grid_rank != 1:
        raise ConfigError(f"{what}: order {layout.order} is for codes of rank 1")
    if layout.is_bare and spec.n_codebooks != 1:
        raise ConfigError(f"{what}: codes without begin and end have one codebook")
    if layout.fixed and (len(layout.fixed) != spec.grid_rank or max(layout.fixed) > MAX_COUNT):
        raise ConfigError(f"{what}: the fixed grid {layout.fixed} has the wrong rank or size")
    if layout.size != "digits":
        return
    if len(dialect.digit_ids) != 10 or len({*dialect.digit_ids, dialect.star_id}) != 11:
        raise ConfigError(
            f"{what}: sizes are written in digits, which need ten different ids and one of '*'; "
            f"got {list(dialect.digit_ids)} and {dialect.star_id}. Take them from the text "
            "tokenizer (Dialect.with_digits); one that joins digits cannot write this dialect"
        )
    text = [vocabulary.locate(i) for i in (*dialect.digit_ids, dialect.star_id)]
    if any(found is None for found in text) or len({found[0] for found in text if found}) != 1:
        raise ConfigError(f"{what}: the ids of digits and '*' must all be text ids")
