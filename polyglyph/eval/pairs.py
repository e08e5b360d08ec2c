"""Scores one task of the built-in world: prompts through the pipeline, answers to the checkers.

Ceiling: the right answer through its codec and its file. Floor: the right answer of another scene.
Knows the tasks of `data.shapes.examples` by name only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polyglyph.data.shapes.claims import Verdict
from polyglyph.data.shapes.examples import Example, make_example, verdict
from polyglyph.data.sources.shapes import to_media, to_plain
from polyglyph.errors import PolyglyphError
from polyglyph.eval.files import as_filed
from polyglyph.eval.scoring import (
    Context,
    Scored,
    Task,
    TaskResult,
    others,
    share_ok,
    summarise,
)


@dataclass(frozen=True)
class Item:
    """An example, and how its figures are grouped."""

    key: str
    example: Example
    group: str = ""
    held_out: bool = False


Measure = Callable[[Example, Any], dict[str, float]]  # of an answer as plain values
Group = Callable[[int, int, int, bool], str]  # seed, index, n_objects, held_out


def no_group(seed: int, index: int, n_objects: int, held_out: bool) -> str:
    """All items in one group, which has no name."""
    return ""


def no_measure(example: Example, answer: Any) -> dict[str, float]:
    """No metric beside the verdict."""
    return {}


class PairTask(Task):
    """One of `examples.TASKS`, asked of the pipeline."""

    def __init__(
        self,
        name: str,
        summary: str,
        needs: tuple[str, ...],
        *,
        group: Group = no_group,
        measure: Measure = no_measure,
        most_objects: int = 3,
    ) -> None:
        self.name, self.summary, self.needs = name, summary, needs
        self.group, self.measure, self.most_objects = group, measure, most_objects

    def items(self, n: int, seed: int, n_held_out: int = 0) -> list[Item]:
        """n test examples of one, two and three objects in turn, then the held-out ones."""
        rows = []
        for held_out, count in ((False, n), (True, n_held_out)):
            for index in range(count):
                n_objects = 1 + index % self.most_objects
                example = make_example(self.name, seed, index, "test", n_objects, held_out)
                key = f"held-out-{index}" if held_out else str(index)
                group = self.group(seed, index, n_objects, held_out)
                rows.append(Item(key, example, group, held_out))
        return rows

    def truth(self, n: int, seed: int) -> list[Verdict]:
        return [judge(item.example, to_media(item.example.target)) for item in self.items(n, seed)]

    def run(self, context: Context) -> TaskResult:
        items = self.items(context.n, context.seed, context.n_held_out)
        answers = answer(context, items)
        scored = [self._score(item, given) for item, given in zip(items, answers, strict=True)]
        result = summarise(scored, context.seed)
        seen = [item for item in items if not item.held_out]
        result.ceiling = share_ok(ceiling(context.pipe, seen), context.seed)
        result.floor = share_ok(floor(seen, context.seed), context.seed)
        return result

    def _score(self, item: Item, given: Any) -> Scored:
        example = item.example
        if isinstance(given, PolyglyphError):
            found, values, words = failed(example, str(given)), {}, f"no answer: {given}"
        else:
            found = judge(example, given)
            plain = to_plain(as_filed(given))
            values = self.measure(example, plain)
            words = in_words(example.target[0], plain)
        return Scored(
            item.key,
            found,
            len(example.scene.things),
            " | ".join(in_words(*part) for part in example.prompt),
            words,
            item.group,
            item.held_out,
            values,
        )


def judge(example: Example, medium: Any) -> Verdict:
    """The verdict on an answer as its file holds it."""
    return verdict(example, to_plain(as_filed(medium)))


def failed(example: Example, why: str) -> Verdict:
    """The verdict on an answer that is no medium at all: counted, never dropped."""
    right = judge(example, to_media(example.target))
    tally = {name: (0, total) for name, (_, total) in right.by_attribute.items()}
    return Verdict(False, 0, right.total, (why,), tally)


def in_words(modality: str, content: Any) -> str:
    """A text as it is, a region as its numbers, the rest as its shape."""
    if isinstance(content, str):
        return content
    if content.ndim == 1 and len(content) <= 4:
        return f"{modality} " + " ".join(f"{value:.3f}" for value in content)
    return f"{modality} {'x'.join(map(str, content.shape))}"


def prompt_of(example: Example) -> list[Any]:
    """The parts as `Pipeline.generate` takes them: str and media, in order."""
    return [to_media(part) for part in example.prompt]


def answer(context: Context, items: Sequence[Item]) -> list[Any]:
    """One medium per item, or the error that stands in its place; in batches."""
    given: list[Any] = []
    for start in range(0, len(items), context.batch_size):
        context.progress(start, len(items), "generating")
        part = items[start : start + context.batch_size]
        to = part[0].example.target[0]
        prompts = [prompt_of(item.example) for item in part]
        seeds = [context.seed + start + i for i in range(len(part))]
        documents = generate(context, prompts, to, seeds)
        given += [d if isinstance(d, PolyglyphError) else d[0].content for d in documents]
    context.progress(len(items), len(items), "generating")
    return given


def generate(
    context: Context, prompts: list[Any], to: str, seeds: list[int], **sampling: Any
) -> list[Any]:
    """One document, or the error that stands in its place, per prompt.

    `sampling` goes on top of the context's."""
    options = context.sampling | sampling
    try:
        return list(context.pipe.generate_batch(prompts, to=to, seed=seeds, **options))
    except PolyglyphError as error:
        if len(prompts) == 1:
            return [error]
    # One prompt spoils a batch: ask one by one.
    rows = zip(prompts, seeds, strict=True)
    return [document for p, s in rows for document in generate(context, [p], to, [s], **sampling)]


def ceiling(pipe: Any, items: Sequence[Item]) -> list[Verdict]:
    """The right answers, encoded and decoded again."""
    media = [to_media(item.example.target) for item in items]
    tokenizer = pipe.tokenizers[items[0].example.target[0]]
    grids = tokenizer.encode_batch(media)
    rows = zip(items, grids, strict=True)
    return [judge(item.example, tokenizer.decode(grid)) for item, grid in rows]


def floor(items: Sequence[Item], seed: int) -> list[Verdict]:
    """The right answers of other scenes with as many objects, where there are such."""
    found: dict[int, Verdict] = {}
    for n_objects in {len(item.example.scene.things) for item in items}:
        same = [i for i, item in enumerate(items) if len(item.example.scene.things) == n_objects]
        for place, other in enumerate(others(len(same), seed)):
            mine, its = items[same[place]].example, items[same[other]].example
            found[same[place]] = judge(mine, to_media(its.target))
    return [found[i] for i in range(len(items))]
