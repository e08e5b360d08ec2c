from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from polyglyph.data.prepare import describe
from polyglyph.fitting import FittedSource, PromptSize, fit
from polyglyph.media import Action, Audio, Image, Region, Video
from polyglyph.sequence.document import Document, Segment

SIZE = PromptSize(image=(9, 14), video=(4, 6, 8), audio_s=0.5)


def image(height: int, width: int) -> Image:
    ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    return Image(PIL.Image.fromarray(ramp.astype(np.uint8)))


@pytest.mark.parametrize("shape", [(9, 15), (1, 1), (100, 3), (300, 400), (8, 200)])
def test_an_image_of_any_shape_gets_the_size_and_says_so(shape: tuple[int, int]) -> None:
    found = fit(image(*shape), SIZE)
    assert (found.height, found.width) == (9, 14)
    assert f"{shape[1]}x{shape[0]}" in found.notes[-1] and "14x9" in found.notes[-1]


def test_what_has_the_size_already_is_left_alone() -> None:
    still = image(9, 14)
    sound = Audio(np.zeros((2, 500), np.float32), 1000)
    assert fit(still, SIZE) is still and fit(sound, SIZE) is sound


@pytest.mark.parametrize(
    "medium",
    ["a text", Region([0.1, 0.2], "point"), Action([[0.0, 1.0]]), image(30, 40)],
)
def test_media_without_an_entry_stay_as_they_are(medium: object) -> None:
    assert fit(medium, PromptSize()) is medium


def test_the_frames_of_a_clip_are_spread_evenly_over_all_of_it() -> None:
    frames = np.repeat(np.arange(80, dtype=np.uint8), 6 * 8 * 3).reshape(80, 6, 8, 3)
    found = fit(Video(frames, 20.0), SIZE)
    assert found.frames[:, 0, 0, 0].tolist() == [10, 30, 50, 70]
    assert found.duration_s == pytest.approx(4.0)


def test_a_clip_that_is_too_short_repeats_its_frames() -> None:
    frames = np.stack([np.full((6, 8, 3), tone, np.uint8) for tone in (10, 200)])
    found = fit(Video(frames, 8.0), SIZE)
    assert found.frames[:, 0, 0, 0].tolist() == [10, 10, 200, 200]


def test_the_sound_of_a_prompt_clip_is_left_out_with_a_note() -> None:
    sound = Audio(np.zeros((1, 500), np.float32), 1000)
    found = fit(Video(np.zeros((4, 6, 8, 3), np.uint8), 8.0, sound), SIZE)
    assert found.audio is None and "sound" in found.notes[-1]


@pytest.mark.parametrize("n", [1, 499, 501, 4000])
def test_a_sound_is_cut_or_followed_by_silence(n: int) -> None:
    samples = np.linspace(0.1, 0.9, 2 * n, dtype=np.float32).reshape(2, n)
    found = fit(Audio(samples, 1000, 44_100), SIZE)
    kept = min(n, 500)
    assert found.samples.shape == (2, 500) and found.source_rate == 44_100
    assert np.array_equal(found.samples[:, :kept], samples[:, :kept])
    assert not found.samples[:, kept:].any() and found.notes


class Album:
    """Two documents an item, of one medium."""

    def __init__(self, media: list) -> None:
        self.name, self.length, self.colour, self._media = "album", len(media), "blue", media

    def where(self, index: int) -> str:
        return f"page {index}"

    def get(self, index: int) -> list[Document]:
        medium = self._media[index]
        pair = [Segment("text", "words"), Segment("image", medium)]
        return [Document(pair), Document(pair[::-1])]


def test_a_source_gives_its_media_at_the_size_and_the_rest_as_it_is(tmp_path: Path) -> None:
    small, large = image(9, 14), image(30, 20)
    large.save(tmp_path / "large.png")
    source = FittedSource(Album([small, large, tmp_path / "large.png"]), SIZE)
    assert source.get(0)[0][1].content is small and source.n_fitted == 0
    one, other = source.get(1)
    assert one[1].content is other[0].content == fit(large, SIZE) and one[0].content == "words"
    assert source.get(2)[0][1].content == fit(large, SIZE) and source.n_fitted == 2
    assert source.where(1) == "page 1"


def test_another_size_makes_another_source() -> None:
    said = [describe(FittedSource(Album([]), size)) for size in (SIZE, PromptSize())]
    assert said[0] != said[1] and all(d["name"] == "album" and d["length"] == 0 for d in said)
    assert all(d["colour"] == "blue" for d in said)
