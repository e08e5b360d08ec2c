"""Batches of packed rows from shards: a pure function of (corpus, seed, step, rank, world size).

No worker, no state: step and the corpus' hash say all, so a run resumes exactly and on another
number of ranks. Documents are shuffled and packed anew in every epoch. To train the unconditional
half of classifier-free guidance (Ho and Salimans, 2207.12598), a document may lose its prompt, by
a draw that depends on (seed, epoch, document). Knows ids and segments, no modality by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import Field

from polyglyph.config import Config
from polyglyph.data.packing import RowPlan, pack_rows
from polyglyph.data.shards import Shards
from polyglyph.errors import InputError
from polyglyph.sequence.grammar import Grammar

IGNORE = -100
_DROP, _ORDER, _ROWS = range(3)  # streams of random numbers


class DataConfig(Config):
    """`[data]` of a model run.

    shards: folder made by `prepare`. batch_size: rows of all ranks together. row_length: ids in a
    row. prompt_dropout: share of documents that lose their prompt in an epoch. prompt_weight: loss
    weight of segments that the shards give none: what a picture looks like is learned from those
    in prompts too. skip_long: leave out documents longer than a row instead of refusing them.
    """

    shards: str
    batch_size: int = Field(16, ge=1)
    row_length: int = Field(512, ge=8)
    prompt_dropout: float = Field(0.1, ge=0, le=1)
    prompt_weight: float = Field(0.0, ge=0)
    skip_long: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents. Of a position t, `targets`, `slots` and `weights` are those of the
    id at t + 1."""

    ids: np.ndarray  # (B, T) int64, padded with the vocabulary's pad id
    doc_id: np.ndarray  # (B, T) int32, counts documents in a row from 0; -1: padding
    positions: np.ndarray  # (B, T) int64, from 0 in every document
    targets: np.ndarray  # (B, T) int64: the next id of the same document, else -100
    slots: np.ndarray  # (B, T) int32, slot of the target; 0 where there is none
    weights: np.ndarray  # (B, T) float32, loss weight of the target; 0 where there is none
    documents: np.ndarray  # (n,) int64, which documents of the corpus these are, in order

    @property
    def n_ids(self) -> int:
        """Ids that are no padding."""
        return int((self.doc_id >= 0).sum())


class Loader:
    """`sample(step, rank, world)` → Batch. Raises InputError where a document is longer than a row.

    `grammar` may be the corpus' own (`shards.grammar`); slots are recomputed with it.
    """

    def __init__(self, shards: Shards, grammar: Grammar, config: DataConfig, seed: int = 0) -> None:
        self.shards, self.grammar, self.config, self.seed = shards, grammar, config, seed
        self._pad = grammar.vocabulary.control(grammar.dialect.pad or grammar.dialect.eos)
        self._full = shards.lengths.astype(np.int64)
        self._short = self._lengths_without_prompt()
        self._kept = self._fitting()
        self._first_row = [0]  # of each epoch that is known
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def n_skipped(self) -> int:
        """Documents left out because they are longer than a row."""
        return len(self._full) - len(self._kept)

    @property
    def manifest_sha256(self) -> str:
        return self.shards.sha256

    def _fitting(self) -> np.ndarray:
        room = self.config.row_length
        long = np.flatnonzero(self._full > room)
        if len(long) == len(self._full) or (len(long) and not self.config.skip_long):
            shard, place = self.shards.locate(int(long[0]))
            raise InputError(
                f"{len(long)} of {len(self._full)} documents are longer than data.row_length = "
                f"{room}: document {place} of {shard.name} has {self._full[long[0]]} ids (longest "
                f"{self._full.max()}); raise row_length, or set data.skip_long=true"
            )
        return np.flatnonzero(self._full <= room)

    def _lengths_without_prompt(self) -> np.ndarray:
        """Lengths once the segments of loss weight 0 are gone, where others remain."""
        lost = []
        for shard in self.shards.shards:
            prompt = np.where(shard.segments["loss_weight"] == 0, shard.segments["length"], 0)
            total = np.concatenate([[0], np.cumsum(prompt, dtype=np.int64)])
            lost.append(np.diff(total[shard.segment_offsets]))
        short = self._full - np.concatenate(lost)
        return np.where(short > 2, short, self._full)  # bos and eos stay always

    # Which documents stand in which row -----------------------------------------------------

    def _rng(self, stream: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream, epoch))

    def dropped(self, epoch: int) -> np.ndarray:
        """bool (n_documents,): documents that lose their prompt in this epoch."""
        draws = self._rng(_DROP, epoch).random(len(self._full))
        return (draws < self.config.prompt_dropout) & (self._short < self._full)

    def _make_plan(self, epoch: int) -> tuple[RowPlan, np.ndarray, np.ndarray]:
        """(plan, order of its rows, who lost the prompt) of an epoch."""
        dropped = self.dropped(epoch)
        lengths = np.where(dropped, self._short, self._full)
        order = self._rng(_ORDER, epoch).permutation(self._kept)
        plan = pack_rows(lengths, self.config.row_length, order)
        return plan, self._rng(_ROWS, epoch).permutation(plan.n_rows), dropped

    def _find_row(self, row: int) -> tuple[int, int]:
        """(epoch, row in it) of a row counted through all epochs."""
        while self._first_row[-1] <= row:
            plan, *_ = self._plan(len(self._first_row) - 1)
            self._first_row.append(self._first_row[-1] + plan.n_rows)
        epoch = int(np.searchsorted(self._first_row, row, side="right")) - 1
        return epoch, row - self._first_row[epoch]

    def padding(self, epoch: int = 0) -> float:
        """Share of positions that hold no id."""
        return self._plan(epoch)[0].padding

    # Batches ---------------------------------------------------------------------------------

    def sample(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Rows rank, rank + world, ... of the global batch of `step`."""
        size = self.config.batch_size
        if size % world:
            raise InputError(f"data.batch_size = {size} is no multiple of the {world} ranks")
        assert 0 <= rank < world and step >= 0
        length = self.config.row_length
        rows = [self._find_row(step * size + i) for i in range(rank, size, world)]
        shape = (len(rows), length)
        ids = np.full(shape, self._pad, np.int64)
        doc_id = np.full(shape, -1, np.int32)
        positions = np.zeros(shape, np.int64)
        id_weights = np.zeros(shape, np.float32)
        stretches: list[tuple[int, int]] = []
        documents: list[int] = []
        for b, (epoch, row) in enumerate(rows):
            plan, order, dropped = self._plan(epoch)
            start = 0
            for k, document in enumerate(plan.row(order[row]).tolist()):
                piece, weights, segments = self._document(document, bool(dropped[document]))
                part = slice(start, start + len(piece))
                ids[b, part], id_weights[b, part], doc_id[b, part] = piece, weights, k
                positions[b, part] = np.arange(len(piece))
                stretches += [(b * length + start + s, n) for s, n in segments]
                documents.append(document)
                start += len(piece)
        slots = self.grammar.slots_of(ids.reshape(-1), stretches).reshape(shape)
        return _shifted(ids, doc_id, positions, slots, id_weights, documents)

    def _document(
        self, document: int, drop: bool
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
        """ids, loss weight of each, and (start, length) of the segments that stay."""
        ids, segments = self.shards.document(document)
        starts, lengths = segments["start"].tolist(), segments["length"].tolist()
        weights = np.zeros(len(ids), np.float32)  # bos carries none
        for start, _, weight in zip(starts, lengths, segments["loss_weight"], strict=True):
            # eos has the weight of the last segment.
            weights[start:] = weight or self.config.prompt_weight
        if not drop:
            return ids, weights, list(zip(starts, lengths, strict=True))
        keep = np.ones(len(ids), bool)
        stay, place = [], 1
        for start, length, weight in zip(starts, lengths, segments["loss_weight"], strict=True):
            if weight == 0:
                keep[start : start + length] = False
            else:
                stay.append((place, length))
                place += length
        return ids[keep], weights[keep], stay


def _shifted(
    ids: np.ndarray,
    doc_id: np.ndarray,
    positions: np.ndarray,
    slots: np.ndarray,
    id_weights: np.ndarray,
    documents: list[int],
) -> Batch:
    """From what holds of an id to what holds of the position before it."""
    follows = np.zeros(ids.shape, bool)
    follows[:, :-1] = (doc_id[:, 1:] == doc_id[:, :-1]) & (doc_id[:, 1:] >= 0)
    return Batch(
        ids=ids,
        doc_id=doc_id,
        positions=positions,
        targets=np.where(follows, np.roll(ids, -1, 1), IGNORE),
        slots=np.where(follows, np.roll(slots, -1, 1), 0).astype(np.int32),
        weights=np.where(follows, np.roll(id_weights, -1, 1), 0).astype(np.float32),
        documents=np.array(documents, np.int64),
    )
