"""`prepare` and `train`: a corpus to shards of ids, and every kind of run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from polyglyph.cli import files
from polyglyph.cli.options import AsJson, Debug, Sets
from polyglyph.cli.outcome import Outcome, command, counted, printable
from polyglyph.cli.progress import progress

# Where `prepare` keeps the codecs and the vocabulary of its shards, as a checkpoint.
CODECS = "codecs"
# What measures a step of a run, by run.kind; a kind without an entry takes seconds.
STEPPERS = {
    "codec": "polyglyph.train.codec_loop:CodecTraining",
    "model": "polyglyph.train.model_loop:ModelTraining",
}


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="shapes, a folder of media with captions, or a .jsonl file."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="SHARDS", help="Folder to write, or to go on.")
    ],
    codec: Annotated[
        list[str] | None,
        typer.Option("--codec", help="A codec's run or folder; repeat in the vocabulary's order."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", "-c", help="Take codecs and vocabulary of this one; default: tiny."
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="Take those of a model run's config.")
    ] = None,
    sets: Sets = None,
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", help="Items to take; needed where a source is endless."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the source.")] = 0,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="KEY=VALUE for the source, e.g. mixture.text_to_image=8."),
    ] = None,
    items_per_shard: Annotated[int, typer.Option(min=1, help="Items in one shard.")] = 4096,
    reread: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Share of the prompts' media that pass their codec once first."
        ),
    ] = 0.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """A corpus to shards of ids; run again, it makes what is missing.

    The folder keeps the codecs and the vocabulary under codecs/. Media of files are brought to the
    prompt size of the checkpoint or run, as prompts are.
    """
    with command("prepare", as_json, debug) as outcome:
        from polyglyph.data.prepare import prepare as make_shards

        documents = _open(source, seed, options or [])
        parts, size = _sequence(codec, checkpoint, config, sets or [])
        if os.path.exists(source):  # the built-in world has its own sizes
            documents = _fitted(documents, size)
        assert parts.grammar is not None
        with progress("preparing") as tell:
            made = make_shards(
                documents,
                parts.tokenizers,
                parts.grammar,
                output,
                n=n,
                items_per_shard=items_per_shard,
                reread=reread,
                progress=lambda done, of: tell(done, of, "preparing"),
            )
        _keep_codecs(Path(output) / CODECS, parts)
        _tell_made(outcome, made, getattr(documents, "n_fitted", 0), printable(output))


def _tell_made(outcome: Any, made: Any, n_fitted: int, output: str) -> None:
    """What was made, what was brought to size and what failed."""
    if n_fitted:
        were = "1 medium was" if n_fitted == 1 else f"{n_fitted} media were"
        outcome.note(f"note: {were} brought to the size of prompts")
    for error in made.errors:
        outcome.errors.append(error)
        outcome.note(f"error: {error['message']}")
        outcome.status = 2
    counts = ("n_documents", "n_ids", "n_shards", "n_made")
    outcome.add(path=output, **{name: getattr(made, name) for name in counts})
    outcome.note(
        f"{output}: {counted(made.n_documents, 'document')}, "
        f"{counted(made.n_ids, 'id')} in {counted(made.n_shards, 'shard')}, "
        f"{made.n_made} of them new"
    )


def _open(source: str, seed: int, options: list[str]) -> Any:
    from polyglyph.config import apply_sets
    from polyglyph.data.sources import open_source

    return open_source(source, seed=seed, **apply_sets({}, options))


def _fitted(documents: Any, size: Any) -> Any:
    """The source with its media at `size`; itself where no size is named."""
    from polyglyph.fitting import FittedSource

    return FittedSource(documents, size) if size.model_dump(exclude_none=True) else documents


def _sequence(
    codecs: list[str] | None, checkpoint: str | None, config: str | None, sets: list[str]
) -> tuple[Any, Any]:
    """(codecs, vocabulary and grammar, size of prompts), from the one place that was named."""
    from polyglyph.errors import InputError

    if sum(map(bool, (codecs, checkpoint, config))) > 1:
        raise InputError(
            "name the codecs once: --codec A --codec B, or --checkpoint C, or --config RUN"
        )
    from polyglyph.config import build
    from polyglyph.fitting import PromptSize

    if codecs:
        from polyglyph.pipeline import build_tokens

        return build_tokens(codecs), PromptSize()
    from polyglyph.train.model_loop import SequenceConfig, load_sequence

    if config is None:
        name = checkpoint or "tiny"
        parts = load_sequence(SequenceConfig(checkpoint=name))
        stored = parts.manifest["config"].get("sequence", {}).get("prompt_size") or {}
        return parts, build(PromptSize, stored, f"checkpoint {name!r}, [sequence.prompt_size]")
    from polyglyph.train.config import load_run

    run = load_run(config, sets)
    if not hasattr(run, "sequence"):
        raise InputError(f"config {config!r} is of a {run.run.kind} run, which has no [sequence]")
    return load_sequence(run.sequence), run.sequence.prompt_size


def _keep_codecs(folder: Path, parts: Any) -> None:
    from polyglyph.checkpoint import MANIFEST, read_manifest
    from polyglyph.pipeline import save_tokens

    if (folder / MANIFEST).is_file():
        entries = read_manifest(folder)["tokenizers"]
        marks = {span: entry["fingerprint"] for span, entry in entries.items()}
        if marks == {span: t.fingerprint for span, t in parts.tokenizers.items()}:
            return
    save_tokens(folder, parts, force=True)


def train(
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="NAME|FILE", help="A shipped config or a TOML file."),
    ] = None,
    sets: Sets = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="RUN", help="Run folder; default: runs/NAME."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show steps, parameters, memory and time; don't train.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a codec or a model. Ctrl-C saves a checkpoint first; --resume goes on from it."""
    with command("train", as_json, debug) as outcome:
        from polyglyph.train.config import LOOPS, load_run

        name, given = _which(config, output, resume), sets or []
        run = load_run(name, given)
        folder = Path(output if output is not None else os.path.join("runs", run.run.name))
        if plan:
            _plan(outcome, run)
            return
        files.check_writable(os.fspath(folder / "config.toml"))
        if resume and config is not None:
            _check_same(run, folder)

        from polyglyph.lookup import find
        from polyglyph.train.progress import Progress

        loop = find(LOOPS, run.run.kind, "kind of run")
        with Progress(run.run.steps, run.run.name) as show:
            line = loop(run, folder, resume=resume, on_log=show)
        outcome.add(run=printable(folder), **line)
        steps = counted(line.get("step", 0), "step")
        outcome.note(f"{printable(folder)}: {_describe(line)} after {steps}")


def _which(config: str | None, output: str | None, resume: bool) -> str:
    """The config to read: the one named, or, to resume, the run's own."""
    from polyglyph.errors import InputError
    from polyglyph.train.config import config_names

    if config is not None:
        return config
    if not resume or output is None:
        raise InputError(
            f"expected --config NAME|FILE (shipped: {', '.join(config_names())}), "
            f"or --resume -o RUN"
        )
    own = Path(output) / "config.toml"
    if not own.is_file():
        raise InputError(f"{printable(output)!r} holds no run to resume; start one with --config")
    return os.fspath(own)


def _check_same(run: Any, folder: Path) -> None:
    """InputError where the config given is not the one that the run began with."""
    from polyglyph.config import dump, read_toml
    from polyglyph.errors import ConfigError

    path = folder / "config.toml"
    if not path.is_file():
        return  # the loop says that there is no run
    import tomllib

    now, then = tomllib.loads(dump(run)), read_toml(path)
    changed = sorted(_differences(now, then))
    if changed:
        raise ConfigError(
            f"{printable(folder)!r} began with another config: {', '.join(changed[:5])} differ; "
            f"leave --config out to go on with its own, or start a new run"
        )


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The dotted keys in which two tables differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = a.keys() | b.keys()
        found = [_differences(a.get(k), b.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [key for group in found for key in group]
    return [] if a == b else [where]


def _describe(line: dict[str, Any]) -> str:
    """The one figure of a log line that a person follows."""
    for name in ("loss", "bytes_per_id"):
        if name in line:
            return f"{name.replace('_', ' ')} {line[name]:.4g}"
    return "done"


def _plan(outcome: Outcome, run: Any) -> None:
    """What a run would take: measured on three steps in memory; nothing is written."""
    kind = run.run.kind
    entry: dict[str, Any] = {"name": run.run.name, "kind": kind, "steps": run.run.steps}
    if kind in STEPPERS:
        from polyglyph.lookup import find
        from polyglyph.train.runlog import peak_bytes

        training = find(STEPPERS, kind, "kind of run")(run)
        net = getattr(training, "net", None) or training.model
        entry["n_parameters"] = sum(p.numel() for p in net.parameters())
        entry["device"], entry["dtype"] = str(training.device), str(training.dtype)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            training.advance()
            seconds.append(time.perf_counter() - began)
        entry["seconds_per_step"] = sorted(seconds)[0]  # the first one warms up
        entry["hours"] = entry["seconds_per_step"] * run.run.steps / 3600
        entry["peak_bytes"] = peak_bytes()
    outcome.add(**entry)
    for name, value in entry.items():
        outcome.show(
            f"{name:17} {value:,.4g}" if isinstance(value, float) else f"{name:17} {value}"
        )
