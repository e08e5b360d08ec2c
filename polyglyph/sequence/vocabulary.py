"""The joint vocabulary: (span, codebook, code) to id and back, and the control ids by name.

Append-only: an entry, once there, never moves; a growing vocabulary only adds ids at its end (or
takes a begin and an end id that were reserved for it). Saved with the checkpoint and read from
there, never derived from the order of a table. Knows nothing of layouts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from polyglyph.errors import FormatError, unknown
from polyglyph.tokenizers.base import SpanSpec, check_format

FORMAT = 1
SIZE_SPAN = "size"
# Begin ids stand side by side so that "any begin id" is one range of a slot, however many
# modalities are added later; ids of these blocks that no span has taken yet are legal nowhere.
N_RESERVED = 16


@dataclass(frozen=True)
class Entry:
    """The ids of one codebook of one span: a run from `start`, or an arbitrary map `ids`."""

    span: str
    codebook: int
    size: int
    start: int = 0
    ids: tuple[int, ...] = ()  # if given: ids[code], and `start` is not used

    def __post_init__(self) -> None:
        assert self.size >= 1 and self.codebook >= 0 and self.start >= 0
        assert not self.ids or len(self.ids) == len(set(self.ids)) == self.size

    @cached_property
    def table(self) -> np.ndarray:
        """ids of the codes 0..size-1, int64 (size,)."""
        if self.ids:
            return np.array(self.ids, np.int64)
        return np.arange(self.start, self.start + self.size, dtype=np.int64)


class Vocabulary:
    """Immutable. `size` counts all rows of head and embedding, unused ones included."""

    def __init__(
        self, entries: Iterable[Entry], controls: Mapping[str, int], size: int | None = None
    ) -> None:
        self.entries = tuple(entries)
        self.controls = dict(controls)
        top = max([*self.controls.values(), *(int(e.table.max()) for e in self.entries)]) + 1
        self.size = top if size is None else size
        self._entry_of = np.full(self.size, -1, np.int32)
        self._code_of = np.full(self.size, -1, np.int32)
        self._index = {(e.span, e.codebook): i for i, e in enumerate(self.entries)}
        if top > self.size or len(self._index) != len(self.entries):
            raise FormatError(
                f"a vocabulary of {self.size} ids has an id {top - 1} or a span twice"
            )
        for i, entry in enumerate(self.entries):
            taken = self._entry_of[entry.table] >= 0
            if taken.any():
                raise FormatError(f"id {entry.table[taken][0]} stands for two codes")
            self._entry_of[entry.table] = i
            self._code_of[entry.table] = np.arange(entry.size)
        ids = list(self.controls.values())
        if len(set(ids)) != len(ids) or any(self._entry_of[i] >= 0 for i in ids):
            raise FormatError("a control id is used twice, or is the id of a code")
        self._name_of = {i: name for name, i in self.controls.items()}

    @classmethod
    def build(cls, specs: Iterable[SpanSpec], *, n_sizes: int = 512) -> Vocabulary:
        """Our own: controls, size ids for 1..`n_sizes`, then the spans in the order given."""
        names = ["pad", "bos", "row_end", "frame_end", "eos"]
        controls = {name: i for i, name in enumerate(names)}
        first = len(names)
        controls |= {f"reserved_begin_{i}": first + i for i in range(N_RESERVED)}
        controls |= {f"reserved_end_{i}": first + N_RESERVED + i for i in range(N_RESERVED)}
        sizes = Entry(SIZE_SPAN, 0, n_sizes, first + 2 * N_RESERVED)
        return cls([sizes], controls).extend(specs)

    def extend(self, specs: Iterable[SpanSpec]) -> Vocabulary:
        """A new vocabulary with these spans added; no id that was there moves."""
        entries, controls, size = list(self.entries), dict(self.controls), self.size
        for spec in specs:
            if f"begin_{spec.span}" in controls:
                raise FormatError(f"span {spec.span!r} is already in the vocabulary")
            for side in ("begin", "end"):
                free = [n for n in controls if n.startswith(f"reserved_{side}_")]
                if free:
                    controls[f"{side}_{spec.span}"] = controls.pop(
                        min(free, key=lambda name: controls[name])
                    )
                else:
                    controls[f"{side}_{spec.span}"] = size
                    size += 1
            for codebook in range(spec.n_codebooks):
                entries.append(Entry(spec.span, codebook, spec.codebook_size, size))
                size += spec.codebook_size
        return Vocabulary(entries, controls, size)

    @property
    def spans(self) -> tuple[str, ...]:
        """Names of the spans in order, the size span among them."""
        return tuple(dict.fromkeys(e.span for e in self.entries))

    def entry(self, span: str, codebook: int = 0) -> Entry:
        """InputError with the nearest name if the vocabulary has no such span."""
        if (span, codebook) not in self._index:
            raise unknown("span", f"{span}.{codebook}", [f"{s}.{q}" for s, q in self._index])
        return self.entries[self._index[span, codebook]]

    def control(self, name: str) -> int:
        if name not in self.controls:
            raise unknown("control id", name, self.controls)
        return self.controls[name]

    def id(self, span: str, codebook: int, code: int) -> int:
        return int(self.ids(span, codebook, np.array([code]))[0])

    def ids(self, span: str, codebook: int, codes: np.ndarray) -> np.ndarray:
        """ids int64 of codes of one codebook, any shape; the codes have been range-checked."""
        entry = self.entry(span, codebook)
        assert codes.size == 0 or 0 <= codes.min() <= codes.max() < entry.size
        return entry.table[codes] if entry.ids else codes.astype(np.int64) + entry.start

    def locate(self, id: int) -> tuple[str, int, int] | None:
        """(span, codebook, code) of an id; None for a control id, an unused one or one outside."""
        if not 0 <= id < self.size or self._entry_of[id] < 0:
            return None
        entry = self.entries[self._entry_of[id]]
        return entry.span, entry.codebook, int(self._code_of[id])

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """code int32 of each id inside the vocabulary, any shape; -1 where it is no code."""
        return self._code_of[ids]

    def entry_index(self, ids: np.ndarray) -> np.ndarray:
        """Index into `entries` of each id inside the vocabulary; -1 where it is no code."""
        return self._entry_of[ids]

    def name_of(self, id: int) -> str:
        """What a person calls the id: "begin_image", "image 513", "audio.2 17", "unused"."""
        if id in self._name_of:
            return self._name_of[id]
        found = self.locate(id)
        if found is None:
            return "unused" if 0 <= id < self.size else "outside the vocabulary"
        span, codebook, code = found
        if span == SIZE_SPAN:
            return f"{span} {code + 1}"
        several = (span, 1) in self._index
        return f"{span}.{codebook} {code}" if several else f"{span} {code}"

    def to_json(self) -> dict[str, Any]:
        spans = []
        for e in self.entries:
            where = {"ids": list(e.ids)} if e.ids else {"start": e.start}
            spans.append({"span": e.span, "codebook": e.codebook, "size": e.size, **where})
        return {"format": FORMAT, "size": self.size, "controls": self.controls, "spans": spans}

    @classmethod
    def from_json(cls, data: Any) -> Vocabulary:
        """Inverse of `to_json`. FormatError if this is no vocabulary or contradicts itself."""
        try:
            check_format(data["format"], "vocabulary.json")
            entries = []
            for span in data["spans"]:
                where = {"start": span["start"]} if "start" in span else {"ids": tuple(span["ids"])}
                entries.append(Entry(span["span"], span["codebook"], span["size"], **where))
            return cls(entries, data["controls"], data["size"])
        except (KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
            raise FormatError(f"this is not a vocabulary: {error!r}") from error

    @cached_property
    def sha256(self) -> str:
        """Of the canonical JSON: two vocabularies with one hash agree on every id."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.sha256)
