"""A picture and an instruction to the edited picture: what was asked is done, the rest unchanged.

The `unchanged` baseline gives the picture back as it came.
"""

from __future__ import annotations

from polyglyph.data.shapes.edits import edit
from polyglyph.data.shapes.scene import make_scene, scene_rng
from polyglyph.data.sources.shapes import to_media
from polyglyph.eval.pairs import PairTask, judge
from polyglyph.eval.scoring import Context, TaskResult, bootstrap

VERSION = 1
EXAMPLE = "image_instruction_to_image"


def kind(seed: int, index: int, n_objects: int, held_out: bool) -> str:
    """The kind of an example's edit: recolor, resize, move, remove, add."""
    scene = make_scene(seed, index, "test", n_objects, held_out)
    return edit(scene, scene_rng(seed, index, "test", EXAMPLE)).kind


class EditTask(PairTask):
    """Adds the baseline that changes nothing."""

    def run(self, context: Context) -> TaskResult:
        result = super().run(context)
        rows = [item.example for item in self.items(context.n, context.seed)]
        same = [float(judge(row, to_media(row.prompt[0])).ok) for row in rows]
        result.metrics["unchanged"] = bootstrap(same, context.seed)
        return result


TASK = EditTask(EXAMPLE, "pictures edited as asked", ("image", "text"), group=kind)
