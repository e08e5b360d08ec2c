"""Which tiles of the logits the Triton form of cross_entropy works on, as tables of numbers.

Rows are sorted by slice; row blocks never cross a slice's end. Ids are cut into tiles of BLOCK_N
on one grid over the whole vocabulary; a slice owns the tiles that its ranges touch, as runs of
neighbours. The forward pass works on (row block, at most SPLIT tiles), a fixed size: how a row's
sum is split depends on its slice alone. The backward pass goes over the vocabulary in passes whose
dlogits fit into a bounded buffer; in it each (slice, run) is one dense panel. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Row blocks that are worked on side by side, so that they share the tiles of the head in L2.
NEIGHBOURS = 16
# Elements: what vector loads need to be a multiple of, so that the kernels can say that it is.
UNIT = 16
WIDTH = 10  # numbers of a group: begin, end, four ranges padded with (0, 0)


def as_groups(groups: Sequence[tuple[int, int, Sequence[tuple[int, int]]]]) -> list[int]:
    """(begin, end, ranges) of every slice, flat: WIDTH numbers each."""
    flat: list[int] = []
    for begin, end, ranges in groups:
        numbers = [number for one in ranges for number in one]
        flat += [begin, end, *numbers, *[0] * (WIDTH - 2 - len(numbers))]
    return flat


@dataclass(frozen=True)
class ForwardWork:
    jobs: np.ndarray  # (n, 6): row begin, row end, slice, tile begin, tile end, number of the part
    parts: np.ndarray  # (rows,) how many parts a row's sum has


@dataclass(frozen=True)
class BackwardPass:
    """One stretch of the vocabulary. Offsets and strides, in the dlogits buffer, count UNITs."""

    n_elements: int
    # (n, 6): row begin, row end, slice, tile, offset of the tile, row stride of its panel
    logit_jobs: np.ndarray
    # (n, 5): row begin, row end, row in the panel, panel begin, panel end
    hidden_jobs: np.ndarray
    hidden_panels: np.ndarray  # (n, 4): offset, row stride, first id, columns
    weight_jobs: np.ndarray  # (n, 3): tile, panel begin, panel end
    weight_panels: np.ndarray  # (n, 4): offset of the tile, row stride, row begin, row end


def _table(rows: list[list[int]] | list[np.ndarray], width: int) -> np.ndarray:
    if not rows:
        return np.zeros((0, width), np.int64)
    return np.concatenate([np.atleast_2d(np.asarray(row, np.int64)) for row in rows])


def _touched(groups: np.ndarray, vocabulary_size: int, block_n: int) -> np.ndarray:
    """(slices, tiles) bool."""
    hit = np.zeros((len(groups), -(-vocabulary_size // block_n)), bool)
    for index, group in enumerate(groups):
        for start, stop in group[2:].reshape(-1, 2):
            if stop > start:
                hit[index, start // block_n : (stop - 1) // block_n + 1] = True
    return hit


def _runs(hit: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hit.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _neighbours(begin: int, end: int, block_m: int) -> Iterator[np.ndarray]:
    starts = np.arange(begin, end, block_m)
    for first in range(0, len(starts), NEIGHBOURS):
        yield starts[first : first + NEIGHBOURS]


def _grid(blocks: np.ndarray, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every block with every tile, the blocks of one tile together."""
    return np.tile(blocks, len(tiles)), np.repeat(tiles, len(blocks))


def forward_work(
    groups: Sequence[int], vocabulary_size: int, block_m: int, block_n: int, split: int
) -> ForwardWork:
    """The jobs of the forward pass; `split` tiles at most belong to one part of a row's sum."""
    table = np.asarray(groups, np.int64).reshape(-1, WIDTH)
    hit = _touched(table, vocabulary_size, block_n)
    jobs: list[np.ndarray] = []
    parts = np.zeros(int(table[-1, 1]) if len(table) else 0, np.int32)
    for index, (begin, end) in enumerate(table[:, :2]):
        pieces = np.array(
            [(a, min(a + split, stop)) for run, stop in _runs(hit[index])
             for a in range(run, stop, split)], np.int64,
        )  # fmt: skip
        parts[begin:end] = len(pieces)
        for blocks in _neighbours(begin, end, block_m):
            block, part = _grid(blocks, np.arange(len(pieces)))
            stop = np.minimum(block + block_m, end)
            jobs.append(
                np.stack([block, stop, np.full_like(block, index), *pieces[part].T, part], 1)
            )
    return ForwardWork(_table(jobs, 6), parts)


def backward_passes(
    groups: Sequence[int], vocabulary_size: int, block_m: int, block_n: int, most_elements: int
) -> list[BackwardPass]:
    """Passes whose dlogits hold `most_elements` at most, or one tile's where that is more.

    Every tile is in one pass, with all rows that read it, so its rows of the head's gradient are
    complete there."""
    table = np.asarray(groups, np.int64).reshape(-1, WIDTH)
    hit = _touched(table, vocabulary_size, block_n)
    padded = -(-(table[:, 1] - table[:, 0]) // block_m) * block_m
    filled = np.cumsum(padded @ hit * block_n)  # elements up to and with each tile
    passes, first, used = [], 0, 0
    while first < hit.shape[1]:
        stop = max(first + 1, int(np.searchsorted(filled, used + most_elements, side="right")))
        if hit[:, first:stop].any():
            passes.append(_pass(table, hit, padded, first, stop, block_m, block_n))
        first, used = stop, int(filled[stop - 1])
    return passes


def _pass(
    table: np.ndarray, hit: np.ndarray, padded: np.ndarray, first: int, stop: int,
    block_m: int, block_n: int,
) -> BackwardPass:  # fmt: skip
    offset = 0
    logit_jobs: list[np.ndarray] = []
    hidden_jobs: list[np.ndarray] = []
    hidden_panels: list[list[int]] = []
    of_tiles: list[np.ndarray] = []  # tile, then the columns of weight_panels
    for index, (begin, end) in enumerate(table[:, :2]):
        runs = [(a + first, b + first) for a, b in _runs(hit[index, first:stop])]
        if not runs:
            continue
        before = len(hidden_panels)
        for a, b in runs:
            stride = (b - a) * block_n
            hidden_panels.append([offset, stride, a * block_n, stride])
            tiles = np.arange(a, b)
            offsets = offset + (tiles - a) * block_n
            rest = np.broadcast_to([stride, begin, end], (len(tiles), 3))
            of_tiles.append(np.column_stack([tiles, offsets, rest]))
            for blocks in _neighbours(begin, end, block_m):
                block, tile = _grid(blocks, tiles)
                place = offset + (block - begin) * stride + (tile - a) * block_n
                same = [np.full_like(block, index), tile, place, np.full_like(block, stride)]
                logit_jobs.append(np.stack([block, np.minimum(block + block_m, end), *same], 1))
            offset += int(padded[index]) * stride
        starts = np.arange(begin, end, block_m)
        panels = np.broadcast_to([before, len(hidden_panels)], (len(starts), 2))
        stops = np.minimum(starts + block_m, end)
        hidden_jobs.append(np.column_stack([starts, stops, starts - begin, panels]))
    listed = _table(of_tiles, 5)
    listed = listed[np.argsort(listed[:, 0], kind="stable")]
    logits = _table(logit_jobs, 6)
    panels_of_rows = _table(hidden_panels, 4)
    for part in (logits[:, 4:], panels_of_rows[:, :2], listed[:, 1:3]):
        assert not (part % UNIT).any()
        part //= UNIT
    tiles, counts = np.unique(listed[:, 0], return_counts=True)
    ends = np.cumsum(counts)
    return BackwardPass(
        offset, logits, _table(hidden_jobs, 5), panels_of_rows,
        np.column_stack([tiles, ends - counts, ends]), np.ascontiguousarray(listed[:, 1:]),
    )  # fmt: skip
