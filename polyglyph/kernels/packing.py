"""Where the documents of a packed batch lie, and which keys each query sees.

Every visible set is one interval: with documents contiguous, query i sees the keys from its
document's first (or the window's) to max(i, prefix_end[i]), so a mask of (T, T) is never needed:
a handful of int32 vectors of T says it all, as in FlashMask (arXiv:2410.01359). Knows nothing of
heads, models or media."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# A document joins a bucket when it is at least this share of the bucket's longest.
FILL = 0.8


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length, side by side."""

    index: Tensor  # (n, L) int64 flat positions; short documents repeat their last
    padding: tuple[Tensor, Tensor]  # (row, column) of each such repetition
    last: Tensor | None  # (n, L) int64 last visible place of the document; None: causal


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the documents of a packed batch lie; made once per forward, read by every layer."""

    doc_id: Tensor  # (B, T) int; negative is padding
    prefix_end: Tensor | None  # (B, T) int, places in the row; None: causal
    positions: Tensor  # (B, T) int64, restarting at 0 in every document
    start: Tensor  # (B, T) int64, the document's first place in the row
    stop: Tensor  # (B, T) int64, one after its last

    @property
    def last(self) -> Tensor:
        """(B, T) int64: the last key each query sees; padding: one before the row."""
        place = self.start + self.positions
        last = place if self.prefix_end is None else torch.maximum(place, self.prefix_end)
        return torch.minimum(last, self.stop - 1).masked_fill(self.doc_id < 0, -1)

    def mask(self) -> Tensor:
        """(B, 1, T, T) bool, the definition written out; for tests and peers only."""
        doc = self.doc_id
        keys = torch.arange(doc.shape[1], device=doc.device)
        visible = (doc.unsqueeze(2) == doc.unsqueeze(1)) & (doc >= 0).unsqueeze(2)
        return (visible & (keys <= self.last.unsqueeze(2))).unsqueeze(1)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Every position that isn't padding, once."""
        flat = self.positions.view(-1)
        starts = ((flat == 0) & (self.doc_id.reshape(-1) >= 0)).nonzero().squeeze(1)
        lengths = (self.stop - self.start).view(-1)[starts]
        last = None
        if self.prefix_end is not None:
            last = (self.last - self.start).view(-1)
        return _make_buckets(starts, lengths, last)

    @cached_property
    def inverse(self) -> Tensor:
        """(B * T,) place in the joined buckets; the one after their end: padding."""
        flat = self.positions.view(-1)
        inverse = torch.full_like(flat, sum(bucket.index.numel() for bucket in self.buckets))
        begin = 0
        for bucket in self.buckets:
            places = torch.arange(begin, begin + bucket.index.numel(), device=flat.device)
            columns = torch.arange(bucket.index.shape[1], device=flat.device)
            real = flat[bucket.index] == columns
            inverse[bucket.index[real]] = places.view(real.shape)[real]
            begin += bucket.index.numel()
        return inverse

    @cached_property
    def bounds(self) -> Tensor:
        """(5, B, T) int32, what a kernel by tiles needs to know; computed in O(B T), no sync.

        As a query: 0 first place of the document, 1 last visible key. As a key: 2 one after the
        document, 3 the earliest query that sees it, which a prefix puts before the key itself,
        4 the earliest from which on every query of the document does. The window is left to the
        kernel. Padding: nothing sees it, it sees nothing.
        """
        batch, length = self.doc_id.shape
        place, padding, last = self.start + self.positions, self.doc_id < 0, self.last
        earliest = steady = place
        if self.prefix_end is not None:
            ends = last.clamp_min(0)
            # Smallest query by where its view ends; a key is seen by those ending at or after it.
            smallest = torch.full_like(place, length)
            smallest.scatter_reduce_(1, ends, place.masked_fill(padding, length), "amin")
            earliest = smallest.flip(1).cummin(1).values.flip(1)
            # Largest query whose view ends before the key: it and no later one misses the key.
            largest = torch.full_like(place, -1)
            largest.scatter_reduce_(1, ends, place.masked_fill(padding, -1), "amax")
            largest = largest.cummax(1).values
            before = torch.cat([largest.new_full((batch, 1), -1), largest[:, :-1]], 1)
            steady = torch.maximum(before + 1, self.start)
        first, earliest, steady = (
            x.masked_fill(padding, length) for x in (self.start, earliest, steady)
        )
        stop = self.stop.masked_fill(padding, 0)
        return torch.stack([first, last, stop, earliest, steady]).int()

    def n_visible(self, window: int | None = None) -> int:
        """Pairs of a query and a key it sees: what a kernel can't avoid computing."""
        first = self.start
        if window is not None:
            first = torch.maximum(first, first + self.positions - window)
        return int((self.last - first + 1).masked_fill(self.doc_id < 0, 0).sum())


def pack(doc_id: Tensor, prefix_end: Tensor | None = None) -> Packing:
    """Find the documents of doc_id (B, T) int: runs of one number; negative: padding, output 0.

    prefix_end (B, T) int: query i sees key j of its document where j <= max(i, prefix_end[i]), both
    places in the row, so a block of places that all name the block's last is bidirectional inside;
    values beyond the document stop at its end. Default: causal. ValueError where a number comes
    back in a row after another (documents are contiguous), and for what isn't such a pair.
    """
    if doc_id.ndim != 2 or not doc_id.numel():
        raise ValueError(f"doc_id must be (B, T), neither of them 0, got {tuple(doc_id.shape)}")
    _check_integers("doc_id", doc_id)
    if prefix_end is not None:
        _check_integers("prefix_end", prefix_end)
        if prefix_end.shape != doc_id.shape or prefix_end.device != doc_id.device:
            raise ValueError(
                f"prefix_end is {tuple(prefix_end.shape)} on {prefix_end.device}, "
                f"doc_id {tuple(doc_id.shape)} on {doc_id.device}"
            )
    length = doc_id.shape[1]
    place = torch.arange(length, device=doc_id.device).expand(doc_id.shape)
    new = place == 0
    new[:, 1:] |= doc_id[:, 1:] != doc_id[:, :-1]
    _check_contiguous(doc_id, new)
    start = place.masked_fill(~new, 0).cummax(1).values
    ends = torch.full_like(place, length)
    ends[:, :-1] = place[:, 1:].masked_fill(~new[:, 1:], length)
    stop = ends.flip(1).cummin(1).values.flip(1)
    return Packing(doc_id, prefix_end, place - start, start, stop)


def _make_buckets(starts: Tensor, lengths: Tensor, last: Tensor | None) -> list[Bucket]:
    """The documents, longest first, cut where one would be mostly padding."""
    lengths, order = lengths.sort(descending=True, stable=True)
    starts, sizes = starts[order], lengths.tolist()
    buckets, begin = [], 0
    for i in range(len(sizes) + 1):
        if i == len(sizes) or sizes[i] < FILL * sizes[begin]:
            if i > begin:
                columns = torch.arange(sizes[begin], device=starts.device)
                end = lengths[begin:i, None] - 1
                index = starts[begin:i, None] + torch.minimum(columns, end)
                rows, places = (columns > end).nonzero(as_tuple=True)
                # A repetition sees itself, whatever the window: dropped weights, but finite.
                seen = None if last is None else last[index].where(columns <= end, columns)
                buckets.append(Bucket(index, (rows, places), seen))
            begin = i
    return buckets


def _check_contiguous(doc_id: Tensor, new: Tensor) -> None:
    rows, columns = new.nonzero(as_tuple=True)
    docs = doc_id[rows, columns]
    pairs = torch.stack([rows, docs.long()], 1)[docs >= 0]
    if len(torch.unique(pairs, dim=0)) != len(pairs):
        raise ValueError("doc_id: a document's ids must be contiguous in their row")


def _check_integers(name: str, x: Tensor) -> None:
    if x.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"{name} must hold integers, got {x.dtype}")
