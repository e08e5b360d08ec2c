"""Runs tasks by name and keeps what they found: a table, results.json, samples.jsonl, report.html.

The tasks are the files of `tasks/`. Knows none of them by name.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from polyglyph.errors import InputError, unknown
from polyglyph.eval import tasks as tasks_package
from polyglyph.eval.metrics import Estimate
from polyglyph.eval.protocol import FORMAT, hash_of, refuse_incomparable
from polyglyph.eval.scoring import TEST_SEED, Context, Progress, TaskResult, no_progress

FILES = ("results.json", "samples.jsonl", "report.html")


def list_tasks() -> list[str]:
    """The names of all tasks, sorted; imports none of them."""
    found = pkgutil.iter_modules(tasks_package.__path__)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def named_tasks(names: Iterable[str]) -> list[str]:
    """The tasks that names mean: one each, or all that begin so (`reconstruction`: of all media).
    InputError with the nearest name."""
    known = list_tasks()
    found: list[str] = []
    for name in names:
        family = [name] if name in known else [t for t in known if t.startswith(f"{name}_")]
        if not family:
            raise unknown("task", name, known)
        found += family
    return list(dict.fromkeys(found))


def load_task(name: str) -> ModuleType:
    """The file of a task: it holds VERSION and TASK. InputError with the nearest name."""
    if name not in list_tasks():
        raise unknown("task", name, list_tasks())
    return importlib.import_module(f"{tasks_package.__name__}.{name}")


@dataclass
class Results:
    """What a run of the evaluation found, and on what."""

    tasks: list[TaskResult]
    n: int
    seed: int
    checkpoint: str
    polyglyph: str
    hardware: str
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __getitem__(self, name: str) -> TaskResult:
        return next(task for task in self.tasks if task.task == name)

    def to_json(self) -> dict[str, Any]:
        """{format, n, seed, checkpoint, ..., tasks: [...]} without the items."""
        data: dict[str, Any] = {"format": FORMAT}
        for name in ("n", "seed", "checkpoint", "polyglyph", "hardware", "settings", "seconds"):
            data[name] = getattr(self, name)
        return data | {"tasks": [task.to_json() for task in self.tasks]}

    def table(self) -> Any:
        """A rich table: one row per task."""
        from rich.table import Table

        table = Table(title=f"{self.checkpoint}: share of scenes with nothing wrong")
        for name in ("task", "n", "right", "ceiling", "floor", "1 / 2 / 3 objects", "held out"):
            table.add_column(name, justify="left" if name == "task" else "right")
        table.add_column("more")
        for task in self.tasks:
            table.add_row(*cells(task))
        return table

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Writes results.json, samples.jsonl and report.html; InputError where one exists."""
        from polyglyph.checkpoint import atomic_file, refuse_existing
        from polyglyph.eval.report import page

        folder = Path(folder)
        for name in FILES:
            refuse_existing(folder / name, force)
        lines = [
            json.dumps({"task": task.task, **item.to_json()}, ensure_ascii=False)
            for task in self.tasks
            for item in task.items
        ]
        texts = (
            json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n",
            "".join(f"{line}\n" for line in lines),
            page(self),
        )
        for name, text in zip(FILES, texts, strict=True):
            with atomic_file(folder / name, force=force) as temporary:
                temporary.write_text(text, "utf-8")


def percent(estimate: Estimate | None, interval: bool = False) -> str:
    """ "82 %", or "82 % (76–87)" with the interval; "" of None."""
    if estimate is None:
        return ""
    text = f"{100 * estimate.mean:.1f} %"
    if interval:
        text += f" ({100 * estimate.low:.0f}–{100 * estimate.high:.0f})"
    return text


def cells(task: TaskResult) -> list[str]:
    """One row of the table: texts for its eight columns."""
    counts = " / ".join(f"{100 * e.mean:.0f}" for _, e in sorted(task.by_objects.items()))
    more = [f"{name} {estimate.mean:.4g}" for name, estimate in task.metrics.items()]
    return [
        task.task,
        str(task.n),
        percent(task.right, interval=True),
        percent(task.ceiling),
        percent(task.floor),
        counts,
        percent(task.held_out),
        ", ".join(more),
    ]


def run_tasks(
    names: Iterable[str],
    pipe: Any,
    n: int = 200,
    out: str | Path | None = None,
    seed: int = TEST_SEED,
    *,
    batch_size: int = 32,
    sampling: dict[str, Any] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Results:
    """Scores a pipeline on tasks; with `out`, the folder's files are written at the end.

    What a task needs and what `out` holds is checked before the first one starts. `sampling` goes
    to every `generate_batch` (temperature ...). InputError: unknown task, n < 1, a seed below 0, a
    checkpoint without a span that a task needs, an output that exists.
    """
    from polyglyph import __version__
    from polyglyph.checkpoint import refuse_existing
    from polyglyph.eval.machine import describe_machine

    modules = {name: load_task(name) for name in dict.fromkeys(names)}
    if n < 1:
        raise InputError(f"an evaluation scores at least one item; got n = {n}")
    check_seed(seed)
    for name, module in modules.items():
        check_needs(name, module, pipe)
    for file in FILES if out is not None else ():
        refuse_existing(Path(str(out)) / file, force)
    context = Context(pipe, n, seed, batch_size, dict(sampling or {}))
    began = time.perf_counter()
    found = [_run(name, module, context, progress) for name, module in modules.items()]
    results = Results(
        found,
        n,
        seed,
        str(getattr(pipe, "name", "checkpoint")),
        __version__,
        describe_machine(),
        dict(sampling or {}),
        time.perf_counter() - began,
    )
    if out is not None:
        results.save(out, force)
    return results


def check_seed(seed: int) -> None:
    """InputError for a seed that numpy's generators don't take."""
    if seed < 0:
        raise InputError(f"the seed of an evaluation is a whole number from 0; got {seed}")


def check_needs(name: str, module: ModuleType, pipe: Any) -> None:
    """InputError unless the pipeline has the codecs, and the model, that a task needs."""
    if module.TASK.generates and getattr(pipe, "model", True) is None:
        raise InputError(
            f"task {name} needs a model; this checkpoint holds codecs only: choose the "
            f"reconstruction tasks"
        )
    missing = [span for span in module.TASK.needs if span not in pipe.tokenizers]
    if missing:
        raise InputError(
            f"task {name} needs {', '.join(missing)}; this checkpoint has "
            f"{', '.join(pipe.tokenizers)}; leave the task out"
        )


def check_comparable(
    names: Iterable[str], n: int, seed: int, earlier: Mapping[str, Any], label: str
) -> None:
    """InputError where a run of these tasks could not be compared with an earlier result: said
    before it starts, as far as it is known by then."""
    stated = {task["task"]: task.get("protocol") for task in earlier["tasks"]}
    shared = [name for name in names if name in stated]
    if not shared:
        had = ", ".join(stated) or "none"
        raise InputError(f"{label} has none of these tasks; it has {had}: name one of them")
    for name in shared:
        known = {"version": load_task(name).VERSION, "seed": seed, "n": n}
        before = stated[name] and {field: stated[name].get(field) for field in known}
        refuse_incomparable(known, before, (f"{name} of this", f"{name} of {label}"))


def _run(name: str, module: ModuleType, context: Context, progress: Progress) -> TaskResult:
    def tell(done: int, of: int, what: str) -> None:
        progress(done, of, f"{name}: {what}")

    began = time.perf_counter()
    result: TaskResult = module.TASK.run(replace(context, progress=tell))
    result.task, result.version = name, module.VERSION
    # What was asked of whom: a changed world or prompt shows, whatever its version says.
    asked = f"test scenes of shapes {hash_of([[item.key, item.prompt] for item in result.items])}"
    general = {"version": module.VERSION, "seed": result.seed, "n": result.n, "reference": asked}
    result.protocol = general | result.protocol
    result.seconds = time.perf_counter() - began
    return result


def validate(
    names: Iterable[str] | None = None,
    n: int = 60,
    seed: int = TEST_SEED,
    progress: Progress = no_progress,
) -> dict[str, Estimate]:
    """{task: share of right answers that the task's checker calls right}; below 1 it is broken.

    Needs no checkpoint: the answers are the ground truth, as files.
    """
    from polyglyph.eval.scoring import share_ok

    chosen = list(dict.fromkeys(list_tasks() if names is None else names))
    modules = {name: load_task(name) for name in chosen}
    if n < 1:
        raise InputError(f"a validation checks at least one item; got n = {n}")
    check_seed(seed)
    found: dict[str, Estimate] = {}
    for done, (name, module) in enumerate(modules.items()):
        progress(done, len(modules), name)
        share = share_ok(module.TASK.truth(n, seed), seed)
        assert share is not None
        found[name] = share
    progress(len(modules), len(modules), "done")
    return found
