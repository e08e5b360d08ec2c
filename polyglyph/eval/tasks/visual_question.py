"""A picture and a question to the one right answer; exact match.

The blind baseline knows the question and not the picture: the most frequent answer, in training
scenes, to questions that differ in the names of colours, shapes and sizes only.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import lru_cache

from polyglyph.data.shapes.questions import question
from polyglyph.data.shapes.scene import COLORS, SHAPES, SIZES, make_scene, scene_rng
from polyglyph.eval.pairs import Item, PairTask
from polyglyph.eval.scoring import Context, TaskResult, bootstrap

VERSION = 1
EXAMPLE = "image_question_to_text"
_N_BLIND = 3000  # training scenes that the blind baseline counts
_NAMES = re.compile(rf"\b({'|'.join((*COLORS, *SHAPES, *SIZES))})(e?s)?\b")


def family(seed: int, index: int, n_objects: int, held_out: bool) -> str:
    """The family of an example's question: count, color, where ..."""
    scene = make_scene(seed, index, "test", n_objects, held_out)
    return question(scene, scene_rng(seed, index, "test", EXAMPLE)).family


def template(text: str) -> str:
    """The question without the names in it."""
    return _NAMES.sub("*", text)


@lru_cache(maxsize=1)
def blind_answers() -> dict[str, str]:
    """{template: the most frequent answer in training scenes}"""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(_N_BLIND):
        scene = make_scene(0, index, "train", 1 + index % 3)
        asked = question(scene, scene_rng(0, index, "train", EXAMPLE))
        counts[template(asked.text)][asked.answer] += 1
    return {name: answers.most_common(1)[0][0] for name, answers in counts.items()}


class QuestionTask(PairTask):
    """Adds the blind baseline."""

    def run(self, context: Context) -> TaskResult:
        result = super().run(context)
        blind = [float(is_blind_right(item)) for item in self.items(context.n, context.seed)]
        result.metrics["blind"] = bootstrap(blind, context.seed)
        return result


def is_blind_right(item: Item) -> bool:
    """Whether the picture wasn't needed."""
    asked, truth = item.example.prompt[1][1], item.example.target[1]
    return blind_answers().get(template(asked)) == truth


TASK = QuestionTask(EXAMPLE, "answers about pictures", ("image", "text"), group=family)
