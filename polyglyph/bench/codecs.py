"""The table of the codecs: ours against peers, both sides in one process and on one thread.

Each part is a file of codec_rows; its `rows(quick, say)` yields its results one by one, in the
order of the table. A row more is a part's own affair, a part more is a line of PARTS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from polyglyph.bench.codec_rows import nearest, photographs, published, speech, training, use
from polyglyph.bench.runner import Bench, BenchResult, Progress

Part = Callable[[bool, Callable[[str], None]], Iterator[BenchResult]]
PARTS: tuple[Part, ...] = (
    published.rows, nearest.rows, photographs.rows, speech.rows, training.rows, use.rows,
)  # fmt: skip


def run(quick: bool, progress: Progress) -> list[BenchResult]:
    """All rows; each is told as it is measured. The number of threads is as before afterwards."""
    import torch

    from polyglyph.device import check_broken_torchvision

    check_broken_torchvision()  # transformers doesn't load beside one
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: list[BenchResult] = []
    try:
        for i, part in enumerate(PARTS):

            def say(what: str, i: int = i) -> None:
                progress(i, len(PARTS), what)

            for row in part(quick, say):
                found.append(row)
                say(told(row))
    finally:
        torch.set_num_threads(n_threads)
    progress(len(PARTS), len(PARTS), "done")
    return found


def told(row: BenchResult) -> str:
    """A finished row in a line."""
    value = "–" if row.value is None else f"{row.value:.3g} {row.unit}".rstrip()
    return f"{row.bench}: {value} ({row.summary})"


BENCH = Bench(
    "codecs: published ones, quantizers, training and the shipped ones, beside peers", run
)
