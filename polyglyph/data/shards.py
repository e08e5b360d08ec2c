"""The shard format (version 1): flat ids, offsets of documents, segments, counts and hashes.

    manifest.json vocabulary.json shard-00000.{ids,docs,segments}.npy shard-00000.json ...

A shard is complete when its .json stands there: it is written last. Opening checks format, sizes,
hashes and that the ids belong to the vocabulary and the codecs at hand. Knows nothing of media.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from polyglyph.checkpoint import atomic_file, check_format, sha256_file, shown
from polyglyph.errors import FormatError, InputError
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.layout import Dialect
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import SpanSpec

FORMAT = 1
MANIFEST = "manifest.json"
PARTS = ("ids", "docs", "segments")
# start: place of the segment's first id in the shard's ids; modality: index into the manifest's.
SEGMENT = np.dtype(
    [("start", "<i8"), ("length", "<i4"), ("modality", "i1"), ("loss_weight", "<f4")]
)


def ids_dtype(vocabulary_size: int) -> np.dtype:
    """uint16 where every id fits into it, else uint32."""
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


def shard_name(index: int) -> str:
    return f"shard-{index:05d}"


def part_path(folder: Path, name: str, part: str) -> Path:
    return folder / f"{name}.{part}.npy"


def grammar_json(grammar: Grammar) -> dict[str, Any]:
    """What a manifest says of the grammar, beside the vocabulary in its own file."""
    said = {
        "vocabulary_sha256": grammar.vocabulary.sha256,
        "vocabulary_size": grammar.vocabulary.size,
        "dialect": grammar.dialect.to_json(),
        "specs": {span: spec.to_json() for span, spec in grammar.specs.items()},
        "fingerprints": {span: grammar.fingerprints.get(span, "") for span in grammar.specs},
    }
    return json.loads(json.dumps(said))  # as it will be read back: lists, no tuples


def read_json(path: Path, what: str) -> dict[str, Any]:
    """FormatError if the file is missing, no JSON object, or of a newer format."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{shown(path)} is missing; {what} is not complete") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{shown(path)} can't be read as JSON: {error}") from error
    check_format(data, what, path, FORMAT)
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_file(path, force=True) as temporary:
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, "utf-8")


def write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Writes a .npy whole or not at all; its {sha256, bytes}."""
    with atomic_file(path, force=True) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
        return {"sha256": sha256_file(temporary), "bytes": temporary.stat().st_size}


def is_done(folder: Path, name: str, settings: Mapping[str, Any]) -> bool:
    """True if shard `name` is complete, was made with `settings` and its files have their sizes."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return False
    data = read_json(path, f"shard {name}")
    if not data.get("done") or data.get("settings") != settings:
        return False
    for part in PARTS:
        file, entry = part_path(folder, name, part), data["files"].get(part, {})
        if not file.is_file() or file.stat().st_size != entry.get("bytes"):
            return False
    return True


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped."""

    name: str
    ids: np.ndarray  # (n_ids,) uint16 or uint32
    docs: np.ndarray  # (n_documents + 1,) int64 offsets into ids
    segments: np.ndarray  # (n_segments,) SEGMENT
    info: dict[str, Any]

    @cached_property
    def segment_offsets(self) -> np.ndarray:
        """(n_documents + 1,): document d has segments[offsets[d] : offsets[d + 1]]."""
        return np.searchsorted(self.segments["start"], self.docs)


class Shards:
    """A prepared corpus, opened and checked: `shards[i]`, documents counted through all of them.

    `expected` is the grammar of whoever reads: other vocabulary, dialect or codecs are refused.
    `verify` reads every byte once and compares its sha256.
    """

    def __init__(
        self, path: str | Path, expected: Grammar | None = None, *, verify: bool = True
    ) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"shards {shown(self.path)}: no such folder; make it with `prepare`")
        self.manifest = read_json(self.path / MANIFEST, "shard folder")
        if not self.manifest.get("done"):
            raise FormatError(
                f"shards {shown(self.path)} are not finished; run the same `prepare` again"
            )
        if expected is not None:
            self._check_grammar(expected)
        self.shards = [self._open(name, verify) for name in self.manifest["shards"]]
        if not self.shards:
            raise FormatError(f"shards {shown(self.path)} hold no shard; prepare them anew")
        counts = [len(shard.docs) - 1 for shard in self.shards]
        self.first_document = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.lengths = np.concatenate([np.diff(shard.docs) for shard in self.shards])

    @property
    def n_documents(self) -> int:
        return int(self.first_document[-1])

    @property
    def n_ids(self) -> int:
        return int(self.lengths.sum())

    @property
    def modalities(self) -> list[str]:
        return list(self.manifest["modalities"])

    @cached_property
    def sha256(self) -> str:
        """Of what was prepared: grammar, source and the hashes of all shards' files."""
        hashes = [shard.info["files"] for shard in self.shards]
        said = {k: self.manifest[k] for k in ("grammar", "source", "modalities")}
        text = json.dumps([said, hashes], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def grammar(self) -> Grammar:
        """The grammar that the manifest describes (without metas): enough to spell and to parse."""
        said = self.manifest["grammar"]
        vocabulary = Vocabulary.from_json(read_json(self.path / "vocabulary.json", "vocabulary"))
        if vocabulary.sha256 != said["vocabulary_sha256"]:
            raise FormatError(
                f"{shown(self.path / 'vocabulary.json')} is not the vocabulary of its manifest; "
                "the folder is damaged, prepare it anew"
            )
        specs = {span: SpanSpec.from_json(spec) for span, spec in said["specs"].items()}
        dialect = Dialect.from_json(said["dialect"])
        return Grammar(dialect, vocabulary, specs, said["fingerprints"])

    def locate(self, document: int) -> tuple[Shard, int]:
        """The shard of a document and its place there."""
        index = int(np.searchsorted(self.first_document, document, side="right")) - 1
        return self.shards[index], document - int(self.first_document[index])

    def document(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids (T,) int64, its segments (SEGMENT) with `start` counted from the document's)."""
        shard, place = self.locate(document)
        start, stop = shard.docs[place], shard.docs[place + 1]
        first, last = shard.segment_offsets[place], shard.segment_offsets[place + 1]
        segments = np.array(shard.segments[first:last])
        segments["start"] -= start
        return np.asarray(shard.ids[start:stop]).astype(np.int64), segments

    def _check_grammar(self, expected: Grammar) -> None:
        said, due = self.manifest["grammar"], grammar_json(expected)
        where = f"shards {shown(self.path)}"
        for span, mark in due["fingerprints"].items():
            found = said["fingerprints"].get(span, mark)
            if found != mark:
                raise FormatError(
                    f"{where} hold {span} codes of codec {found[:12]}, expected codec {mark[:12]}; "
                    "prepare them with this codec, or take that codec"
                )
        if said["vocabulary_sha256"] != due["vocabulary_sha256"]:
            raise FormatError(
                f"{where} are of vocabulary {said['vocabulary_sha256'][:12]}, expected "
                f"{due['vocabulary_sha256'][:12]}; prepare them with this vocabulary"
            )
        if said["dialect"] != due["dialect"]:
            raise FormatError(
                f"{where} are of dialect {said['dialect'].get('name')!r} with other layouts than "
                f"{due['dialect']['name']!r} has here; prepare them anew"
            )

    def _open(self, name: str, verify: bool) -> Shard:
        info = read_json(self.path / f"{name}.json", f"shard {name}")
        ids, docs, segments = (self._array(name, part, info, verify) for part in PARTS)
        shard = Shard(name, ids, docs, segments, info)
        self._check_counts(shard, verify)
        return shard

    def _array(self, name: str, part: str, info: dict[str, Any], verify: bool) -> np.ndarray:
        path = part_path(self.path, name, part)
        entry = info.get("files", {}).get(part, {})
        advice = "delete it and run the same `prepare` again"
        if not path.is_file():
            raise FormatError(f"shard {name}: {path.name} is missing; {advice}")
        size = path.stat().st_size
        due = entry.get("bytes")
        if size != due:
            raise FormatError(
                f"shard {name}: {path.name} has {size} bytes, expected {due}; {advice}"
            )
        if verify and sha256_file(path) != entry["sha256"]:
            raise FormatError(f"shard {name}: {path.name} doesn't match its sha256; {advice}")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise FormatError(f"shard {name}: {path.name} is no array: {error}") from error

    def _check_counts(self, shard: Shard, verify: bool) -> None:
        size = self.manifest["grammar"]["vocabulary_size"]
        name, info = shard.name, shard.info
        good = (
            shard.ids.dtype == ids_dtype(size)
            and shard.docs.dtype == np.int64
            and shard.segments.dtype == SEGMENT
            and len(shard.ids) == info["n_ids"] == (shard.docs[-1] if len(shard.docs) else -1)
            and len(shard.docs) == info["n_documents"] + 1
            and len(shard.segments) == info["n_segments"]
        )
        if not good:
            raise FormatError(
                f"shard {name}: its arrays ({shard.ids.dtype}, {len(shard.ids)} ids) disagree with "
                f"{name}.json and a vocabulary of {size} ids; prepare it anew"
            )
        if verify and len(shard.ids) and int(shard.ids.max()) >= size:
            place = int(np.argmax(shard.ids))
            raise FormatError(
                f"shard {name}: id {int(shard.ids[place])} at position {place} is outside the "
                f"vocabulary of {size} ids; prepare it anew"
            )


def segment_rows(
    stretches: Sequence[tuple[int, int, str, float]], base: int, modalities: Sequence[str]
) -> list[tuple[int, int, int, float]]:
    """Rows of the segment array for a document whose first id stands at `base` of the shard."""
    return [(base + s, n, modalities.index(m), w) for s, n, m, w in stretches]
