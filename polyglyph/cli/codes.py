"""`tokenize` and `detokenize`: media to codes files and back."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from polyglyph.cli import files
from polyglyph.cli.folders import (
    INDEX,
    ResultFolder,
    each,
    read_lines,
    refuse_foreign,
    stamp,
    write_errors,
)
from polyglyph.cli.options import (
    AsJson,
    Checkpoint,
    Codebooks,
    Codec,
    Debug,
    Force,
    OutFolder,
    ReadAs,
    Strict,
)
from polyglyph.cli.outcome import Outcome, command, counted, printable

__all__ = ["INDEX", "detokenize", "read_lines", "tokenize", "write_errors"]

SUFFIX = ".safetensors"
LONG = "audio"  # the medium of which whole hours are encoded in chunks


def tokenize(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Media files, folders or patterns.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="X.safetensors|DIR/", help="What to write.")
    ],
    checkpoint: Checkpoint = "tiny",
    codec: Codec = None,
    codebooks: Codebooks = None,
    read_as: ReadAs = None,
    strict: Strict = False,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Media to codes: one codes file, all or nothing; or one per input in a folder, resumable.

    A clip with sound gives the codes of both. A folder gets index.jsonl and errors.jsonl; the same
    command again makes what is missing.
    """
    with command("tokenize", as_json, debug) as outcome:
        from polyglyph.checkpoint import refuse_existing

        whole = _is_codes_file(output)
        files.check_modality(read_as)
        sources = files.expand(paths)
        files.refuse_input(output, sources)
        if whole:
            refuse_existing(output, force)
        elif not force:
            refuse_foreign(Path(output))
        files.check_writable(output)

        from polyglyph.cli.codecs import Codecs

        codecs = Codecs(checkpoint, codec or (), codebooks)
        work = _Tokenizing(outcome, codecs, read_as, strict)
        if whole:
            work.one_file(sources, output, force)
        else:
            work.folder(sources, Path(output), force)


def _is_codes_file(output: str) -> bool:
    """True for X.safetensors, False for a folder; InputError for another kind of file."""
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError

    if output.endswith(("/", os.sep)) or os.path.isdir(output):
        return False
    suffix = Path(output).suffix.lower()
    if suffix not in ("", SUFFIX):
        raise InputError(
            f"output {shown(output)}: codes are written as NAME{SUFFIX}, or into a folder (end its "
            f"name with /); got the suffix {suffix}"
        )
    return suffix == SUFFIX


def comes_in_chunks(codecs: Any, source: str, read_as: str | None) -> bool:
    """True for a file that is too long to be held, and whose codec needs no more than chunks."""
    return read_as in (None, LONG) and files.is_long(source) and codecs.takes_chunks(LONG)


class _Tokenizing:
    """One run of the verb."""

    def __init__(self, outcome: Outcome, codecs: Any, read_as: str | None, strict: bool) -> None:
        self.outcome, self.codecs, self.read_as, self.strict = outcome, codecs, read_as, strict

    def encode(self, source: str) -> list[Any]:
        """The grids of one file; its notes are said. A long sound is never held as a whole."""
        if comes_in_chunks(self.codecs, source, self.read_as):
            from polyglyph.media import stream_sound

            notes: list[str] = []
            chunks = stream_sound(source, strict=self.strict, notes=notes)
            grids = self.codecs.encode_chunks(LONG, chunks)
            for note in notes:
                self.outcome.note(f"note: {printable(source)}: {note}")
            return grids
        medium = files.read(source, self.read_as, self.strict)
        grids = self.codecs.encode(medium)
        files.note_all(self.outcome, source, medium)
        return grids

    def one_file(self, sources: Sequence[str], output: str, force: bool) -> None:
        """All inputs into one file; none of it when one of them fails."""
        from polyglyph.tokenizers.base import save_codes

        items: list[tuple[str, str, list[Any]]] = []
        for source, attempting in each(self.outcome, sources, "encoding", printable, self.strict):
            with attempting:
                items.append((f"{len(items):06d}", printable(source), self.encode(source)))
        if self.outcome.errors:
            failed = counted(len(self.outcome.errors), "input")
            self.outcome.note(f"nothing was written: {failed} failed")
            return
        save_codes(output, items, force=force)
        for key, source, grids in items:
            self.outcome.add(source=source, file=output, key=key, grids=_summary(grids))
        n_codes = sum(grid.n_tokens for _, _, grids in items for grid in grids)
        what = f"{counted(len(items), 'input')}, {counted(n_codes, 'code')}"
        self.outcome.note(f"wrote {printable(output)}: {what}")

    def folder(self, sources: Sequence[str], folder: Path, force: bool) -> None:
        """One codes file per input; what an index of an earlier run names is not made again."""
        n_made = 0
        with ResultFolder(folder, self.outcome, _source_of) as results:
            names = files.Names(entry["file"] for entry in results.entries.values())
            for source, attempting in each(
                self.outcome, sources, "encoding", printable, self.strict
            ):
                with attempting:
                    entry = results.entries.get(printable(source))
                    if force or entry is None or not self._is_current(folder, entry, source):
                        entry = self._make(folder, source, entry, names)
                        results.add(entry)
                        n_made += 1
                    self.outcome.add(**entry)
        self.outcome.note(
            f"wrote {counted(n_made, 'codes file')} to {printable(folder)}/, "
            f"{len(self.outcome.results) - n_made} stood there already"
        )

    def _is_current(self, folder: Path, entry: dict[str, Any], source: str) -> bool:
        """True where the file stands, of this very input, of these codecs and as asked for now."""
        if not (folder / entry["file"]).is_file() or not os.path.isfile(source):
            return False
        asked = {**stamp(source), "as": self.read_as}
        return asked == {k: entry.get(k) for k in asked} and all(map(self._is_same, entry["grids"]))

    def _is_same(self, grid: dict[str, Any]) -> bool:
        """True for a grid, as an index sums it up, that these codecs would make today."""
        tokenizer = self.codecs.of(grid["modality"])
        asked = self.codecs.codebooks_of(grid["modality"]) or tokenizer.spec.n_codebooks
        return grid["fingerprint"] == tokenizer.fingerprint and grid["shape"][0] == asked

    def _make(
        self, folder: Path, source: str, old: dict[str, Any] | None, names: files.Names
    ) -> dict[str, Any]:
        from polyglyph.tokenizers.base import save_codes

        mark = stamp(source) if os.path.isfile(source) else {}  # before it is read
        grids = self.encode(source)
        name = old["file"] if old else names.of(source, SUFFIX, keep_suffix=True)
        save_codes(folder / name, [("000000", printable(source), grids)], force=True)
        entry = {"source": printable(source), "file": name, **mark}
        if self.read_as is not None:
            entry["as"] = self.read_as
        return {**entry, "grids": _summary(grids)}


def _source_of(entry: dict[str, Any]) -> str:
    """The key of an index line of `tokenize`; KeyError for another line."""
    return (entry["file"], entry["grids"], entry["source"])[2]


def _summary(grids: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {
            "modality": grid.modality,
            "shape": list(grid.codes.shape),
            "n_tokens": grid.n_tokens,
            "fingerprint": grid.fingerprint,
        }
        for grid in grids
    ]


def detokenize(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Codes files of `tokenize`, folders or patterns."),
    ],
    output: OutFolder,
    checkpoint: Checkpoint = "tiny",
    codec: Codec = None,
    strict: Strict = False,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Codes to media, named after their sources; a clip gets its sound back.

    The folder gets index.jsonl and errors.jsonl; the same command again makes what is missing.
    """
    with command("detokenize", as_json, debug) as outcome:
        folder = Path(output)
        files.check_writable(os.fspath(folder / "a"))
        codes_files = _codes_files(paths)
        items = _all_items(outcome, codes_files, strict)
        if not items or (strict and outcome.errors):
            return
        results = ResultFolder(folder, outcome, _key_of)
        work = _Detokenizing(outcome, results, force)
        targets = work.targets(items)

        from polyglyph.cli.codecs import Codecs

        work.run(Codecs(checkpoint, codec or ()), targets, strict)


@dataclass(frozen=True)
class _Item:
    """One item of a codes file, without its codes."""

    path: str
    key: str
    source: str
    modality: str

    @property
    def name(self) -> str:
        return f"{printable(self.path)} ({self.key})"


def _codes_files(paths: Sequence[str]) -> list[str]:
    """The codes files under these paths; a folder stands for all that lie in it, by name."""
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError

    found: list[str] = []
    for path in files.matches(paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        # Not the hidden ones: what a killed run left half-written is hidden.
        inside = sorted(glob.glob(os.path.join(glob.escape(path), f"*{SUFFIX}")))
        if not inside:
            raise InputError(f"folder {shown(path)} holds no codes files; expected *{SUFFIX}")
        found += inside
    return list(dict.fromkeys(found))


def _all_items(outcome: Outcome, paths: Sequence[str], strict: bool) -> list[_Item]:
    """What the files hold; one that can't be read is recorded as failed."""
    from polyglyph.errors import InputError
    from polyglyph.tokenizers.base import load_codes

    items: list[_Item] = []
    for path, attempting in each(outcome, paths, "reading", printable, strict):
        with attempting:
            loaded = load_codes(path)
            if not loaded:
                raise InputError(
                    f"{printable(path)!r} holds no codes; expected a file of `tokenize`"
                )
            items += [_Item(path, k, source, grids[0].modality) for k, source, grids in loaded]
    return items


def _key_of(entry: dict[str, Any]) -> tuple[str, str]:
    """The key of an index line of `detokenize`; KeyError for another line."""
    return (entry["codes"], entry["key"], entry["files"], entry["made_of"])[:2]


class _Detokenizing:
    """One run of the verb: each item to its file, or files."""

    def __init__(self, outcome: Outcome, results: ResultFolder, force: bool) -> None:
        self.outcome, self.results, self.force = outcome, results, force
        old = [name for entry in results.entries.values() for name in entry["files"]]
        self.names = files.Names(old)

    def targets(self, items: Sequence[_Item]) -> list[tuple[_Item, str]]:
        """(item, file name) of what is to be made; InputError where a file of that name is not
        an earlier run's, before any is written."""
        found = []
        for item in items:
            entry = self._entry(item)
            if entry is not None and not self.force and self._is_current(entry, item):
                for name in entry["files"]:
                    self._add(item, name)
                continue
            if entry is not None:
                name = next(iter(entry["files"]))
            else:
                suffix = files.suffixes()[item.modality][0]
                name = self.names.of(item.source or item.key, suffix)
            is_ours = entry is not None and self._is_untouched(entry)
            target = os.fspath(self.results.path / name)
            files.check_target(target, "", self.force or is_ours)
            found.append((item, name))
        return found

    def _entry(self, item: _Item) -> dict[str, Any] | None:
        return self.results.entries.get((printable(item.path), item.key))

    def _is_current(self, entry: dict[str, Any], item: _Item) -> bool:
        here = all(os.path.isfile(self.results.path / name) for name in entry["files"])
        return here and entry["made_of"] == stamp(item.path)

    def _is_untouched(self, entry: dict[str, Any]) -> bool:
        """True where the files are those that the earlier run wrote, or gone."""
        return all(
            not os.path.lexists(self.results.path / name) or stamp(self.results.path / name) == made
            for name, made in entry["files"].items()
        )

    def _add(self, item: _Item, name: str) -> None:
        path = os.fspath(self.results.path / name)
        self.outcome.add(source=item.source, key=item.key, file=path)

    def run(self, codecs: Any, targets: Sequence[tuple[_Item, str]], strict: bool) -> None:
        n_before = len(self.outcome.results)
        with self.results:
            loaded: tuple[str, dict[str, Any]] = "", {}  # the items of one file lie together
            for (item, name), attempting in each(
                self.outcome, targets, "decoding", lambda target: target[0].name, strict
            ):
                with attempting:
                    if loaded[0] != item.path:
                        loaded = item.path, _grids_of(item.path)
                    self._make(codecs, item, name, loaded[1][item.key])
        n_made = len(self.outcome.results) - n_before
        more = f", {n_before} stood there already" if n_before else ""
        wrote = f"wrote {counted(n_made, 'file')} to {printable(self.results.path)}/"
        self.outcome.note(wrote + more)

    def _make(self, codecs: Any, item: _Item, name: str, grids: Sequence[Any]) -> None:
        from polyglyph.media import save_sound

        folder, made = self.results.path, {}
        mark = stamp(item.path)
        parts = codecs.decode_parts(grids)
        if parts is not None:  # a sound, which may be hours long
            for note in save_sound(parts, folder / name, force=True):
                self.outcome.note(f"note: {printable(name)}: {note}")
            made[name] = stamp(folder / name)
        for n, medium in enumerate(codecs.decode(grids) if parts is None else ()):
            if n:
                name = self.names.of(item.source, files.suffix_of(medium))
            # The first one's name was checked before the work began.
            files.write(medium, folder / name, force=self.force or n == 0)
            files.note_all(self.outcome, name, medium)
            made[name] = stamp(folder / name)
        self.results.add(
            {"codes": printable(item.path), "key": item.key, "files": made, "made_of": mark}
        )
        for name in made:
            self._add(item, name)


def _grids_of(path: str) -> dict[str, Any]:
    """{key: grids} of a codes file."""
    from polyglyph.tokenizers.base import load_codes

    return {key: grids for key, _, grids in load_codes(path)}
