"""`demo`, `eval` and `bench`: verbs that hand over to the floors that do the work."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from polyglyph.cli import files
from polyglyph.cli.options import (
    Against,
    AsJson,
    Checkpoint,
    Debug,
    Device,
    Force,
    Guidance,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from polyglyph.cli.outcome import Outcome, command, printable
from polyglyph.cli.progress import progress
from polyglyph.cli.reconstructing import show_comparison


def demo(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Media to reconstruct besides.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")
    ] = "demo",
    checkpoint: Checkpoint = "tiny",
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """The tour: about a dozen prompts through a checkpoint; files and one HTML page."""
    with command("demo", as_json, debug) as outcome:
        from polyglyph.checkpoint import find_checkpoint

        find_checkpoint(checkpoint)  # a typo shows before anything slow is imported
        from polyglyph.demo import run_demo

        with progress("demo") as tell:
            summary = run_demo(output, paths or [], checkpoint, seed, force, tell)
        outcome.results = summary["results"] + summary.get("reconstructions", [])
        outcome.add(page=printable(summary["index"]))
        for note in summary.get("notes", ()):
            outcome.note(f"note: {note}")
        for error in summary.get("errors", ()):
            outcome.errors.append(error)
            outcome.note(f"error: {error['message']}")
            outcome.status = 2
        outcome.show(printable(summary["index"]))


def evaluate(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK]...",
            help="Names, see --list, or their beginning (reconstruction); or one results.json.",
        ),
    ] = None,
    all_tasks: Annotated[bool, typer.Option("--all", help="Every task.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="Name the tasks and end.")] = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Check the checkers on right answers; no checkpoint.")
    ] = False,
    n: Annotated[int, typer.Option("--n", "-n", help="Items per task.")] = 200,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="results.json, report.html, samples."),
    ] = None,
    checkpoint: Checkpoint = "tiny",
    device: Device = "auto",
    against: Against = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the test scenes.")] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score a checkpoint: a table, JSON, an HTML report."""
    with command("eval", as_json, debug) as outcome:
        from polyglyph.errors import InputError
        from polyglyph.eval.protocol import load_results
        from polyglyph.eval.runner import check_comparable, list_tasks, named_tasks, run_tasks
        from polyglyph.eval.runner import validate as check_tasks
        from polyglyph.eval.scoring import TEST_SEED

        if list_all:
            _show_tasks(outcome)
            return
        earlier = load_results(against) if against is not None else None
        if earlier is not None and tasks and tasks[0].endswith(".json"):
            found_before = load_results(tasks[0])  # two earlier results: nothing is run
            both = (printable(tasks[0]), printable(str(against)))
            show_comparison(outcome, found_before, earlier, both)
            return
        every = all_tasks or (validate and not tasks)
        names = list_tasks() if every else named_tasks(tasks or ())
        if not names:
            raise InputError("name a task, or pass --all; --list names them")
        chosen = TEST_SEED if seed is None else seed
        if earlier is not None:
            check_comparable(names, n, chosen, earlier, printable(str(against)))
        if validate:
            with progress("validating") as tell:
                for name, share in check_tasks(names, n, chosen, tell).items():
                    outcome.add(task=name, **share.to_json())
                    outcome.show(f"{name:24} {share}")
            return
        if output is not None:  # known only at the end otherwise, after minutes of work
            files.check_writable(os.path.join(output, "results.json"))
        from polyglyph.pipeline import load

        pipe = load(checkpoint, device)
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        sampling = {name: value for name, value in given.items() if value is not None}
        with progress("evaluating") as tell:
            found = run_tasks(
                names, pipe, n, output, chosen, sampling=sampling, force=force, progress=tell
            )
        results = found.to_json()
        outcome.results = results["tasks"]
        outcome.show(found.table())
        if earlier is not None:
            show_comparison(outcome, results, earlier, ("this", printable(str(against))))


def _show_tasks(outcome: Outcome) -> None:
    """A line per task."""
    from polyglyph.eval.runner import list_tasks, load_task

    for name in list_tasks():
        outcome.add(task=name, summary=load_task(name).TASK.summary)
        outcome.show(f"{name:24} {outcome.results[-1]['summary']}")


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benches; all by default.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name the benches and end.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few repetitions: a smoke test.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="JSON file to write.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure speed against peers. A missed target is a result, not a failure."""
    with command("bench", as_json, debug) as outcome:
        from polyglyph.bench.runner import list_benches, load_bench, run_benches, table

        if list_all:
            for name in list_benches():
                outcome.add(bench=name, summary=load_bench(name).summary)
                outcome.show(f"{name:16} {outcome.results[-1]['summary']}")
            return
        with progress("measuring") as tell:
            found = run_benches(names or (), output, quick=quick, force=force, progress=tell)
        outcome.results = [result.to_json() for result in found]
        outcome.show(table(found))
