"""`inspect`: what is in a file or folder of ours, a document id by id with its slots, and which
kernels run on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from polyglyph.cli import files
from polyglyph.cli.options import AsJson, Checkpoint, Debug, Device
from polyglyph.cli.outcome import Outcome, command, counted, printable


def inspect(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|PATH]",
            help="Codes, a document (.json, .jsonl), shards, a checkpoint, a run or a medium.",
        ),
    ] = None,
    document: Annotated[
        int | None, typer.Option("--document", help="Spell this one, counted from 0, id by id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most ids to spell; 0: all.")] = 0,
    checkpoint: Checkpoint = "tiny",
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Say which kernels run on this machine, and why.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what is in a file; spell a document's ids, slot by slot."""
    with command("inspect", as_json, debug) as outcome:
        if kernels and path is None:
            _kernels(outcome, device)
            return
        if kernels or path is None:
            from polyglyph.errors import InputError

            raise InputError("expected a file or folder, or --kernels alone")
        work = _Inspecting(outcome, path, document, limit, checkpoint)
        _reader(path)(work)


def _kernels(outcome: Outcome, device: str) -> None:
    """A line per kernel: what runs and why, and how many configurations ship."""
    from rich.table import Table

    from polyglyph.device import pick_device
    from polyglyph.kernels.compiling import describe

    picked = pick_device(device)
    rows = describe(picked)
    version = rows[0]["triton"]
    table = Table(title=f"kernels on {picked}, triton {version or 'not installed'}")
    for name in ("kernel", "runs", "why", "configurations"):
        table.add_column(name)
    for row in rows:
        outcome.add(**row)
        counts = (f"{len(names)} for {arch}" for arch, names in row["configurations"].items())
        table.add_row(row["kernel"], row["runs"], row["why"], ", ".join(counts) or "none")
    outcome.show(table)


class _Inspecting:
    """One run of the verb."""

    def __init__(
        self, outcome: Outcome, path: str, document: int | None, limit: int, checkpoint: str
    ) -> None:
        self.outcome, self.path, self.document = outcome, path, document
        self.limit, self.checkpoint = limit, checkpoint

    def pick(self, n: int, what: str) -> int:
        """The document asked for, of n; InputError if there is none."""
        from polyglyph.checkpoint import shown
        from polyglyph.errors import InputError

        wanted = self.document or 0
        if not 0 <= wanted < n:
            raise InputError(f"{shown(self.path)} has {what} 0..{n - 1}; got --document {wanted}")
        return wanted

    def spell(self, grammar: Any, ids: Any, tokenizers: Any, title: str) -> None:
        """A line per id: where it stands, its name and slot, and how many ids were allowed."""
        from rich.markup import escape
        from rich.table import Table

        rows = grammar.spell(ids)
        shown = rows[: self.limit or None]
        table = Table(title=f"{title}: {counted(len(rows), 'id')}")
        for name in ("position", "id", "allowed"):
            table.add_column(name, justify="right")
        for name in ("name", "slot", "piece"):
            table.add_column(name)
        for row in shown:
            piece = _piece(grammar, tokenizers, row.id)
            self.outcome.add(**row._asdict(), piece=piece)
            cells = (row.name, row.slot, piece)
            table.add_row(
                str(row.position), str(row.id), str(row.n_allowed), *map(escape, cells),
                end_section=row.n_allowed <= 1,
            )  # fmt: skip
        self.outcome.show(table)
        if len(shown) < len(rows):
            self.outcome.note(f"{counted(len(rows) - len(shown), 'more id')}; --limit 0 shows all")

    def facts(self, title: str, entry: dict[str, Any]) -> None:
        """One thing as a list of its properties."""
        from rich.markup import escape
        from rich.table import Table

        self.outcome.add(**entry)
        table = Table(title=escape(title), show_header=False)
        table.add_column("property")
        table.add_column("value")
        for name, value in entry.items():
            table.add_row(name, escape(_words(value)))
        self.outcome.show(table)

    def pipeline(self) -> Any:
        from polyglyph.pipeline import load

        return load(self.checkpoint, device="cpu")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _piece(grammar: Any, tokenizers: Any, id: int) -> str:
    """What a code stands for where its codec can say it: a piece of text."""
    found = grammar.vocabulary.locate(id)
    tokenizer = None if found is None or tokenizers is None else tokenizers.get(found[0])
    say = getattr(tokenizer, "piece", None)
    return say(found[2]) if say is not None and found is not None else ""


# --- what a path is ----------------------------------------------------------------------------


def _reader(path: str) -> Callable[[_Inspecting], None]:
    """How to read what lies there; a name that is no path means a packaged checkpoint."""
    if os.path.isdir(path):
        for marker, reader in _FOLDERS.items():
            if os.path.isfile(os.path.join(path, marker)):
                return reader
        return _other_folder
    if os.path.isfile(path):
        return _FILES.get(os.path.splitext(path)[1].lower(), _medium)
    return _checkpoint


def _other_folder(work: _Inspecting) -> None:
    """A folder without a marker of ours; a step of a run has its own in it."""
    from polyglyph.checkpoint import find_checkpoint, shown
    from polyglyph.errors import InputError

    try:
        find_checkpoint(work.path)
    except InputError as error:
        raise InputError(
            f"{shown(work.path)} is no folder of ours: expected one of {', '.join(_FOLDERS)} in "
            f"it; codes files and media are inspected one by one"
        ) from error
    _checkpoint(work)


def _checkpoint(work: _Inspecting) -> None:
    from polyglyph.assembly import load_parts
    from polyglyph.checkpoint import find_checkpoint, shown
    from polyglyph.errors import InputError

    if not os.path.lexists(work.path) and os.path.splitext(work.path)[1]:
        raise InputError(f"{shown(work.path)}: no such file or folder; expected something to read")
    folder = find_checkpoint(work.path)
    parts = load_parts(folder)
    manifest = parts.manifest
    entry: dict[str, Any] = {"path": printable(folder), "format": manifest["format"]}
    for name in ("kind", "origin", "licence"):
        entry[name] = manifest.get(name, "")
    entry["files"] = f"{len(manifest['files'])}, all hashes right"
    entry["bytes"] = sum(file["bytes"] for file in manifest["files"].values())
    entry["codecs"] = {
        span: f"{t.modality}, {t.spec.n_codebooks} x {t.spec.codebook_size} codes, "
        f"{t.fingerprint[:12]}"
        for span, t in parts.tokenizers.items()
    }
    if parts.grammar is not None and parts.vocabulary is not None:
        entry["vocabulary"] = f"{parts.vocabulary.size} ids, {parts.vocabulary.sha256[:12]}"
        entry["dialect"] = parts.grammar.dialect.name
        entry["slots"] = list(parts.grammar.slot_names)
    if "model" in manifest["config"]:
        from polyglyph.assembly import load_model

        model = load_model(folder, manifest)
        entry["n_parameters"] = model.n_parameters
        entry["finite"] = all(bool(p.isfinite().all()) for p in model.parameters())
        entry["model"] = manifest["config"]["model"]
    work.facts(f"checkpoint {printable(folder)}", entry)


def _shards(work: _Inspecting) -> None:
    from polyglyph.data.shards import Shards

    shards = Shards(work.path)
    if work.document is not None:
        index = work.pick(shards.n_documents, "documents")
        ids, _ = shards.document(index)
        pieces = _codecs_of(Path(work.path))
        work.spell(shards.grammar, ids, pieces, f"document {index} of {printable(work.path)}")
        return
    lengths, vocabulary = shards.lengths, shards.grammar.vocabulary
    entry = {
        "path": printable(work.path),
        "source": shards.manifest["source"],
        "n_shards": len(shards.shards),
        "n_documents": shards.n_documents,
        "n_ids": shards.n_ids,
        "ids per document": f"{lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}",
        "dtype": shards.manifest["dtype"],
        "vocabulary": f"{vocabulary.size} ids, {vocabulary.sha256[:12]}",
        "codecs": {span: mark[:12] for span, mark in shards.grammar.fingerprints.items()},
        "sha256": shards.sha256,
    }
    work.facts(f"shards {printable(work.path)}", entry)


def _codecs_of(shards: Path) -> Any:
    """The codecs that a shard folder keeps, to say what its text ids spell."""
    from polyglyph.assembly import load_parts
    from polyglyph.checkpoint import MANIFEST
    from polyglyph.cli.training import CODECS

    kept = shards / CODECS
    return load_parts(kept).tokenizers if (kept / MANIFEST).is_file() else None


def _run(work: _Inspecting) -> None:
    from polyglyph.checkpoint import find_checkpoint
    from polyglyph.cli.codes import read_lines

    folder = Path(work.path)
    lines = read_lines(folder / "log.jsonl")
    steps = sorted(step.name for step in (folder / "checkpoints").glob("step-*"))
    described = _read_json(os.fspath(folder / "run.json"), (folder / "run.json").read_bytes())
    entry: dict[str, Any] = {"path": printable(folder), "run": described, "checkpoints": steps}
    if lines:
        plain = (int, float, str)
        entry["last log line"] = {k: v for k, v in lines[-1].items() if isinstance(v, plain)}
    if steps:
        entry["latest"] = printable(find_checkpoint(folder))
    work.facts(f"run {printable(folder)}", entry)


def _codes(work: _Inspecting) -> None:
    from rich.markup import escape
    from rich.table import Table

    from polyglyph.sequence.document import Document, Segment
    from polyglyph.tokenizers.base import load_codes, meta_to_json

    items = load_codes(work.path)
    if work.document is not None:
        _, source, grids = items[work.pick(len(items), "items")]
        pipe = work.pipeline()
        ids = pipe.render(Document(Segment(g.modality, g) for g in grids), complete=True)
        work.spell(pipe.grammar, ids, pipe.tokenizers, source)
        return
    table = Table(title=f"codes {printable(work.path)}")
    for name in ("key", "modality", "source", "grid", "codes", "meta", "codec"):
        table.add_column(name)
    for key, source, grids in items:
        for grid in grids:
            meta = meta_to_json(grid.meta)
            shape = list(grid.codes.shape)
            work.outcome.add(
                key=key, modality=grid.modality, source=source, shape=shape, meta=meta,
                n_tokens=grid.n_tokens, fingerprint=grid.fingerprint,
            )  # fmt: skip
            size = "x".join(map(str, shape))
            words = ", ".join(f"{name} {value}" for name, value in meta.items())
            table.add_row(
                key, grid.modality, escape(source), size, f"{grid.n_tokens:,}", words,
                grid.fingerprint[:12],
            )  # fmt: skip
    work.outcome.show(table)


def _json(work: _Inspecting) -> None:
    """A document, or a region or an action."""
    data = _read_json(work.path, Path(work.path).read_bytes())
    if isinstance(data, dict) and "segments" in data:
        _spell_document(work, data, printable(work.path))
        return
    _medium(work)


def _jsonl(work: _Inspecting) -> None:
    lines = Path(work.path).read_bytes().splitlines()
    lines = [line for line in lines if line.strip()]
    index = work.pick(len(lines), "documents")
    title = f"document {index} of {len(lines)} in {printable(work.path)}"
    _spell_document(work, _read_json(work.path, lines[index]), title)


def _read_json(path: str, data: bytes) -> Any:
    from polyglyph.checkpoint import shown
    from polyglyph.errors import FormatError

    try:
        return json.loads(data)
    except ValueError as error:
        raise FormatError(f"{shown(path)} is not JSON: {error}") from error


def _spell_document(work: _Inspecting, data: Any, title: str) -> None:
    from polyglyph.sequence.document import Document

    root = Path(work.path).parent
    document = Document.from_json(data, root=root)
    pipe = work.pipeline()
    work.spell(pipe.grammar, pipe.render(document, complete=True), pipe.tokenizers, title)


def _text(work: _Inspecting) -> None:
    pipe = work.pipeline()
    ids = pipe.render(files.read(work.path), complete=True)
    work.spell(pipe.grammar, ids, pipe.tokenizers, printable(work.path))


def _medium(work: _Inspecting) -> None:
    from polyglyph.media import modality_of

    medium = files.read(work.path)
    if work.document is not None:
        pipe = work.pipeline()
        ids = pipe.render(medium, complete=True)
        work.spell(pipe.grammar, ids, pipe.tokenizers, printable(work.path))
        return
    entry: dict[str, Any] = {"path": printable(work.path), "modality": modality_of(medium)}
    names = (
        "width", "height", "n_frames", "fps", "n_channels", "n_samples", "sample_rate",
        "duration_s", "kind",
    )  # fmt: skip
    entry |= {name: getattr(medium, name) for name in names if hasattr(medium, name)}
    if hasattr(medium, "values"):
        entry["values"] = medium.values.tolist()
    if getattr(medium, "audio", None) is not None:
        entry["sound"] = repr(medium.audio)
    entry["notes"] = list(medium.notes)
    work.facts(printable(work.path), entry)


_FOLDERS: dict[str, Callable[[_Inspecting], None]] = {
    "manifest.json": _shards,
    "run.json": _run,
    "checkpoint.json": _checkpoint,
}
_FILES: dict[str, Callable[[_Inspecting], None]] = {
    ".safetensors": _codes,
    ".json": _json,
    ".jsonl": _jsonl,
    files.TEXT_SUFFIX: _text,
}
