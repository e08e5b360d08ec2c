"""`reconstruct`: media to codes to media, with what was lost and what it cost.

Figures compare the original with the file as written: 8-bit pixels, 16-bit samples, H.264.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from polyglyph.cli import files
from polyglyph.cli.codes import write_errors
from polyglyph.cli.options import AsJson, Checkpoint, Debug, Force, OutFolder, ReadAs, Strict
from polyglyph.cli.outcome import Outcome, command, printable
from polyglyph.cli.progress import progress

Figures = dict[str, float]
# SSIM holds a dozen float64 copies of its picture: 8 million pixels take 2 GiB.
_MOST_SSIM_PIXELS = 4_000_000


def reconstruct(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Media files or folders.")],
    output: OutFolder,
    checkpoint: Checkpoint = "tiny",
    read_as: ReadAs = None,
    strict: Strict = False,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Media through their codecs and back, with metrics and bits."""
    with command("reconstruct", as_json, debug) as outcome:
        from polyglyph.errors import InputError

        sources, folder = files.expand(paths), Path(output)
        files.check_writable(os.fspath(folder / "a"))

        from polyglyph.pipeline import load

        pipe = load(checkpoint, device="cpu")
        folder.mkdir(parents=True, exist_ok=True)
        names = files.Names()
        with progress("reconstructing") as tell:
            for i, source in enumerate(sources):
                tell(i, len(sources), f"reconstructing {Path(printable(source)).name}")
                try:
                    medium = files.read(source, read_as, strict)
                    files.note_all(outcome, source, medium)
                    target = folder / names.of(source, files.suffix_of(medium))
                    files.refuse_input(target, sources)
                    entry = _reconstruct(pipe, medium, target, force)
                    outcome.add(source=printable(source), file=os.fspath(target), **entry)
                except InputError as error:
                    outcome.fail(error, source)
        write_errors(folder, outcome)
        _show(outcome)


def _reconstruct(pipe: Any, medium: Any, target: Path, force: bool) -> dict[str, Any]:
    """Writes the reconstruction; its modality, sizes, bits and metrics."""
    from polyglyph.checkpoint import refuse_existing
    from polyglyph.eval.metrics import bits
    from polyglyph.media import modality_of

    refuse_existing(target, force)
    grids = pipe.encode(medium)
    (result,) = pipe.decode(grids)
    files.write(result, target, force)
    modality = modality_of(medium)
    n_bits = sum(bits(grid, pipe.tokenizers[grid.modality].spec) for grid in grids)
    measure = _MEASURES.get(modality, _equal)
    return {
        "modality": modality,
        "grids": {grid.modality: list(grid.codes.shape) for grid in grids},
        "n_tokens": sum(grid.n_tokens for grid in grids),
        "bits": n_bits,
        **measure(medium, files.read(target, modality), n_bits),
    }


def _image(a: Any, b: Any, n_bits: float) -> Figures:
    from polyglyph.eval.metrics import psnr, ssim

    figures = {"psnr_db": psnr(a.array, b.array)}
    if a.width * a.height <= _MOST_SSIM_PIXELS:
        figures["ssim"] = ssim(a.array, b.array)
    return {**figures, "bits_per_pixel": n_bits / (a.width * a.height)}


def _video(a: Any, b: Any, n_bits: float) -> Figures:
    from polyglyph.eval.metrics import clip_ssim, psnr

    # A container may pad odd sizes, or drop a last frame of no duration.
    n = min(a.n_frames, b.n_frames)
    one, other = a.frames[:n], b.frames[:n, : a.height, : a.width]
    figures = {"psnr_db": psnr(one, other)}
    if one[0].size // 3 <= _MOST_SSIM_PIXELS:
        figures["ssim"] = clip_ssim(one, other)
    return {**figures, "bits_per_s": n_bits / a.duration_s}


def _audio(a: Any, b: Any, n_bits: float) -> Figures:
    from polyglyph.eval.metrics import mel_distance, si_sdr
    from polyglyph.media import mix_channels, resample

    target = resample(mix_channels(a.samples, 1), a.sample_rate, b.sample_rate)
    n = min(target.shape[-1], b.n_samples)
    one, other = target[:, :n], mix_channels(b.samples, 1)[:, :n]
    return {
        "si_sdr_db": si_sdr(other, one),
        "mel_distance": mel_distance(other, one, b.sample_rate),
        "bits_per_s": n_bits / a.duration_s,
    }


def _values(a: Any, b: Any, n_bits: float) -> Figures:
    return {"largest_error": float(abs(a.values - b.values).max())}


def _equal(a: Any, b: Any, n_bits: float) -> Figures:
    return {"equal": float(a == b)}


_MEASURES: dict[str, Callable[[Any, Any, float], Figures]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    "region": _values,
    "action": _values,
}


def _show(outcome: Outcome) -> None:
    if not outcome.results:
        return
    from rich.table import Table

    common = ("source", "file", "modality", "grids", "n_tokens", "bits")
    metrics = dict.fromkeys(k for entry in outcome.results for k in entry if k not in common)
    table = Table()
    for name in ("file", "codes", "bits", *metrics):
        table.add_column(name, justify="left" if name == "file" else "right")
    for entry in outcome.results:
        figures = [f"{entry[k]:.4g}" if k in entry else "" for k in metrics]
        name = printable(entry["file"])
        table.add_row(name, f"{entry['n_tokens']:,}", f"{entry['bits']:,.0f}", *figures)
    outcome.show(table)
