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
from polyglyph.cli.codes import LONG, comes_in_chunks
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
    means with their protocol. A long sound goes through in parts, in little memory.
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
                    if comes_in_chunks(codecs, source, read_as):
                        work.long(source, strict, force)
                        continue
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
        from polyglyph.eval.comparison import side_by_side
        from polyglyph.eval.fidelity import SOUND, measure
        from polyglyph.media import modality_of

        medium = self._framed(medium)
        target, beside = self._targets(source, files.suffix_of(medium), force)
        grids = self.codecs.encode(medium)
        (result,) = self.codecs.decode(grids)
        files.write(result, target, force)
        modality = modality_of(medium)
        read = files.read(target, modality)
        figures = measure(medium, read, self._bits(grids))
        if len(grids) > 1:  # a clip and its sound
            figures[SOUND + "bits"] = self._bits(grids[1:])
        entry = self._entry(source, target, modality, grids, figures)
        self._show(entry, side_by_side(medium, read), beside, force)
        self.tally.add(modality, entry, medium, read)

    def long(self, source: str, strict: bool, force: bool) -> None:
        """As `one`, of a sound that is never held as a whole."""
        from polyglyph.eval.comparison import spectrograms
        from polyglyph.eval.long_sounds import SHOWN_S, Passing, measure_long
        from polyglyph.eval.tally import PARTS
        from polyglyph.media import save_sound, stream_sound

        target, beside = self._targets(source, files.suffixes()[LONG][0], force)
        notes: list[str] = []
        grids = self.codecs.encode_chunks(LONG, stream_sound(source, strict=strict, notes=notes))
        for note in notes:
            self.outcome.note(f"note: {printable(source)}: {note}")
        save_sound(self.codecs.decode_parts(grids), target, force)
        original, result = Passing(stream_sound(source)), Passing(stream_sound(target))
        figures = measure_long(original, result, self._bits(grids))
        entry = {**self._entry(source, target, LONG, grids, figures), PARTS: True}
        picture = spectrograms(original.head, result.head, f"; the first {SHOWN_S:.0f} s")
        self._show(entry, picture, beside, force)
        self.tally.add_marked(LONG, entry, original.mark, result.sample_rate)

    def _targets(self, source: str, suffix: str, force: bool) -> tuple[Path, Path]:
        """Where the result and the picture of both go; InputError where they may not."""
        from polyglyph.checkpoint import refuse_existing

        target = self.folder / self._names.of(source, suffix)
        beside = self.folder / self._names.of(f"{target.stem}-compared", ".png")
        for path in (target, beside):
            files.refuse_input(path, self.sources)
            refuse_existing(path, force)
        return target, beside

    def _entry(
        self, source: str, target: Path, modality: str, grids: Any, figures: dict[str, float]
    ) -> dict[str, Any]:
        return {
            "source": printable(source),
            "file": printable(target),
            "modality": modality,
            "grids": {grid.modality: list(grid.codes.shape) for grid in grids},
            "n_tokens": sum(grid.n_tokens for grid in grids),
            "bits": self._bits(grids),
            **figures,
            "codebook_use": self.tally.use(grids),
        }

    def _bits(self, grids: Any) -> float:
        from polyglyph.eval.metrics import bits

        return sum(bits(grid, self.codecs.of(grid.modality).spec) for grid in grids)

    def _show(self, entry: dict[str, Any], picture: Any, beside: Path, force: bool) -> None:
        """Saves the picture of both, if there is one, and says the entry."""
        from polyglyph.media import Image

        if picture is not None:
            Image(picture).save(beside, force)
            entry["comparison"] = printable(beside)
        self.outcome.add(**entry)

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
