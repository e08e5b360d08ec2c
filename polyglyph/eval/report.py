"""Results as one self-contained HTML page.

Knows the shape of results, not what the tasks mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from polyglyph.eval.metrics import Estimate
from polyglyph.eval.page import frame
from polyglyph.eval.scoring import Scored, TaskResult

if TYPE_CHECKING:
    from polyglyph.eval.runner import Results

_MOST_WRONG = 12  # wrong items shown per task


def page(results: Results) -> str:
    """The report as HTML."""
    head = (
        f"{results.n} test scenes a task, seed {results.seed}; polyglyph {results.polyglyph}; "
        f"{results.hardware}; {results.seconds:.0f} s"
    )
    parts = [
        f"<h1>Evaluation of {escape(results.checkpoint)}</h1>",
        f'<p class="soft">{escape(head)}</p>',
        "<p>A scene is right when nothing in it is wrong. Outputs are read back from their "
        "files by checkers, without a learned model. The green mark is the ceiling (the right "
        "answer through the codecs), the grey one the floor (another scene's right answer)."
        "</p>",
        _overview(results.tasks),
        *[_section(task) for task in results.tasks],
    ]
    return frame(f"Evaluation of {results.checkpoint}", "\n".join(parts))


def _overview(tasks: Iterable[TaskResult]) -> str:
    from polyglyph.eval.runner import cells

    names = ("task", "n", "right (95 %)", "ceiling", "floor", "1 / 2 / 3", "held out", "")
    rows = []
    for task in tasks:
        texts = cells(task)[:7]
        number = "".join(f'<td class="number">{escape(text)}</td>' for text in texts[1:])
        name = f'<td><a href="#{escape(task.task)}">{escape(task.task)}</a></td>'
        rows.append(f"<tr>{name}{number}<td>{_bar(task)}</td></tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table>{table}</table></div>'


def _bar(task: TaskResult) -> str:
    marks = f'<i style="width:{100 * task.right.mean:.1f}%"></i>'
    for estimate, kind in ((task.floor, "floor"), (task.ceiling, "ceiling")):
        if estimate is not None:
            marks += f'<b class="{kind}" style="left:{min(99.0, 100 * estimate.mean):.1f}%"></b>'
    return f'<div class="bar">{marks}</div>'


def _section(task: TaskResult) -> str:
    parts = [
        f'<h2 id="{escape(task.task)}">{escape(task.task)}</h2>',
        f'<p class="soft">version {task.version} · {task.seconds:.1f} s</p>',
    ]
    shares = {f"{n} object{'s' if n > 1 else ''}": e for n, e in task.by_objects.items()}
    groups = [("by number", shares), ("by group", task.by_group), ("metrics", task.metrics)]
    for name, estimates in groups:
        if estimates:
            parts.append(_estimates(name, estimates))
    if task.by_attribute:
        rows = "".join(
            f'<tr><td>{escape(name)}</td><td class="number">{100 * share:.1f} %</td></tr>'
            for name, share in task.by_attribute.items()
        )
        parts.append(f"<table><tr><th>attribute</th><th>right</th></tr>{rows}</table>")
    if task.facts:
        parts.append(f"<p><code>{escape(str(task.facts))}</code></p>")
    if task.protocol:
        said = "; ".join(f"{name}: {value}" for name, value in task.protocol.items())
        parts.append(f'<p class="soft">Protocol: {escape(said)}</p>')
    parts.append(_wrong([item for item in task.items if not item.verdict.ok]))
    return "\n".join(parts)


def _estimates(name: str, estimates: Mapping[Any, Estimate]) -> str:
    rows = "".join(
        f'<tr><td>{escape(str(key))}</td><td class="number">{e.mean:.4g}</td>'
        f'<td class="number">{e.low:.4g} – {e.high:.4g}</td><td class="number">{e.n}</td></tr>'
        for key, e in estimates.items()
    )
    head = f"<tr><th>{escape(name)}</th><th>mean</th><th>95 %</th><th>n</th></tr>"
    return f"<table>{head}{rows}</table>"


def _wrong(items: list[Scored]) -> str:
    if not items:
        return '<p class="soft">Nothing wrong.</p>'
    rows = "".join(
        f"<tr><td>{escape(item.key)}</td><td>{escape(item.prompt)}</td>"
        f"<td>{escape(item.answer)}</td><td>{escape('; '.join(item.verdict.detail))}</td></tr>"
        for item in items[:_MOST_WRONG]
    )
    head = "<tr><th>item</th><th>prompt</th><th>answer</th><th>what is wrong</th></tr>"
    return (
        f"<details><summary>{len(items)} wrong, {min(len(items), _MOST_WRONG)} of them here; all "
        f'in samples.jsonl</summary><div class="wide"><table>{head}{rows}</table></div></details>'
    )
