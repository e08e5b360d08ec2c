"""The ceiling of a codec: test scenes through media → codes → media, read back by the checkers.

A scene counts as right when every attribute that the medium carries is right for every thing.
"""

from __future__ import annotations

from typing import Any

from polyglyph.data.shapes.claims import Verdict
from polyglyph.data.shapes.examples import SHOW, check_reconstruction
from polyglyph.data.shapes.scene import Scene, make_scene
from polyglyph.data.sources.shapes import to_media, to_plain
from polyglyph.errors import unknown
from polyglyph.tokenizers.base import Tokenizer

TEST_SEED = 1_000_003


def reconstruct_scenes(
    tokenizer: Tokenizer, n: int, seed: int = TEST_SEED, n_objects: int | None = None
) -> list[tuple[Scene, Any, Any, Verdict]]:
    """n test scenes: (scene, medium, its reconstruction, what the checker says of it)."""
    modality = tokenizer.modality
    if modality not in SHOW:
        raise unknown("modality with a checker", modality, SHOW)
    scenes = [make_scene(seed, i, "test", n_objects) for i in range(n)]
    media = [to_media((modality, SHOW[modality](scene))) for scene in scenes]
    rows = []
    for scene, shown, grid in zip(scenes, media, tokenizer.encode_batch(media), strict=True):
        result = tokenizer.decode(grid)
        verdict = check_reconstruction(scene, modality, to_plain(result))
        rows.append((scene, shown, result, verdict))
    return rows


def reconstruction_scores(tokenizer: Tokenizer, n: int) -> dict[str, float]:
    """{"scenes_right": share of n test scenes whose every attribute survives the codec}."""
    rows = reconstruct_scenes(tokenizer, n)
    return {"scenes_right": sum(v.ok for *_, v in rows) / n, "n_scenes": float(n)}
