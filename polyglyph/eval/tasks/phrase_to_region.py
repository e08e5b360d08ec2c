"""A picture and a phrase to the box of the thing: right from an overlap of one half."""

from __future__ import annotations

from typing import Any

from polyglyph.data.shapes.examples import Example
from polyglyph.data.shapes.regions import overlap
from polyglyph.eval.pairs import PairTask

VERSION = 1


def measure(example: Example, answer: Any) -> dict[str, float]:
    """Intersection over union with the right box."""
    return {"iou": overlap(answer, example.target[1])}


TASK = PairTask(
    "image_phrase_to_region",
    "boxes of what a phrase names",
    ("image", "text", "region"),
    measure=measure,
)
