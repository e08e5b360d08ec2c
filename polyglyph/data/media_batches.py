"""Batches of media for codec training: a pure function of (seed, step).

A mixture of sources by integer weights; item i of a run comes from the source that a fixed,
evenly spread schedule gives it. Knows nothing of codecs: it gives uint8 pictures (B, H, W, 3),
clips (B, F, H, W, 3) or float32 sound (B, 1, S).
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from polyglyph.config import Config
from polyglyph.data.media_folder import Cut, MediaFolder, fit_sound
from polyglyph.errors import ConfigError, unknown
from polyglyph.lookup import resolve

# name → function (modality, seed, index) → one medium as an array of the training size.
SOURCES = {
    "shapes": "polyglyph.data.training_media:shapes",
    "leaves": "polyglyph.data.training_media:leaves",
    "rich": "polyglyph.data.rich_pictures:rich_picture",
    "tones": "polyglyph.data.training_media:tones",
    "speech": "polyglyph.data.training_media:speech",
    "music": "polyglyph.data.rich_sound:music",
    "voices": "polyglyph.data.rich_sound:voices",
}
# Of these, the ones that take the side of a picture as a fourth argument, and so fit any cut.
_ANY_SIDE = {"rich"}


BUILT_IN_RATE = 16_000  # Hz


class MediaDataConfig(Config):
    """`[data]` of a codec run: mixture of sources by integer weight; batch_size in media.

    A source is the name of a built-in one or a folder of media; source: one alone, in place of a
    mixture. side, n_frames, fps, duration_s: what is cut from the files of folders; built-in media
    have 72 pixels (`rich`: any side), 8 frames and one second, and mix with cuts of that size
    only. noise, shift: the damage through which `loss.steady` keeps the codes, in units of a
    medium in [-1, 1].
    """

    mixture: dict[str, Annotated[int, Field(ge=0)]] = {"shapes": 1}
    source: str | None = None
    batch_size: int = Field(32, ge=1)
    side: int = Field(72, ge=8, exclude_if=lambda side: side == 72)
    n_frames: int = Field(8, ge=1, exclude_if=lambda n: n == 8)
    fps: float = Field(8.0, gt=0, exclude_if=lambda fps: fps == 8.0)
    duration_s: float = Field(1.0, gt=0, exclude_if=lambda s: s == 1.0)
    noise: float = Field(0.0, ge=0, le=1, exclude_if=lambda noise: noise == 0)
    shift: float = Field(0.0, ge=0, le=1, exclude_if=lambda shift: shift == 0)

    @field_validator("mixture")
    @classmethod
    def _something_to_draw(cls, mixture: dict[str, int]) -> dict[str, int]:
        if not any(mixture.values()):
            raise ValueError("no source has a weight")
        return mixture

    @model_validator(mode="after")
    def _built_in_media_have_their_size(self) -> MediaDataConfig:
        ours = sorted(set(self.weights) & SOURCES.keys() - _ANY_SIDE)
        for name, due in (("side", 72), ("n_frames", 8), ("duration_s", 1.0)):
            if ours and getattr(self, name) != due:
                raise ValueError(
                    f"source {ours[0]!r} has {name} = {due}; leave {name} out, or take folders only"
                )
        return self

    @property
    def weights(self) -> dict[str, int]:
        """Sources that are drawn from, with their weights."""
        if self.source is not None:
            return {self.source: 1}
        return {name: weight for name, weight in self.mixture.items() if weight > 0}


@lru_cache(maxsize=8)
def schedule(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Indices of sources, each as often as its weight and as evenly spread as can be."""
    slots = [((k + 0.5) / w, i) for i, w in enumerate(weights) for k in range(w)]
    return tuple(i for _, i in sorted(slots))


class MediaBatches:
    """batch(step) → array (B, ...) of `modality`; the same for the same (mixture, seed, step).

    sample_rate, n_channels, hop: of the codec, for sound; the samples are a multiple of `hop`.
    """

    def __init__(
        self,
        modality: str,
        config: MediaDataConfig,
        seed: int,
        *,
        sample_rate: int = 16_000,
        n_channels: int = 1,
        hop: int = 1,
    ) -> None:
        self.modality, self.config, self.seed = modality, config, seed
        n_samples = max(1, round(config.duration_s * sample_rate / hop)) * hop
        self.cut = Cut(config.side, config.n_frames, config.fps, n_samples, sample_rate, n_channels)
        self.folders: list[MediaFolder] = []
        self.functions = [self._source(name) for name in config.weights]
        self.order = schedule(tuple(config.weights.values()))

    def _source(self, name: str) -> Any:
        if name in _ANY_SIDE:
            return partial(resolve(SOURCES[name]), side=self.cut.side)
        if name in SOURCES:
            return resolve(SOURCES[name])
        if not Path(name).is_dir():
            if "/" in name:
                raise ConfigError(f"data source {name!r}: no such folder")
            raise unknown("data source", name, SOURCES)
        self.folders.append(MediaFolder(name, self.modality, self.cut))
        return self.folders[-1]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Files that were left out so far."""
        return [error for folder in self.folders for error in folder.errors]

    def batch(self, step: int) -> np.ndarray:
        first = step * self.config.batch_size
        items = []
        for index in range(first, first + self.config.batch_size):
            function = self.functions[self.order[index % len(self.order)]]
            item = function(self.modality, self.seed, index)
            if function not in self.folders:
                item = self._fitted(item)
            items.append(item)
        return np.stack(items)

    def _fitted(self, item: np.ndarray) -> np.ndarray:
        """A built-in sound at the codec's rate and channels; other media as they are."""
        if item.dtype != np.float32 or item.shape == (self.cut.n_channels, self.cut.n_samples):
            return item
        return fit_sound(item, BUILT_IN_RATE, self.cut)
