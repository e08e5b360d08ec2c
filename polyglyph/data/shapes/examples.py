"""Tasks on scenes: what is given, what is asked for, and the verdict on a result.

Every pair of media that the world trains and scores is one entry of the table at the end. Contents
are plain: str, uint8 pixels, float32 samples, float32 boxes. Knows nothing of ids or documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyglyph.data.shapes.captions import canonical, caption, parse_caption
from polyglyph.data.shapes.check import Observed, observe, read_clip, read_picture
from polyglyph.data.shapes.check_sound import read_sound
from polyglyph.data.shapes.claims import Constraints, Verdict, constraints_of
from polyglyph.data.shapes.clip import clip
from polyglyph.data.shapes.edits import edit
from polyglyph.data.shapes.picture import picture
from polyglyph.data.shapes.questions import phrase, question
from polyglyph.data.shapes.regions import ENOUGH, box_of, overlap
from polyglyph.data.shapes.scene import OBSERVABLE, Scene, make_scene, scene_rng
from polyglyph.data.shapes.sound import sound
from polyglyph.errors import InputError, unknown

Part = tuple[str, Any]  # modality, content

SHOW: dict[str, Callable[[Scene], np.ndarray]] = {"image": picture, "video": clip, "audio": sound}
READ: dict[str, Callable[[np.ndarray], list[Observed]]] = {
    "image": read_picture,
    "video": read_clip,
    "audio": read_sound,
}


@dataclass(frozen=True)
class Example:
    """One task on one scene: the prompt's parts, the target, and the scene that is asked for."""

    task: str
    prompt: tuple[Part, ...]
    target: Part
    scene: Scene
    wanted: Scene  # the scene that the target shows: the edited one, or the same


def shared(source: str, target: str) -> tuple[str, ...]:
    """The attributes that two media both carry; a motion includes its rise."""
    both = [name for name in OBSERVABLE[source] if name in OBSERVABLE[target]]
    return tuple(name for name in both if name != "rise" or "motion" not in both)


def _show(text: str, modality: str) -> Callable[[Scene, Any], Example]:
    def make(scene: Scene, rng: Any) -> Example:
        words = caption(scene, rng, modality)
        target = modality, SHOW[modality](scene)
        return Example(text, (("text", words),), target, scene, scene)

    return make


def _tell(name: str, modality: str) -> Callable[[Scene, Any], Example]:
    def make(scene: Scene, rng: Any) -> Example:
        given = modality, SHOW[modality](scene)
        return Example(name, (given,), ("text", canonical(scene, modality)), scene, scene)

    return make


def _turn(name: str, source: str, target: str) -> Callable[[Scene, Any], Example]:
    def make(scene: Scene, rng: Any) -> Example:
        given = source, SHOW[source](scene)
        return Example(name, (given,), (target, SHOW[target](scene)), scene, scene)

    return make


def _question(scene: Scene, rng: Any) -> Example:
    asked = question(scene, rng)
    prompt = (("image", picture(scene)), ("text", asked.text))
    return Example("image_question_to_text", prompt, ("text", asked.answer), scene, scene)


def _edit(scene: Scene, rng: Any) -> Example:
    made = edit(scene, rng)
    prompt = (("image", picture(scene)), ("text", made.instruction))
    target = "image", picture(made.after)
    return Example("image_instruction_to_image", prompt, target, scene, made.after)


def _phrase(scene: Scene, rng: Any) -> Example:
    index = rng.randrange(len(scene.things))
    prompt = (("image", picture(scene)), ("text", phrase(scene, index, rng)))
    target = "region", box_of(scene, index)
    return Example("image_phrase_to_region", prompt, target, scene, scene)


_Maker = Callable[[Scene, Any], Example]
_Checker = Callable[[Example, Any], Verdict]


def _check_wish(example: Example, result: Any) -> Verdict:
    return check_prompt(example.prompt[0][1], example.target[0], result)


def _check_told(example: Example, result: Any) -> Verdict:
    """A text must say everything that the medium shows."""
    medium = example.prompt[0][0]
    truth = observe(example.scene, medium)
    wanted = shared("text", medium)
    try:
        said = parse_caption(str(result))
    except InputError as error:
        total = len(truth) * sum(name != "order" for name in wanted) + 1
        return Verdict(False, 0, total, (str(error),))
    return said.check(truth, wanted, complete=True)


def _check_turned(example: Example, result: Any) -> Verdict:
    return _check_shown(example.wanted, example.prompt[0][0], example.target[0], result)


def _check_answer(example: Example, result: Any) -> Verdict:
    truth = example.target[1]
    good = str(result).strip().lower() == truth
    return _exact(good, "answer", f"{result!r}, not {truth!r}")


def _check_region(example: Example, result: Any) -> Verdict:
    share = overlap(np.asarray(result), example.target[1])
    return _exact(share >= ENOUGH, "region", f"overlap {share:.2f}")


def _exact(good: bool, name: str, text: str) -> Verdict:
    return Verdict(good, int(good), 1, () if good else (text,), {name: (int(good), 1)})


def _check_shown(scene: Scene, source: str, target: str, result: Any) -> Verdict:
    """Whether a result in one medium shows what another medium of the scene carries."""
    carried = constraints_of(observe(scene, source))
    both = shared(source, target)
    if "cell" in both:  # the cells say more than the order
        carried = Constraints(carried.things)
    return carried.check(READ[target](result), both)


_TASKS: dict[str, tuple[_Maker, _Checker]] = {
    "text_to_image": (_show("text_to_image", "image"), _check_wish),
    "image_to_text": (_tell("image_to_text", "image"), _check_told),
    "text_to_video": (_show("text_to_video", "video"), _check_wish),
    "video_to_text": (_tell("video_to_text", "video"), _check_told),
    "text_to_audio": (_show("text_to_audio", "audio"), _check_wish),
    "audio_to_text": (_tell("audio_to_text", "audio"), _check_told),
    "image_to_audio": (_turn("image_to_audio", "image", "audio"), _check_turned),
    "audio_to_image": (_turn("audio_to_image", "audio", "image"), _check_turned),
    "image_question_to_text": (_question, _check_answer),
    "image_instruction_to_image": (_edit, _check_turned),
    "image_phrase_to_region": (_phrase, _check_region),
}
TASKS = tuple(_TASKS)


def make_example(
    task: str,
    seed: int,
    index: int,
    split: str = "train",
    n_objects: int | None = None,
    held_out: bool = False,
) -> Example:
    """The example of a task on the scene of (seed, index, split); pure. InputError on its name."""
    if task not in _TASKS:
        raise unknown("task", task, TASKS)
    scene = make_scene(seed, index, split, n_objects, held_out)
    return _TASKS[task][0](scene, scene_rng(seed, index, split, task))


def check_prompt(text: str, modality: str, result: Any) -> Verdict:
    """Whether a picture, clip or sound shows what a text asks for. InputError if the text can't be
    read as words of this world."""
    return parse_caption(text).check(READ[modality](result), shared("text", modality))


def verdict(example: Example, result: Any) -> Verdict:
    """How a result does at an example, on what prompt and target both carry.

    `result`: str, pixels (H, W, 3) or (8, H, W, 3) uint8, samples (S,) or (C, S) at 16 kHz, or a
    box (4,). A wish is held to what it says; an answer must say everything; an edit must change
    what was asked and nothing else.
    """
    return _TASKS[example.task][1](example, result)


def check_reconstruction(scene: Scene, modality: str, result: np.ndarray) -> Verdict:
    """Whether a codec kept every attribute of the scene that its medium carries."""
    return _check_shown(scene, modality, modality, result)


def tally(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """{n, ok, share, attributes: {name: share right}} over many verdicts."""
    rows: Sequence[Verdict] = list(verdicts)
    counts: dict[str, list[int]] = {}
    for row in rows:
        for name, (right, total) in row.by_attribute.items():
            count = counts.setdefault(name, [0, 0])
            count[0] += right
            count[1] += total
    n = max(len(rows), 1)
    return {
        "n": len(rows),
        "ok": sum(row.ok for row in rows) / n,
        "share": sum(row.share for row in rows) / n,
        "attributes": {name: right / total for name, (right, total) in sorted(counts.items())},
    }
