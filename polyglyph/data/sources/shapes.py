"""The built-in world as a source: documents of one scene each, in any order, by any worker.

A document is a prompt and a target; only the target carries loss. Knows nothing of ids.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyglyph.data.shapes.examples import TASKS, Example, Part, make_example
from polyglyph.data.shapes.scene import FPS
from polyglyph.data.shapes.sound import SAMPLE_RATE
from polyglyph.errors import InputError, unknown
from polyglyph.sequence.document import Document, Segment

# How often each task comes, relative to the others. Text with picture and sound weighs most: its
# accuracy is what the built-in checkpoint is judged by. Clips take 165 ids a document; at a
# weight of 2, 37 % of them came out right.
MIXTURE: dict[str, int] = {
    "text_to_image": 7,
    "image_to_text": 3,
    "text_to_video": 4,
    "video_to_text": 2,
    "text_to_audio": 4,
    "audio_to_text": 3,
    "image_to_audio": 1,
    "audio_to_image": 1,
    "image_question_to_text": 2,
    "image_instruction_to_image": 1,
    "image_phrase_to_region": 1,
}


def to_media(part: Part) -> Any:
    """A plain content as a medium of `polyglyph.media`; a text stays a str."""
    from PIL import Image as Pixels

    from polyglyph.media import Audio, Image, Region, Video

    modality, content = part
    makers = {
        "text": lambda: str(content),
        "image": lambda: Image(Pixels.fromarray(content)),
        "video": lambda: Video(content, FPS, None),
        "audio": lambda: Audio(content[None], SAMPLE_RATE),
        "region": lambda: Region(content, "box"),
    }
    return makers[modality]()


def to_plain(medium: Any) -> Any:
    """A medium as the checkers read it: str, uint8 pixels, float32 samples (C, S), or values."""
    from polyglyph.media import Audio, Image, Region, Video

    if isinstance(medium, str):
        return medium
    if isinstance(medium, Image):
        return np.asarray(medium.pil)
    if isinstance(medium, Video):
        return medium.frames
    if isinstance(medium, Audio):
        if medium.sample_rate == SAMPLE_RATE:
            return medium.samples
        from polyglyph.media import resample

        return resample(medium.samples, medium.sample_rate, SAMPLE_RATE)
    assert isinstance(medium, Region), type(medium)
    return medium.values


def to_document(example: Example) -> Document:
    """Prompt segments without loss, then the target with loss weight 1."""
    parts = [*example.prompt, example.target]
    last = len(parts) - 1
    return Document(
        Segment(
            part[0],
            to_media(part),
            role="target" if i == last else "prompt",
            loss_weight=1.0 if i == last else 0.0,
        )
        for i, part in enumerate(parts)
    )


class Source:
    """Endless documents; `get(index)` is a pure function of (seed, split, index).

    `mixture` gives whole-number weights of tasks (see `MIXTURE`); `tasks_per_scene` different
    tasks are drawn for each scene, one document each.
    """

    name = "shapes"
    length: int | None = None

    def __init__(
        self,
        seed: int = 0,
        split: str = "train",
        mixture: Mapping[str, int] | None = None,
        tasks_per_scene: int = 1,
    ) -> None:
        if split not in ("train", "test"):
            raise unknown("split", split, ("train", "test"))
        weights = dict(MIXTURE if mixture is None else mixture)
        for task, weight in weights.items():
            if task not in TASKS:
                raise unknown("task", task, TASKS)
            if isinstance(weight, bool) or not isinstance(weight, int) or weight < 0:
                raise InputError(f"the weight of {task} is a whole number from 0; got {weight!r}")
        self.weights = {task: weights[task] for task in TASKS if weights.get(task)}
        if not 1 <= tasks_per_scene <= len(self.weights):
            raise InputError(
                f"tasks_per_scene is 1 to {len(self.weights)} (the tasks that have a weight); "
                f"got {tasks_per_scene}"
            )
        self.seed, self.split, self.tasks_per_scene = seed, split, tasks_per_scene

    def tasks(self, index: int) -> list[str]:
        """The tasks of a scene."""
        rng = random.Random(f"shapes/tasks/{self.split}/{self.seed}/{index}")
        left = dict(self.weights)
        chosen = []
        for _ in range(self.tasks_per_scene):
            task = rng.choices(list(left), list(left.values()))[0]
            chosen.append(task)
            del left[task]
        return chosen

    def examples(self, index: int) -> list[Example]:
        """The scene's tasks with plain contents."""
        return [make_example(task, self.seed, index, self.split) for task in self.tasks(index)]

    def get(self, index: int) -> list[Document]:
        """The scene's documents."""
        return [to_document(example) for example in self.examples(index)]

    def captions(self, index: int) -> list[str]:
        """The texts of the scene's documents: what a text codec is trained on."""
        parts = [p for e in self.examples(index) for p in (*e.prompt, e.target)]
        return [content for _, content in parts if isinstance(content, str)]
