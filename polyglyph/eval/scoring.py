"""What every task shares: its context, one scored item, its result, the contract.

A task is a file of `tasks/` that holds `VERSION` and `TASK`. Knows no task and no modality.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyglyph.data.shapes.claims import Verdict
from polyglyph.eval.metrics import Estimate, bootstrap
from polyglyph.eval.scenes import TEST_SEED

Progress = Callable[[int, int, str], None]  # done, of, what


def no_progress(done: int, of: int, what: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Context:
    """What a task runs with. `pipe` is a Pipeline; `sampling` goes to its `generate_batch`."""

    pipe: Any
    n: int
    seed: int = TEST_SEED
    batch_size: int = 32
    sampling: dict[str, Any] = field(default_factory=dict)
    progress: Progress = no_progress

    @property
    def n_held_out(self) -> int:
        """How many scenes with a pair that was never trained are scored beside the n."""
        return max(2, self.n // 4)


@dataclass
class Scored:
    """One item, with all that is needed to score it again."""

    key: str  # "17", "held-out-3"
    verdict: Verdict
    n_objects: int
    prompt: str  # in words
    answer: str  # in words
    group: str = ""
    held_out: bool = False
    values: dict[str, float] = field(default_factory=dict)  # further metrics of this item

    def to_json(self) -> dict[str, Any]:
        """One line of samples.jsonl."""
        v = self.verdict
        return {
            "key": self.key,
            "ok": v.ok,
            "right": v.right,
            "total": v.total,
            "detail": list(v.detail),
            "n_objects": self.n_objects,
            "group": self.group,
            "held_out": self.held_out,
            "prompt": self.prompt,
            "answer": self.answer,
            "values": self.values,
        }


@dataclass
class TaskResult:
    """A task's figures. Shares are of items with nothing wrong, unless their name says more."""

    task: str
    version: int
    seed: int
    n: int
    right: Estimate
    ceiling: Estimate | None = None
    floor: Estimate | None = None
    held_out: Estimate | None = None  # compositions that were never trained
    by_objects: dict[int, Estimate] = field(default_factory=dict)
    by_attribute: dict[str, float] = field(default_factory=dict)
    by_group: dict[str, Estimate] = field(default_factory=dict)
    metrics: dict[str, Estimate] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)  # how it was measured
    subject: dict[str, Any] = field(default_factory=dict)  # what was, beside the checkpoint
    seconds: float = 0.0
    items: list[Scored] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything but the items."""
        plain = ["task", "version", "seed", "n", "by_attribute", "facts", "protocol", "subject"]
        plain += ["seconds"]
        one = ("right", "ceiling", "floor", "held_out")
        many = ("by_objects", "by_group", "metrics")
        data: dict[str, Any] = {name: getattr(self, name) for name in plain}
        for name in one:
            estimate = getattr(self, name)
            data[name] = None if estimate is None else estimate.to_json()
        for name in many:
            data[name] = {str(k): v.to_json() for k, v in getattr(self, name).items()}
        return data


class Task(ABC):
    """One row of the evaluation."""

    summary: str  # one line
    needs: tuple[str, ...]  # spans that the checkpoint must have
    generates = True  # False: codecs suffice

    @abstractmethod
    def run(self, context: Context) -> TaskResult:
        """Scores the pipeline; `task`, `version` and `seconds` are the runner's to fill."""

    @abstractmethod
    def truth(self, n: int, seed: int) -> list[Verdict]:
        """The verdicts on n right answers, as files: all ok, or the harness itself is wrong."""


def share_ok(verdicts: Sequence[Verdict], seed: int = 0) -> Estimate | None:
    """The share of verdicts with nothing wrong; None of none."""
    return bootstrap([float(v.ok) for v in verdicts], seed) if verdicts else None


def attributes_of(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """{attribute: share of its statements that are right}"""
    counts: dict[str, list[int]] = {}
    for verdict in verdicts:
        for name, (right, total) in verdict.by_attribute.items():
            row = counts.setdefault(name, [0, 0])
            row[0] += right
            row[1] += total
    return {name: right / total for name, (right, total) in sorted(counts.items()) if total}


def summarise(items: Sequence[Scored], seed: int) -> TaskResult:
    """The figures that follow from scored items alone; the held-out ones apart."""
    seen = [item for item in items if not item.held_out]
    assert seen, "a task scores at least one item"
    right = share_ok([item.verdict for item in seen], seed)
    assert right is not None
    counts = sorted({item.n_objects for item in seen})
    groups = sorted({item.group for item in seen if item.group})
    names = sorted({name for item in seen for name in item.values})
    return TaskResult(
        task="",
        version=0,
        seed=seed,
        n=len(seen),
        right=right,
        held_out=share_ok([item.verdict for item in items if item.held_out], seed),
        by_objects={
            n: bootstrap([float(i.verdict.ok) for i in seen if i.n_objects == n], seed)
            for n in counts
        },
        by_attribute=attributes_of([item.verdict for item in seen]),
        by_group={
            g: bootstrap([float(i.verdict.ok) for i in seen if i.group == g], seed) for g in groups
        },
        metrics={
            name: bootstrap([i.values[name] for i in seen if name in i.values], seed)
            for name in names
        },
        items=list(items),
    )


def others(n: int, seed: int) -> list[int]:
    """For each of n items another one, each used once; of one item, itself."""
    order = list(range(n))
    random.Random(f"others/{seed}").shuffle(order)
    swapped = [0] * n
    for place, index in enumerate(order):
        swapped[index] = order[(place + 1) % n]
    return swapped
