"""The ceiling of a codec, with codecs whose ceiling is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyglyph.data.shapes.examples import SHOW
from polyglyph.data.shapes.scene import make_scene
from polyglyph.data.sources.shapes import to_media, to_plain
from polyglyph.errors import InputError
from polyglyph.eval.scenes import TEST_SEED, reconstruct_scenes, reconstruction_scores


def fake(modality: str, change: Any) -> Any:
    """A codec that gives back `change` of the plain content; its codes are places in a list."""
    seen: list[Any] = []

    def encode_batch(media: list[Any]) -> list[int]:
        seen.extend(media)
        return list(range(len(seen) - len(media), len(seen)))

    def decode(place: int) -> Any:
        plain = np.array(to_plain(seen[place]))
        content = change(plain if modality != "audio" else plain[0])
        return to_media((modality, content))

    return SimpleNamespace(modality=modality, encode_batch=encode_batch, decode=decode)


def grey(content: np.ndarray) -> np.ndarray:
    return np.full_like(content, 127 if content.dtype == np.uint8 else 0)


@pytest.mark.parametrize("modality", sorted(SHOW))
def test_a_codec_that_keeps_everything_scores_one_and_one_that_keeps_nothing_zero(
    modality: str,
) -> None:
    kept = reconstruction_scores(fake(modality, lambda content: content), 9)
    assert kept == {"scenes_right": 1.0, "n_scenes": 9.0}
    assert reconstruction_scores(fake(modality, grey), 9)["scenes_right"] == 0


def test_one_wrong_scene_of_four_costs_a_quarter() -> None:
    calls: list[int] = []

    def once_grey(content: np.ndarray) -> np.ndarray:
        calls.append(1)
        return grey(content) if len(calls) == 3 else content

    assert reconstruction_scores(fake("image", once_grey), 4)["scenes_right"] == 0.75


def test_mirrored_pictures_are_wrong_in_their_cells_only() -> None:
    rows = reconstruct_scenes(fake("image", lambda p: np.ascontiguousarray(p[:, ::-1])), 12)
    wrong = [verdict for *_, verdict in rows if not verdict.ok]
    assert len(wrong) >= 6 and all(verdict.right > 0 for verdict in wrong)


def test_rows_hold_the_scene_what_was_shown_and_what_came_back() -> None:
    rows = reconstruct_scenes(fake("image", grey), 3, seed=5, n_objects=2)
    for i, (scene, shown, result, verdict) in enumerate(rows):
        assert scene == make_scene(5, i, "test", 2) and len(scene.things) == 2
        assert np.array_equal(to_plain(shown), SHOW["image"](scene))
        assert np.unique(to_plain(result)).tolist() == [127] and not verdict.ok


def test_the_same_test_scenes_are_shown_every_time() -> None:
    first, second = (
        [scene for scene, *_ in reconstruct_scenes(fake("image", grey), 3)] for _ in range(2)
    )
    assert first == second == [make_scene(TEST_SEED, i, "test") for i in range(3)]


def test_a_modality_without_a_checker_is_refused() -> None:
    with pytest.raises(InputError, match="unknown modality with a checker 'text'"):
        reconstruction_scores(fake("text", grey), 2)
