"""`reconstruct`: media to codes to media, with what was lost and what it cost.

Figures compare the original with the file as written: 8-bit pixels, 16-bit samples, H.264.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from polyglyph.cli import files
from polyglyph.cli.folders import each, write_errors
from polyglyph.cli.options import (
    Against,
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
from polyglyph.cli.outcome import Outcome, command, plain, printable

RESULTS = "results.json"


def reconstruct(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Media files, folders or patterns.")
    ],
    output: OutFolder,
    checkpoint: Checkpoint = "tiny",
    codec: Codec = None,
    codebooks: Codebooks = None,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="N", help="Pictures and clips to N by N pixels first."),
    ] = None,
    against: Against = None,
    read_as: ReadAs = None,
    strict: Strict = False,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Media through their codecs and back, with metrics and bits.

    Beside each result stands a picture of both, or of their spectrograms; results.json has the
    means with their protocol.
    """
    with command("reconstruct", as_json, debug) as outcome:
        from polyglyph.checkpoint import refuse_existing
        from polyglyph.errors import InputError
        from polyglyph.eval.protocol import load_results

        files.check_modality(read_as)
        sources, folder = files.expand(paths), Path(output)
        if size is not None and not 1 <= size <= 8192:
            raise InputError(f"--size goes from 1 to 8192 pixels; got {size}")
        earlier = load_results(against) if against is not None else None
        files.check_writable(os.fspath(folder / RESULTS))
        refuse_existing(folder / RESULTS, force)

        from polyglyph.cli.codecs import Codecs

        codecs = Codecs(checkpoint, codec or (), codebooks)
        work = _Reconstructing(outcome, codecs, folder, sources, size)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for source, attempting in each(outcome, sources, "reconstructing", printable, strict):
                with attempting:
                    medium = files.read(source, read_as, strict)
                    files.note_all(outcome, source, medium)
                    work.one(source, medium, force)
        finally:
            write_errors(folder, outcome)
        if not outcome.results:
            return
        results = work.save(force)
        outcome.show(work.tally.table())
        outcome.show(work.tally.codebooks_table())
        if earlier is not None:
            show_comparison(outcome, results, earlier, ("this", printable(str(against))))


def show_comparison(
    outcome: Outcome, results: dict[str, Any], earlier: dict[str, Any], names: tuple[str, str]
) -> None:
    """Two results side by side; InputError where they weren't measured in one way."""
    from polyglyph.eval.protocol import compare, comparison_table

    rows = compare(results, earlier, names)
    outcome.show(comparison_table(rows, names))
    for row in rows:
        outcome.add(**row)


class _Reconstructing:
    """One run of the verb."""

    def __init__(
        self, outcome: Outcome, codecs: Any, folder: Path, sources: list[str], size: int | None
    ) -> None:
        from polyglyph.eval.tally import Tally
        from polyglyph.fitting import PromptSize

        self.outcome, self.codecs, self.folder, self.sources = outcome, codecs, folder, sources
        self.size = size
        framed = [] if size is None else list(PromptSize.model_fields)
        self.tally = Tally(codecs.of, size, framed)
        self._names = files.Names([RESULTS])

    def one(self, source: str, medium: Any, force: bool) -> None:
        """Writes the reconstruction of a medium and the picture of both; adds its figures."""
        from polyglyph.checkpoint import refuse_existing
        from polyglyph.eval.comparison import side_by_side
        from polyglyph.eval.fidelity import measure
        from polyglyph.eval.metrics import bits
        from polyglyph.media import Image, modality_of

        medium = self._framed(medium)
        target = self.folder / self._names.of(source, files.suffix_of(medium))
        beside = self.folder / self._names.of(f"{target.stem}-compared", ".png")
        for path in (target, beside):
            files.refuse_input(path, self.sources)
            refuse_existing(path, force)
        grids = self.codecs.encode(medium)
        (result,) = self.codecs.decode(grids)
        files.write(result, target, force)
        modality = modality_of(medium)
        read = files.read(target, modality)
        n_bits = sum(bits(grid, self.codecs.of(grid.modality).spec) for grid in grids)
        entry = {
            "source": printable(source),
            "file": printable(target),
            "modality": modality,
            "grids": {grid.modality: list(grid.codes.shape) for grid in grids},
            "n_tokens": sum(grid.n_tokens for grid in grids),
            "bits": n_bits,
            **measure(medium, read, n_bits),
            "codebook_use": self.tally.use(grids),
        }
        picture = side_by_side(medium, read)
        if picture is not None:
            Image(picture).save(beside, force)
            entry["comparison"] = printable(beside)
        self.outcome.add(**entry)
        self.tally.add(modality, entry, medium, read)

    def _framed(self, medium: Any) -> Any:
        """The medium at the size that was asked for; the sound of a clip stays."""
        if self.size is None:
            return medium
        from polyglyph.fitting import PromptSize, fit

        side = (self.size, self.size)
        sound = getattr(medium, "audio", None)
        n_frames = getattr(medium, "n_frames", 1)
        fitted = fit(medium, PromptSize(image=side, video=(n_frames, *side)))
        if sound is not None:
            fitted.audio = sound
        return fitted

    def save(self, force: bool) -> dict[str, Any]:
        """results.json; returns what it holds."""
        from polyglyph.checkpoint import atomic_file

        results = self.tally.results(self.codecs.checkpoint)
        text = json.dumps(results, indent=1, ensure_ascii=False, default=plain) + "\n"
        with atomic_file(self.folder / RESULTS, force) as temporary:
            temporary.write_text(text, "utf-8")
        return results
