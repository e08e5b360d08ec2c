"""Turns a source into shards of ids: encode, render, write, in one process.

A shard is a pure function of (source, shard index), so a killed run continues at the first shard
that is missing. Media are encoded in batches across documents, equal ones once. An item that
can't be read is skipped and recorded in errors.jsonl. Knows no modality by name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyglyph.checkpoint import atomic_file, shown
from polyglyph.data.shards import (
    FORMAT,
    MANIFEST,
    SEGMENT,
    grammar_json,
    ids_dtype,
    is_done,
    part_path,
    read_json,
    segment_rows,
    shard_name,
    write_array,
    write_json,
)
from polyglyph.errors import InputError, MachineError
from polyglyph.media import load
from polyglyph.sequence.document import Document, Segment
from polyglyph.sequence.grammar import Grammar, Rendered
from polyglyph.tokenizers.base import CodeGrid, Tokenizer

ITEMS_PER_SHARD = 4096
# Items whose media are held and encoded together.
ITEMS_PER_BLOCK = 64


class DocumentSource(Protocol):
    """What `prepare` reads: items by index; an item is one or more documents."""

    name: str
    length: int | None  # None: endless

    def get(self, index: int) -> list[Document]: ...


@dataclass
class Prepared:
    """What `prepare` did. `n_made` shards are new, the others stood there already."""

    path: Path
    n_documents: int = 0
    n_ids: int = 0
    n_shards: int = 0
    n_made: int = 0
    seconds: float = 0.0
    errors: list[dict[str, Any]] = field(default_factory=list)


Progress = Callable[[int, int], None]  # items done, items in all


def describe(source: Any) -> dict[str, Any]:
    """{name, its public plain attributes}: what makes two runs of a source the same."""
    plain = (str, int, float, bool, dict, list, tuple, type(None))
    found = {k: v for k, v in vars(source).items() if not k.startswith("_")}
    said = {k: v for k, v in sorted(found.items()) if isinstance(v, plain)}
    return json.loads(json.dumps({"name": source.name, **said}))


def prepare(
    source: DocumentSource,
    tokenizers: Mapping[str, Tokenizer],
    grammar: Grammar,
    out: str | Path,
    *,
    n: int | None = None,
    items_per_shard: int = ITEMS_PER_SHARD,
    reread: float = 0.0,
    progress: Progress | None = None,
) -> Prepared:
    """Writes items 0..n-1 of `source` (all, if it ends) as shards into folder `out`.

    tokenizers: by span. reread: the share of the media without loss (prompts) that are decoded and
    encoded again, so that a model learns to read what a codec gave. Run again it makes only what is
    missing; a larger `n` adds shards. Raises InputError where `out` holds something else or shards
    of other settings, or where not one document could be made; MachineError when the disk is full,
    with whole shards kept.
    """
    started = time.perf_counter()
    out, n = Path(out), _n_items(source, n)
    assert items_per_shard > 0
    _check_tokenizers(tokenizers, grammar)
    modalities = list(dict.fromkeys(spec.modality for spec in grammar.specs.values()))
    settings = {
        "source": describe(source),
        "grammar": grammar_json(grammar),
        "modalities": modalities,
        "items_per_shard": items_per_shard,
    }
    if reread:  # left out at 0: shards that were made before keep their settings
        settings["reread"] = reread
    is_new = not (out / MANIFEST).is_file()
    _open_folder(out, settings, grammar)
    result = Prepared(out)
    names = []
    for index, first in enumerate(range(0, n, items_per_shard)):
        items = range(first, min(first + items_per_shard, n))
        name = shard_name(index)
        said = {**_digest(settings), "items": [items.start, items.stop]}
        if not is_done(out, name, said):
            made = ShardWriter(source, tokenizers, grammar, modalities, reread)
            made.read(items, first, n, progress or _quiet)
            made.write(out, name, said)
            result.n_made += 1
        (progress or _quiet)(items.stop, n)
        info = read_json(out / f"{name}.json", f"shard {name}")
        result.n_documents += info["n_documents"]
        result.n_ids += info["n_ids"]
        result.errors += info["errors"]
        names.append(name)
    result.n_shards = len(names)
    if not result.n_documents:
        why = result.errors[0]["message"] if result.errors else "its items hold no documents"
        if is_new:
            shutil.rmtree(out)
        raise InputError(f"not one document could be made of source {source.name}: {why}")
    _write_errors(out, result.errors)
    write_json(out / MANIFEST, {"format": FORMAT, **_manifest(settings, grammar), "shards": names,
                                "n": n, "done": True})  # fmt: skip
    result.seconds = time.perf_counter() - started
    return result


def _quiet(done: int, total: int) -> None:
    """Progress for nobody."""


def _n_items(source: DocumentSource, n: int | None) -> int:
    if source.length is None and n is None:
        raise InputError(f"source {source.name} is endless; say how many items to take (n)")
    if n is not None and n < 1:
        raise InputError(f"the number of items is a whole number from 1; got {n}")
    if source.length is None:
        assert n is not None
        return n
    return source.length if n is None else min(n, source.length)


def _check_tokenizers(tokenizers: Mapping[str, Tokenizer], grammar: Grammar) -> None:
    for span, tokenizer in tokenizers.items():
        due = grammar.fingerprints.get(span, tokenizer.fingerprint)
        assert span == tokenizer.span and due == tokenizer.fingerprint, (span, due)


def _digest(settings: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return {"settings_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _manifest(settings: Mapping[str, Any], grammar: Grammar) -> dict[str, Any]:
    dtype = ids_dtype(grammar.vocabulary.size).name
    return {"kind": "shards", "dtype": dtype, **settings}


def _open_folder(out: Path, settings: Mapping[str, Any], grammar: Grammar) -> None:
    """A new folder, or one of the same settings."""
    path = out / MANIFEST
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                f"output {shown(out)} exists and holds no shards; choose another name for them"
            )
        write_json(out / "vocabulary.json", grammar.vocabulary.to_json())
        empty = {"format": FORMAT, **_manifest(settings, grammar), "shards": [], "done": False}
        write_json(path, empty)
        return
    found = read_json(path, "shard folder")
    for key in dict.fromkeys((*settings, "reread")):
        due = settings.get(key)
        if found.get(key) != due:
            what = _difference(found, due, key)
            raise InputError(
                f"output {shown(out)} holds shards of another {key}: {what}; choose another "
                "folder, or delete this one"
            )


def _difference(found: Mapping[str, Any], due: Any, key: str) -> str:
    """The first value that differs, as a person would want to read it."""
    old = found.get(key)
    if isinstance(old, dict) and isinstance(due, dict):
        for name in due:
            if old.get(name) != due[name]:
                return f"{name} was {_short(old.get(name))} and is {_short(due[name])}"
    return f"it was {_short(old)} and is {_short(due)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def _write_errors(out: Path, errors: Sequence[Mapping[str, Any]]) -> None:
    path = out / "errors.jsonl"
    if errors or path.exists():
        with atomic_file(path, force=True) as temporary:
            lines = (json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
            temporary.write_text("".join(lines), "utf-8")


class ShardWriter:
    """Collects the documents of one shard, then writes it."""

    def __init__(
        self,
        source: DocumentSource,
        tokenizers: Mapping[str, Tokenizer],
        grammar: Grammar,
        modalities: Sequence[str],
        reread: float = 0.0,
    ) -> None:
        self.source, self.tokenizers, self.grammar = source, tokenizers, grammar
        self.reread = reread
        self.modalities = list(modalities)
        self.dtype = ids_dtype(grammar.vocabulary.size)
        self.ids: list[np.ndarray] = []
        self.offsets = [0]
        self.segments: list[tuple[int, int, int, float]] = []
        self.errors: list[dict[str, Any]] = []

    def read(self, items: range, done: int, total: int, progress: Progress) -> None:
        """Documents of these items; `done` of the `total` items lie before them."""
        for start in range(items.start, items.stop, ITEMS_PER_BLOCK):
            block = range(start, min(start + ITEMS_PER_BLOCK, items.stop))
            documents = [pair for index in block for pair in self._get(index)]
            encode_segments([d for _, d in documents], self.tokenizers)
            chosen = [s for i, d in documents for s in self._to_reread(i, d)]
            reread_segments(chosen, self.tokenizers)
            for index, document in documents:
                self._add(index, document)
            progress(done + block.stop - items.start, total)

    def _to_reread(self, index: int, document: Document) -> list[Segment]:
        """All media without loss of a document, or none; drawn by the item's index."""
        if not self.reread:
            return []
        draw = np.random.default_rng((index, len(document))).random()
        given = [s for s in document if not s.loss_weight and not isinstance(s.content, str)]
        return given if draw < self.reread else []

    def _get(self, index: int) -> list[tuple[int, Document]]:
        try:
            return [(index, document) for document in self.source.get(index)]
        except InputError as error:
            self._skip(index, error)
            return []

    def _add(self, index: int, document: Document) -> None:
        try:
            for segment in document:
                if segment.codes is None:  # it failed in its batch: once more for its own error
                    segment.codes = self.tokenizers[segment.codec].encode(content(segment))
            rendered: Rendered = self.grammar.render(document)
        except InputError as error:
            self._skip(index, error)
            return
        base = self.offsets[-1]
        self.ids.append(rendered.ids.astype(self.dtype))
        self.offsets.append(base + len(rendered.ids))
        self.segments += segment_rows(rendered.segments, base, self.modalities)

    def _skip(self, index: int, error: InputError) -> None:
        where = getattr(self.source, "where", None)
        what = where(index) if where is not None else f"{self.source.name} {index}"
        entry = {"source": what, "type": type(error).__name__, "message": str(error)}
        if entry not in self.errors[-2:]:
            self.errors.append(entry)

    def write(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        """The three arrays, then the .json that makes the shard count."""
        arrays = {
            "ids": np.concatenate(self.ids) if self.ids else np.zeros(0, self.dtype),
            "docs": np.array(self.offsets, np.int64),
            "segments": np.array(self.segments, SEGMENT),
        }
        files = {}
        for part, array in arrays.items():
            try:
                files[part] = write_array(part_path(folder, name, part), array)
            except MachineError as error:
                needed = sum(a.nbytes for a in arrays.values())
                raise MachineError(f"shard {name} needs {needed} bytes: {error}") from error
        info = {
            "format": FORMAT,
            "done": True,
            "settings": dict(settings),
            "n_ids": len(arrays["ids"]),
            "n_documents": len(arrays["docs"]) - 1,
            "n_segments": len(arrays["segments"]),
            "dtype": self.dtype.name,
            "files": files,
            "errors": self.errors,
        }
        write_json(folder / f"{name}.json", info)


def content(segment: Segment) -> Any:
    """The text or medium of a segment, loaded if it is a path."""
    if isinstance(segment.content, Path):
        segment.content = load(segment.content, modality=segment.modality)
    return segment.content


def encode_segments(documents: Iterable[Document], tokenizers: Mapping[str, Tokenizer]) -> None:
    """Sets `codes` of all segments that have none, equal media of one codec encoded once.

    A segment whose medium can't be loaded or encoded is left without codes.
    """
    waiting: dict[str, dict[Any, list[Segment]]] = {}
    by_object: dict[int, Any] = {}  # id() of a medium → key; the segments keep the medium alive
    for document in documents:
        for segment in document:
            if segment.codes is not None or segment.codec not in tokenizers:
                continue
            try:
                medium = content(segment)
            except InputError:
                continue
            if id(medium) not in by_object:
                by_object[id(medium)] = content_key(medium)
            same = waiting.setdefault(segment.codec, {})
            same.setdefault(by_object[id(medium)], []).append(segment)
    for span, groups in waiting.items():
        media = [segments[0].content for segments in groups.values()]
        for segments, grid in zip(groups.values(), _encode(tokenizers[span], media), strict=True):
            for segment in segments:
                segment.codes = grid


def reread_segments(segments: Iterable[Segment], tokenizers: Mapping[str, Tokenizer]) -> None:
    """Decodes the codes of these segments and encodes what comes, equal codes once.

    The segments' content stays what it was."""
    waiting: dict[str, dict[bytes, list[Segment]]] = {}
    for segment in segments:
        if segment.codes is not None:
            key = f"{segment.codes.meta}".encode() + segment.codes.codes.tobytes()
            waiting.setdefault(segment.codec, {}).setdefault(key, []).append(segment)
    for span, groups in waiting.items():
        codec = tokenizers[span]
        decoded = [codec.decode(same[0].codes) for same in groups.values() if same[0].codes]
        again = codec.encode_batch(decoded)
        for same, grid in zip(groups.values(), again, strict=True):
            for segment in same:
                segment.codes = grid


def _encode(tokenizer: Tokenizer, media: Sequence[Any]) -> Sequence[CodeGrid | None]:
    try:
        return tokenizer.encode_batch(media)
    except InputError:
        return [_encode_one(tokenizer, medium) for medium in media]


def _encode_one(tokenizer: Tokenizer, medium: Any) -> CodeGrid | None:
    try:
        return tokenizer.encode(medium)
    except InputError:
        return None


def content_key(medium: Any) -> Any:
    """Equal for equal media: the text itself, or a hash of what a codec reads of the medium."""
    if isinstance(medium, str):
        return medium
    digest = hashlib.blake2b(digest_size=16)
    pil = getattr(medium, "pil", None)
    if pil is not None:
        digest.update(f"{pil.mode}{pil.size}".encode())
        digest.update(pil.tobytes())
    for name, value in vars(medium).items() if pil is None else ():
        if isinstance(value, np.ndarray):
            digest.update(f"{name}{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        elif isinstance(value, str | int | float):  # notes and a clip's sound are not encoded
            digest.update(f"{name}={value!r}".encode())
    return digest.digest()
