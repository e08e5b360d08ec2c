"""Brings media given as prompts, and media of a corpus, to the size that a model works at.

A model knows the sizes of its training data only; a photograph of 12 million pixels would fill its
context many times over. `encode` and `tokenize` take any size and never come here. Knows media and
numbers, no codes and no ids.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from polyglyph.config import Config
from polyglyph.media import Audio, Image, Video, load, modality_of


class PromptSize(Config):
    """`[sequence.prompt_size]`: what prompts are brought to; a medium without an entry stays."""

    image: tuple[int, int] | None = None  # height, width in pixels
    video: tuple[int, int, int] | None = None  # frames, height, width
    audio_s: float | None = Field(None, gt=0)  # seconds


def fit(medium: Any, size: PromptSize) -> Any:
    """The medium at the size of `size`; itself where it is that already, or has no entry.

    What is lost or made up (a border cut off, silence added) is said in the result's notes."""
    fitter = _FITTERS.get(modality_of(medium))
    return medium if fitter is None else fitter(medium, size)


def _fit_image(image: Image, size: PromptSize) -> Image:
    """Scaled until it covers the size, the rest cut off evenly on both sides."""
    if size.image is None or (image.height, image.width) == size.image:
        return image
    height, width = size.image
    note = f"a prompt image of {image.width}x{image.height} was brought to {width}x{height}"
    return Image(_cover(image.pil, height, width), notes=[*image.notes, note])


def _cover(pil: Any, height: int, width: int) -> Any:
    from PIL import Image as Pixels
    from PIL import ImageOps

    return ImageOps.fit(pil, (width, height), method=Pixels.Resampling.LANCZOS)


def _fit_video(video: Video, size: PromptSize) -> Video:
    """Frames spread evenly over the whole clip, each like a picture. The sound is left out."""
    if size.video is None:
        return video
    n_frames, height, width = size.video
    notes = list(video.notes)
    if video.audio is not None:
        notes.append("the sound of a prompt clip was left out; give it as a prompt of its own")
    if video.frames.shape[:3] == size.video:
        return Video(video.frames, video.fps, notes=notes)
    from PIL import Image as Pixels

    # The middle of each of n_frames equal stretches: what a viewer sees most of.
    chosen = ((np.arange(n_frames) + 0.5) * video.n_frames / n_frames).astype(int)
    frames = [np.array(_cover(Pixels.fromarray(video.frames[i]), height, width)) for i in chosen]
    notes.append(
        f"a prompt clip of {video.n_frames} frames {video.width}x{video.height} was brought to "
        f"{n_frames} frames {width}x{height}"
    )
    return Video(np.stack(frames), n_frames / video.duration_s, notes=notes)


def _fit_audio(audio: Audio, size: PromptSize) -> Audio:
    """The beginning, or the whole with silence behind it."""
    if size.audio_s is None:
        return audio
    n_samples = max(1, round(size.audio_s * audio.sample_rate))
    if n_samples == audio.n_samples:
        return audio
    samples = np.zeros((audio.n_channels, n_samples), np.float32)
    kept = min(n_samples, audio.n_samples)
    samples[:, :kept] = audio.samples[:, :kept]
    note = f"a prompt sound of {audio.duration_s:.2f} s was brought to {size.audio_s:g} s"
    return Audio(samples, audio.sample_rate, audio.source_rate, [*audio.notes, note])


_FITTERS: dict[str, Callable[[Any, PromptSize], Any]] = {
    "image": _fit_image,
    "video": _fit_video,
    "audio": _fit_audio,
}


class FittedSource:
    """A source of documents whose media are brought to a size as they are read, so that a model
    trains on what its prompts will be. Attributes are the source's, and the size."""

    def __init__(self, source: Any, size: PromptSize) -> None:
        vars(self).update({k: v for k, v in vars(source).items() if not k.startswith("_")})
        self.name: str = source.name
        self.length: int | None = source.length
        self.prompt_size = size.model_dump(mode="json")
        self._source, self._size = source, size
        self._n_fitted = 0

    @property
    def n_fitted(self) -> int:
        """Media that had another size, of the items read so far."""
        return self._n_fitted

    def where(self, index: int) -> str:
        """Names an item in a message."""
        return self._source.where(index)

    def get(self, index: int) -> list[Any]:
        """The item's documents; a medium that several of them hold is still one object."""
        documents = self._source.get(index)
        done: dict[int, Any] = {}
        for segment in (s for document in documents for s in document if s.codes is None):
            given = segment.content
            if id(given) not in done:
                is_file = isinstance(given, Path)
                medium = load(given, modality=segment.modality) if is_file else given
                done[id(given)] = fitted = fit(medium, self._size)
                self._n_fitted += _n_notes(fitted) > _n_notes(medium)
            segment.content = done[id(given)]
        return documents


def _n_notes(medium: Any) -> int:
    return len(getattr(medium, "notes", ()))
