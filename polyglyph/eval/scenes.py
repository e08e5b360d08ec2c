"""The ceiling of a codec: test scenes through media → codes → media, read back by the checkers.

A scene counts as right when every attribute that the medium carries is right for every thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyglyph.data.shapes.check import Observed, observe, read_clip, read_picture
from polyglyph.data.shapes.check_sound import read_sound
from polyglyph.data.shapes.clip import clip
from polyglyph.data.shapes.picture import picture
from polyglyph.data.shapes.scene import FPS, Scene, make_scene
from polyglyph.data.shapes.sound import SAMPLE_RATE, sound
from polyglyph.errors import unknown
from polyglyph.media import Audio, Image, Video
from polyglyph.tokenizers.base import Tokenizer

TEST_SEED = 1_000_003


@dataclass(frozen=True)
class Medium:
    """How a scene is shown in one medium, and read back."""

    show: Callable[[Scene], Any]
    read: Callable[[Any], list[Observed]]


def _show_image(scene: Scene) -> Image:
    import PIL.Image

    return Image(PIL.Image.fromarray(picture(scene)))


MEDIA: dict[str, Medium] = {
    "image": Medium(_show_image, lambda image: read_picture(np.asarray(image.pil))),
    "video": Medium(
        lambda scene: Video(clip(scene), FPS), lambda video: read_clip(video.frames)
    ),
    "audio": Medium(
        lambda scene: Audio(sound(scene)[None], SAMPLE_RATE),
        lambda audio: read_sound(audio.samples[0]),
    ),
}


def attributes(things: Sequence[Observed]) -> list[tuple[Any, ...]]:
    """What was read, without the fits, in an order of its own."""
    return sorted(
        ((t.shape, t.color, t.size, t.cell, t.motion, t.rise) for t in things), key=repr
    )


def same_scene(read: Sequence[Observed], truth: Sequence[Observed], ordered: bool) -> bool:
    """Every thing with every attribute; in order too, where the medium has no cells."""
    if ordered:
        a = [attributes([t])[0] for t in read]
        return a == [attributes([t])[0] for t in truth]
    return attributes(read) == attributes(truth)


def reconstruct_scenes(
    tokenizer: Tokenizer, n: int, seed: int = TEST_SEED, n_objects: int | None = None
) -> list[tuple[Scene, Any, Any, bool]]:
    """n test scenes: (scene, medium, its reconstruction, whether every attribute survived)."""
    if tokenizer.modality not in MEDIA:
        raise unknown("modality with a checker", tokenizer.modality, MEDIA)
    medium = MEDIA[tokenizer.modality]
    scenes = [make_scene(seed, i, "test", n_objects) for i in range(n)]
    media = [medium.show(scene) for scene in scenes]
    grids = tokenizer.encode_batch(media)
    rows = []
    for scene, shown, grid in zip(scenes, media, grids, strict=True):
        result = tokenizer.decode(grid)
        truth = observe(scene, tokenizer.modality)
        ordered = all(t.cell is None for t in truth)
        right = same_scene(medium.read(result), truth, ordered)
        rows.append((scene, shown, result, right))
    return rows


def reconstruction_scores(tokenizer: Tokenizer, n: int) -> dict[str, float]:
    """{"scenes_right": share of n test scenes whose every attribute survives the codec}."""
    rows = reconstruct_scenes(tokenizer, n)
    return {"scenes_right": sum(right for *_, right in rows) / n, "n_scenes": float(n)}
