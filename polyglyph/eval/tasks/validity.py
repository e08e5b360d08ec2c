"""What constrained decoding emits parses: every target modality, at temperatures 1.0 and 2.0.

An output counts when it came back as exactly one segment of the modality that was asked for, whose
codes are legal for its codec, and whose medium survives its own file.
"""

from __future__ import annotations

from typing import Any

from polyglyph.data.shapes.claims import Verdict
from polyglyph.data.shapes.examples import make_example
from polyglyph.data.sources.shapes import to_media
from polyglyph.errors import PolyglyphError
from polyglyph.eval.files import as_filed
from polyglyph.eval.pairs import generate, judge, prompt_of
from polyglyph.eval.scoring import Context, Scored, Task, TaskResult, summarise
from polyglyph.tokenizers.base import check_grid

VERSION = 1
TEMPERATURES = (1.0, 2.0)
PROMPTS = {  # a task of the world that ends in the modality
    "text": "image_to_text",
    "image": "text_to_image",
    "video": "text_to_video",
    "audio": "text_to_audio",
    "region": "image_phrase_to_region",
}


def fault(document: Any, to: str, tokenizer: Any) -> str:
    """What is wrong with a generated document, or with the error in its place; "" if nothing is."""
    if isinstance(document, PolyglyphError):
        return str(document)
    found = [segment.modality for segment in document]
    if found != [to]:
        return f"segments {found}, not one {to}"
    grid = document[0].codes
    if grid is None:
        return "no codes"
    try:
        check_grid(grid, tokenizer.spec)
        as_filed(document[0].content)
    except PolyglyphError as error:
        return str(error)
    return ""


class ValidityTask(Task):
    """n / 10 prompts for each modality that the checkpoint has, at each temperature."""

    summary = "constrained outputs that parse, at temperatures 1 and 2"
    needs = ("text",)

    def truth(self, n: int, seed: int) -> list[Verdict]:
        tasks = list(PROMPTS.values())
        examples = [make_example(tasks[i % len(tasks)], seed, i, "test") for i in range(n)]
        return [judge(example, to_media(example.target)) for example in examples]

    def run(self, context: Context) -> TaskResult:
        pipe, count = context.pipe, max(2, context.n // 10)
        targets = [to for to in PROMPTS if to in pipe.tokenizers]
        cells = [(to, temperature) for to in targets for temperature in TEMPERATURES]
        items = []
        for done, (to, temperature) in enumerate(cells):
            context.progress(done, len(cells), f"{to} at temperature {temperature:g}")
            items += self._cell(context, to, temperature, count)
        context.progress(len(cells), len(cells), "generating")
        return summarise(items, context.seed)

    def _cell(self, context: Context, to: str, temperature: float, count: int) -> list[Scored]:
        rows = range(count)
        examples = [make_example(PROMPTS[to], context.seed, i, "test", 1 + i % 3) for i in rows]
        seeds = [context.seed + i for i in rows]
        items = []
        for start in range(0, count, context.batch_size):
            part = slice(start, start + context.batch_size)
            prompts = [prompt_of(example) for example in examples[part]]
            found = generate(context, prompts, to, seeds[part], temperature=temperature)
            for i, document in enumerate(found, start):
                wrong = fault(document, to, context.pipe.tokenizers[to])
                ok = not wrong
                detail = () if ok else (wrong,)
                verdict = Verdict(ok, int(ok), 1, detail, {f"{to} at {temperature:g}": (ok, 1)})
                n_objects = len(examples[i].scene.things)
                key = f"{to}-{temperature:g}-{i}"
                group = f"{to} at {temperature:g}"
                items.append(Scored(key, verdict, n_objects, PROMPTS[to], to, group))
        return items


TASK = ValidityTask()
