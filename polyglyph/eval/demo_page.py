"""The page of `polyglyph demo`: prompt and result side by side, players, mosaics, verdicts.

Takes the tour as plain attributes and knows nothing of how it was made.
"""

from __future__ import annotations

from html import escape
from typing import Any

import polyglyph
from polyglyph.eval.page import figure, frame, mosaic, show, with_box
from polyglyph.media import MODALITY_OF

TRUTH_STYLE = 'stroke="#fff" stroke-opacity=".75" stroke-dasharray="4 3" stroke-width="1.2"'
ANSWER_STYLE = 'stroke="#ff2fd0" stroke-width="2.2"'
_LARGE = 400  # codes: a bigger grid belongs to a photograph


def render_page(tour: Any) -> str:
    """A `polyglyph.demo.Tour` as HTML."""
    body = "\n".join(
        [
            _head(tour),
            _matrix(tour.stops),
            "<h2>Made by the transformer</h2>",
            "<p class='soft'>Each result was written as a file and read back from it by a checker "
            "that is no learned model: it compares pixels and spectra with what was asked. What a "
            "prompt leaves open may be anything.</p>",
            *[_stop(i, stop) for i, stop in enumerate(tour.stops)],
            "<h2>Through the codecs and back</h2>",
            "<p class='soft'>Media to codes to media, without the transformer, at their own size. "
            "The codecs of <b>tiny</b> are small and were trained on procedural media only: no "
            "photograph was among them, so one comes back rough. Larger codecs take the same "
            "path.</p>",
            *[_copy(copy) for copy in tour.copies],
            *_asides(tour),
            _foot(tour),
        ]
    )
    return frame("Polyglyph: any medium to any medium", body)


def _head(tour: Any) -> str:
    counts = dict(tour.n_parameters)
    model = counts.pop("model")
    right = sum(stop.found.ok for stop in tour.stops)
    codecs = ", ".join(f"{span} {n / 1e6:.1f} M" for span, n in counts.items())
    tiles = (
        (f"{model / 1e6:.1f} M", "parameters of the transformer"),
        (f"{sum(counts.values()) / 1e6:.1f} M", f"parameters of the codecs: {codecs}"),
        (f"{right} of {len(tour.stops)}", "results with nothing wrong"),
        (f"{tour.seconds:.1f} s", "for everything on this page"),
        (f"{tour.peak_bytes / 2**30:.2f} GiB", "peak memory"),
    )
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span class="soft small">{escape(name)}</span>'
        "</div>"
        for value, name in tiles
    )
    return (
        "<h1>Any medium to any medium, one transformer</h1>"
        "<p>Text, pictures, clips, sounds and regions all become codes, codes become ids of one "
        "vocabulary, and one small transformer continues the ids. The way back ends in media "
        "again. Everything below was made just now, on this machine, by the checkpoint "
        f"<b>{escape(tour.checkpoint)}</b>, from one another’s prompts. It knows one small world: "
        "one to three coloured shapes that stand, move and sound.</p>"
        f'<div class="tiles">{boxes}</div>'
    )


def _pairs(stops: list[Any]) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for i, stop in enumerate(stops):
        found.setdefault((stop.source, stop.to), []).append(i)
    return found


def _matrix(stops: list[Any]) -> str:
    pairs = _pairs(stops)
    sources = list(dict.fromkeys(source for source, _ in pairs))
    targets = list(dict.fromkeys(target for _, target in pairs))
    head = "".join(f"<th>→ {escape(target)}</th>" for target in targets)
    rows = []
    for source in sources:
        cells = []
        for target in targets:
            links = [
                f'<a class="badge {"good" if stops[i].found.ok else "bad"}" href="#stop-{i}">'
                f"{'✓' if stops[i].found.ok else '✗'}</a>"
                for i in pairs.get((source, target), [])
            ]
            cells.append(f"<td>{' '.join(links)}</td>")
        rows.append(f"<tr><th>{escape(source)}</th>{''.join(cells)}</tr>")
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return (
        "<h2>What goes in, what comes out</h2>"
        f'<div class="card wide"><table class="matrix">{table}</table></div>'
    )


def _badge(stop: Any) -> str:
    verdict = stop.found
    kind, word = ("good", "right") if verdict.ok else ("bad", "wrong")
    score = f"{verdict.right} of {verdict.total} checks passed"
    return f'<span class="badge {kind}">{word}</span><span class="soft small">{score}</span>'


def _medium(medium: Any, codes: Any, alt: str) -> str:
    shown = figure(show(medium, alt))
    if codes is None or isinstance(medium, str) or codes.ndim < 2:
        return shown
    n_codes = codes[0].size
    return shown + mosaic(codes, alt, large=n_codes > _LARGE)


def _answer(stop: Any) -> str:
    """A region is drawn over the picture that it lies in."""
    pictures = [part for part in stop.parts if hasattr(part, "pil")]
    values = getattr(stop.answer, "values", None)
    if values is not None and len(values) == 4 and pictures:
        boxes = [(values, ANSWER_STYLE)]
        if stop.truth is not None:
            boxes.insert(0, (stop.truth, TRUTH_STYLE))
        box = with_box(pictures[0], boxes, "the region over the picture")
        return figure(box, "pink: the answer; dashed: the right box") + figure(
            show(stop.answer, "the box"), "x0 y0 x1 y1, fractions of the picture"
        )
    return _medium(stop.answer, stop.codes, f"the {stop.to} that was made")


def _stop(index: int, stop: Any) -> str:
    given = "".join(
        _medium(part, codes, f"the {MODALITY_OF(part)} that was given")
        for part, codes in zip(stop.parts, stop.part_codes, strict=True)
    )
    detail = "".join(f"<li>{escape(text)}</li>" for text in stop.found.detail)
    note = f'<p class="soft small">{escape(stop.note)}</p>' if stop.note else ""
    wrong = f'<ul class="soft small">{detail}</ul>' if detail else ""
    expected = ""
    if isinstance(stop.truth, str) and not stop.found.ok:
        expected = f'<p class="soft small">expected: {escape(stop.truth)}</p>'
    return (
        f'<section class="card" id="stop-{index}"><header>'
        f"<h3>{escape(stop.source)} → {escape(stop.to)}</h3>{_badge(stop)}"
        f'<span class="soft small">{stop.seconds:.2f} s</span>'
        f'<a class="small" href="{escape(stop.file)}">{escape(stop.file)}</a></header>'
        f'<div class="sides"><div class="row">{given}</div><div class="arrow">→</div>'
        f'<div class="row">{_answer(stop)}</div></div>{note}{expected}{wrong}</section>'
    )


def _copy(copy: Any) -> str:
    numbers = " · ".join(f"{name} {value}" for name, value in copy.numbers.items())
    notes = "".join(f'<p class="soft small">{escape(note)}</p>' for note in copy.notes)
    return (
        f'<section class="card"><header><h3>{escape(copy.name)}</h3>'
        f'<span class="soft small">{escape(numbers)} · {copy.seconds:.2f} s</span>'
        f'<a class="small" href="{escape(copy.file)}">{escape(copy.file)}</a></header>'
        f'<div class="sides"><div class="row">{figure(show(copy.original, copy.name), "original")}'
        f'</div><div class="arrow">→</div><div class="row">'
        f"{figure(show(copy.result, f'{copy.name}, reconstructed'), 'from its codes')}"
        f"{mosaic(copy.codes, copy.name, large=copy.codes[0].size > _LARGE)}</div></div>"
        f"{notes}</section>"
    )


def _asides(tour: Any) -> list[str]:
    lines = [f"<p class='soft'>Left out: {escape(note)}</p>" for note in tour.notes]
    lines += [
        f"<p class='soft'><b>{escape(error['source'])}</b> is not here: "
        f"{escape(error['message'])}</p>"
        for error in tour.errors
    ]
    return lines


def _foot(tour: Any) -> str:
    return (
        "<h2>How to make this page</h2><p><code>polyglyph demo -o demo my.jpg my.wav</code> "
        "adds your own media. Results of one target were generated in one batch; the seconds of "
        "each are its share.</p>"
        f'<p class="soft small">polyglyph {escape(polyglyph.__version__)} · '
        f"{escape(tour.hardware)}</p>"
    )
