"""How a number was measured, stamped beside it, so that two can be refused as incomparable.

A protocol is a flat JSON object; two numbers are of one kind where every field agrees. What was
measured (the codec, the checkpoint, its settings) is the subject and stands apart: that is what
one wants to compare. Knows no task and no modality.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyglyph.errors import FormatError, InputError

Protocol = dict[str, Any]
FORMAT = 1
CLOSED_FORM = "none: every metric is a formula"
AS_IS = "none"


def reconstruction_protocol(
    measured: str, reference: str, n: int, *, resize: str = AS_IS, crop: str = AS_IS, **more: Any
) -> Protocol:
    """The stamp of a reconstruction.

    measured: range and metrics, in words. reference: the name of the set with the hash of its
    originals, as they were after resize (with its filter) and crop. weights: those of a metric's
    feature net; ours have none. more: what else the numbers depend on (a sample rate)."""
    # In this order: a cause is named before what follows from it.
    stamp = {"measured": measured, "resize": resize, "crop": crop, "weights": CLOSED_FORM}
    return {**stamp, **more, "n": n, "reference": reference}


def hash_of(values: Iterable[Any]) -> str:
    """The first 16 hex digits of sha256 over arrays, texts and JSON values, in order."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        else:
            digest.update(json.dumps(value, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def refuse_incomparable(
    one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, names: tuple[str, str]
) -> None:
    """InputError, naming the first field that differs, unless two protocols are the same."""
    for protocol, name in zip((one, other), names, strict=True):
        if not protocol:
            raise InputError(
                f"{name} carries no protocol, so its numbers can't be compared; measure it again"
            )
    assert one is not None and other is not None
    for field in [*one, *(name for name in other if name not in one)]:
        if one.get(field) != other.get(field):
            raise InputError(
                f"the numbers can't be compared: {field} is {_said(one, field)} in {names[0]} and "
                f"{_said(other, field)} in {names[1]}; measure both in one way"
            )


def _said(protocol: Mapping[str, Any], field: str) -> str:
    return repr(protocol[field]) if field in protocol else "not stated"


def compare(
    one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, str] = ("this", "that")
) -> list[dict[str, Any]]:
    """Rows {task, metric, this, that, difference} of two results, as results.json holds them.

    InputError where they share no task, or a task of both was measured in two ways."""
    others = {task["task"]: task for task in other["tasks"]}
    shared = [task for task in one["tasks"] if task["task"] in others]
    if not shared:
        raise InputError(
            f"{names[0]} and {names[1]} have no task in common: {_tasks(one)}; {_tasks(other)}"
        )
    rows = []
    for task in shared:
        name, earlier = task["task"], others[task["task"]]
        stamps = (task.get("protocol"), earlier.get("protocol"))
        refuse_incomparable(*stamps, tuple(f"{name} of {which}" for which in names))  # type: ignore[arg-type]
        mine, theirs = _means(task), _means(earlier)
        rows += [
            {"task": name, "metric": k, "this": v, "that": theirs[k], "difference": v - theirs[k]}
            for k, v in mine.items()
            if k in theirs
        ]
    return rows


def _tasks(results: Mapping[str, Any]) -> str:
    return ", ".join(task["task"] for task in results["tasks"]) or "none"


def _means(task: Mapping[str, Any]) -> dict[str, float]:
    """{metric: mean} of a task's figures."""
    right = {"right": task["right"]} if task.get("right") else {}
    return {name: e["mean"] for name, e in {**right, **task.get("metrics", {})}.items()}


def comparison_table(rows: Iterable[Mapping[str, Any]], names: tuple[str, str]) -> Any:
    """The rows of `compare` as a rich table."""
    from rich.table import Table

    table = Table()
    for head in ("task", "metric", *names, "difference"):
        table.add_column(head, justify="left" if head in ("task", "metric") else "right")
    for row in rows:
        figures = [f"{row[k]:.4g}" for k in ("this", "that")]
        table.add_row(row["task"], row["metric"], *figures, f"{row['difference']:+.4g}")
    return table


def load_results(path: str | Path) -> dict[str, Any]:
    """What a results.json holds: at least its tasks. InputError, FormatError otherwise."""
    from polyglyph.checkpoint import check_format, shown

    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{shown(path)}: {reason}; expected a results.json of eval") from error
    except ValueError as error:
        raise FormatError(f"{shown(path)} is not JSON: {error}") from error
    check_format(data, "results file", path, FORMAT)
    tasks = data.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and "task" in t for t in tasks):
        raise FormatError(f"{shown(path)} lists no tasks; expected a results.json of eval")
    return data
