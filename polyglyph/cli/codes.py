"""`tokenize` and `detokenize`: media to codes files and back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polyglyph.cli import files
from polyglyph.cli.options import AsJson, Checkpoint, Debug, Force, OutFolder, ReadAs, Strict
from polyglyph.cli.outcome import Outcome, command, printable
from polyglyph.cli.progress import progress

SUFFIX = ".safetensors"
INDEX, ERRORS = "index.jsonl", "errors.jsonl"


def tokenize(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Media files or folders.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="X.safetensors|DIR/", help="What to write.")
    ],
    checkpoint: Checkpoint = "tiny",
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
        from polyglyph.errors import InputError

        whole = _is_codes_file(output)
        sources = files.expand(paths)
        files.refuse_input(output, sources)
        if whole:
            refuse_existing(output, force)
        elif os.path.lexists(output) and not os.path.isdir(output):
            raise InputError(f"output {printable(output)!r} is a file; expected a folder")
        files.check_writable(output)

        from polyglyph.pipeline import load

        pipe = load(checkpoint, device="cpu")
        work = _Tokenizing(outcome, pipe, read_as, strict)
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


class _Tokenizing:
    """One run of the verb."""

    def __init__(self, outcome: Outcome, pipe: Any, read_as: str | None, strict: bool) -> None:
        self.outcome, self.pipe, self.read_as, self.strict = outcome, pipe, read_as, strict

    def encode(self, source: str) -> list[Any]:
        """The grids of one file; its notes are said."""
        medium = files.read(source, self.read_as, self.strict)
        grids = self.pipe.encode(medium)
        files.note_all(self.outcome, source, medium)
        return grids

    def one_file(self, sources: Sequence[str], output: str, force: bool) -> None:
        """All inputs into one file; none of it when one of them fails."""
        from polyglyph.errors import InputError
        from polyglyph.tokenizers.base import save_codes

        items = []
        with progress("encoding") as tell:
            for i, source in enumerate(sources):
                tell(i, len(sources), f"encoding {Path(printable(source)).name}")
                try:
                    items.append((f"{i:06d}", printable(source), self.encode(source)))
                except InputError as error:
                    self.outcome.fail(error, source)
        if self.outcome.errors:
            self.outcome.note(f"nothing was written: {len(self.outcome.errors)} inputs failed")
            return
        save_codes(output, items, force=force)
        for key, source, grids in items:
            self.outcome.add(source=source, file=output, key=key, grids=_summary(grids))
        n_codes = sum(grid.n_tokens for _, _, grids in items for grid in grids)
        self.outcome.note(f"wrote {printable(output)}: {len(items)} inputs, {n_codes} codes")

    def folder(self, sources: Sequence[str], folder: Path, force: bool) -> None:
        """One codes file per input; what an index of an earlier run names is not made again."""
        from polyglyph.errors import InputError

        index = {} if force else _read_index(folder)
        if not force:
            _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {entry["file"] for entry in index.values()}
        names = files.Names(kept)
        n_made = 0
        with progress("encoding") as tell:
            for i, source in enumerate(sources):
                tell(i, len(sources), f"encoding {Path(printable(source)).name}")
                try:
                    entry = index.get(printable(source))
                    if entry is None or not self._is_current(folder, entry, source):
                        entry = self._make(folder, source, entry, names)
                        n_made += 1
                    self.outcome.add(**entry)
                except InputError as error:
                    self.outcome.fail(error, source)
        (folder / ERRORS).unlink(missing_ok=True)  # of an earlier run
        write_errors(folder, self.outcome)
        self.outcome.note(
            f"wrote {n_made} codes files to {printable(folder)}/, "
            f"{len(self.outcome.results) - n_made} stood there already"
        )

    def _is_current(self, folder: Path, entry: dict[str, Any], source: str) -> bool:
        """True where the file stands, of this very input and of these codecs."""
        if not (folder / entry["file"]).is_file() or not os.path.isfile(source):
            return False
        marks = {grid["fingerprint"] for grid in entry["grids"]}
        ours = {tokenizer.fingerprint for tokenizer in self.pipe.tokenizers.values()}
        return marks <= ours and _stamp(source) == {k: entry.get(k) for k in ("bytes", "mtime_ns")}

    def _make(
        self, folder: Path, source: str, old: dict[str, Any] | None, names: files.Names
    ) -> dict[str, Any]:
        from polyglyph.tokenizers.base import save_codes

        grids = self.encode(source)
        name = old["file"] if old else names.of(source, SUFFIX, keep_suffix=True)
        save_codes(folder / name, [("000000", printable(source), grids)], force=True)
        entry = {"source": printable(source), "file": name, **_stamp(source)}
        entry["grids"] = _summary(grids)
        with open(folder / INDEX, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return entry


def _stamp(source: str) -> dict[str, int]:
    found = os.stat(source)
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


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


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """{source: last entry}; a line that was cut off by a kill is left out."""
    found = {}
    for line in read_lines(folder / INDEX):
        if isinstance(line, dict) and {"source", "file", "grids"} <= line.keys():
            found[line["source"]] = line
    return found


def read_lines(path: Path) -> list[Any]:
    """The values of a JSONL file; lines that are no JSON are left out."""
    if not path.is_file():
        return []
    values = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values


def _refuse_foreign(folder: Path) -> None:
    """InputError for a folder that holds something, but no index of ours."""
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError

    if folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX).is_file():
        raise InputError(
            f"output {shown(folder)} exists and holds other files; choose another folder, or pass "
            f"-f to write into it"
        )


def write_errors(folder: Path, outcome: Outcome) -> None:
    """errors.jsonl of this run, where something failed."""
    from polyglyph.checkpoint import atomic_file

    if not outcome.errors:
        return
    path = folder / ERRORS
    with atomic_file(path, force=True) as temporary:
        lines = (json.dumps(error) + "\n" for error in outcome.errors)
        temporary.write_text("".join(lines), "utf-8")


def detokenize(
    path: Annotated[str, typer.Argument(metavar="FILE|DIR", help="Codes, made by `tokenize`.")],
    output: OutFolder,
    checkpoint: Checkpoint = "tiny",
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Codes to media, named after their sources; a clip gets its sound back."""
    with command("detokenize", as_json, debug) as outcome:
        from polyglyph.errors import InputError

        folder = Path(output)
        items = _all_items(path)
        if not items:
            raise InputError(f"{printable(path)!r} holds no codes; expected a file of `tokenize`")
        names = files.Names()
        targets = [names.of(source or key, _suffix(grids)) for key, source, grids in items]
        for name in targets:
            files.check_target(os.fspath(folder / name), "", force)

        from polyglyph.pipeline import load

        pipe = load(checkpoint, device="cpu")
        folder.mkdir(parents=True, exist_ok=True)
        with progress("decoding") as tell:
            for i, ((key, source, grids), name) in enumerate(zip(items, targets, strict=True)):
                tell(i, len(items), f"decoding {name}")
                try:
                    for n, medium in enumerate(pipe.decode(grids)):
                        target = name if n == 0 else names.of(source, files.suffix_of(medium))
                        files.write(medium, folder / target, force)
                        files.note_all(outcome, target, medium)
                        outcome.add(source=source, key=key, file=os.fspath(folder / target))
                except InputError as error:
                    outcome.fail(error, f"{source} ({key})")
        write_errors(folder, outcome)
        outcome.note(f"wrote {len(outcome.results)} files to {printable(folder)}/")


def _all_items(path: str) -> list[Any]:
    """The items of a codes file, or of all codes files of a folder in the order of their names."""
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError
    from polyglyph.tokenizers.base import load_codes

    if not os.path.isdir(path):
        return load_codes(path)
    found = sorted(Path(path).glob(f"*{SUFFIX}"))
    if not found:
        raise InputError(f"folder {shown(path)} holds no codes files; expected *{SUFFIX}")
    return [item for file in found for item in load_codes(file)]


def _suffix(grids: Sequence[Any]) -> str:
    """Of what an item's first grid decodes to."""
    return files.suffixes()[grids[0].modality][0]
