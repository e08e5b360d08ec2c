"""Templates: what stands at each position of a segment with a given grid.

`linearise` says the order; a template adds begin, size, separators, end and the slots. The second
reader of a layout beside the compiler: tests hold both to the same slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polyglyph.errors import InputError
from polyglyph.sequence.compiler import Compiled, SpanNodes, is_interleaved
from polyglyph.sequence.layout import FRAME_END, Dialect, Layout, linearise
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import SpanSpec

_KEPT = 4096  # texts come in many lengths, other modalities in few shapes


@dataclass(frozen=True)
class Template:
    """One span's segment with a grid of one shape: what stands at each of its n positions."""

    grid: tuple[int, ...]
    fixed: np.ndarray  # (n,) id, where it is no code of the grid
    where: np.ndarray  # (m,) positions of the codes
    codebook: np.ndarray  # (m,) their codebook
    cell: np.ndarray  # (m,) their cell, counted through the grid
    entry: np.ndarray  # (m,) their entry of the vocabulary
    slots: np.ndarray  # (n,) int32

    @property
    def length(self) -> int:
        return len(self.fixed)


class Templates:
    """Makes templates and keeps those in use."""

    def __init__(
        self,
        dialect: Dialect,
        vocabulary: Vocabulary,
        specs: Mapping[str, SpanSpec],
        compiled: Compiled,
    ) -> None:
        self.dialect, self.vocabulary, self.specs = dialect, vocabulary, specs
        self.compiled = compiled
        self._made: dict[tuple[str, tuple[int, ...]], Template] = {}
        index = {(e.span, e.codebook): i for i, e in enumerate(vocabulary.entries)}
        self.entries = {
            span: np.array([index[span, q] for q in range(spec.n_codebooks)])
            for span, spec in specs.items()
        }

    def layout(self, span: str) -> Layout:
        return self.dialect.layout(self.specs[span].modality)

    def of(self, span: str, grid: tuple[int, ...]) -> Template:
        """InputError if the layout cannot write this grid."""
        made = self._made.get((span, grid))
        if made is None:
            if len(self._made) >= _KEPT:
                self._made.clear()
            made = self._made[span, grid] = self._make_template(span, grid)
        return made

    def _make_template(self, span: str, grid: tuple[int, ...]) -> Template:
        spec, layout, nodes = self.specs[span], self.layout(span), self.compiled.spans[span]
        self._check_size(spec, layout, grid)
        order = linearise(layout, spec.n_codebooks, grid)
        before, before_nodes = self._header(span, layout, nodes, grid)
        node = self._body_nodes(spec, layout, nodes, order, grid)
        row_end, frame_end = (self._control(n, span) for n in (layout.row_end, layout.frame_end))
        body = np.where(order == FRAME_END, frame_end, row_end)
        where = np.flatnonzero(order >= 0)
        cell, codebook = np.divmod(order[where], spec.n_codebooks)
        fixed, all_nodes = [before, body], [before_nodes, node]
        if layout.end is not None:
            fixed.append(np.array([self._control(layout.end, span)]))
            # In frame-major order the end id competes with the next frame's first code.
            all_nodes.append(np.array([nodes.end if nodes.end >= 0 else nodes.choice]))
        return Template(
            grid=grid,
            fixed=np.concatenate(fixed),
            where=where + len(before),
            codebook=codebook,
            cell=cell,
            entry=self.entries[span][codebook],
            slots=self.compiled.automaton.tables.node_slot[np.concatenate(all_nodes)],
        )

    def _body_nodes(
        self,
        spec: SpanSpec,
        layout: Layout,
        nodes: SpanNodes,
        order: np.ndarray,
        grid: tuple[int, ...],
    ) -> np.ndarray:
        codebook = order % spec.n_codebooks
        cells = np.array(nodes.cells if nodes.cells else [nodes.choice])
        node = np.where(order == FRAME_END, nodes.frame_end, nodes.row_end)
        node = np.where(order >= 0, cells[codebook], node)
        if not layout.is_open:
            return node
        position = np.arange(len(order))
        if not is_interleaved(layout, spec):
            may_end = (codebook == 0) & (position >= layout.min_frames * spec.n_codebooks)
            return np.where(may_end, nodes.choice, node)
        # The number of frames is open up to the first code of codebook 1 that stands where
        # codebook 0 might go on: after each frame's first code, or at the start of each step.
        frame = order // spec.n_codebooks
        step = position if layout.order == "coarse-first" else frame + codebook
        starts = np.diff(step, prepend=-1) > 0
        choice = starts & (step >= 1) & (step <= grid[0])
        return np.where(choice, nodes.choice, node)

    def _header(
        self, span: str, layout: Layout, nodes: SpanNodes, grid: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids and nodes of begin id and size."""
        if layout.is_bare:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        ids, at = [nodes.begin_id], [self.compiled.free]
        for axis, n in enumerate(grid if layout.size != "none" else ()):
            if layout.size == "ids":
                ids.append(self.vocabulary.id(self.dialect.size_span, 0, n - 1))
                at.append(nodes.sizes[axis][0])
                continue
            digits = [self.dialect.digit_ids[int(digit)] for digit in str(n)]
            separator = self.dialect.star_id
            if axis == len(grid) - 1:
                separator = self._control(layout.after_size, span)
            ids += [*digits, separator]
            at += nodes.sizes[axis][: len(digits) + 1]
        if layout.after_size is not None and layout.size != "digits":
            ids.append(self._control(layout.after_size, span))
            at.append(nodes.after_size)
        return np.array(ids), np.array(at)

    def _check_size(self, spec: SpanSpec, layout: Layout, grid: tuple[int, ...]) -> None:
        assert len(grid) == spec.grid_rank
        low, high = 1, None
        if layout.is_open:
            low = layout.min_frames
        elif layout.size == "ids":
            high = self.vocabulary.entry(self.dialect.size_span).size
        elif layout.size == "digits":
            high = 10**self.dialect.max_digits - 1
        elif grid != layout.fixed:
            raise InputError(f"{spec.span} has a grid of {layout.fixed} here, got {grid}")
        if layout.is_bare:
            low = 0
        if min(grid) < low or (high is not None and max(grid) > high):
            upto = f" to {high}" if high else ""
            raise InputError(
                f"a {spec.span} grid of {'x'.join(map(str, grid))} codes cannot be written: each "
                f"side is {low}{upto}; use a {'smaller' if max(grid) > low else 'larger'} input"
            )

    def _control(self, name: str | None, span: str) -> int:
        return -1 if name is None else self.vocabulary.control(name.format(span=span))
