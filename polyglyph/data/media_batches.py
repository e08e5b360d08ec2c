"""Batches of media for codec training: a pure function of (seed, step).

A mixture of sources by integer weights; item i of a run comes from the source that a fixed,
evenly spread schedule gives it. Knows nothing of codecs: it gives uint8 pictures (B, H, W, 3),
clips (B, F, H, W, 3) or float32 sound (B, 1, S).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from polyglyph.config import Config
from polyglyph.lookup import find

# name → function (modality, seed, index) → one medium as an array of the training size.
SOURCES = {
    "shapes": "polyglyph.data.training_media:shapes",
    "leaves": "polyglyph.data.training_media:leaves",
    "tones": "polyglyph.data.training_media:tones",
    "speech": "polyglyph.data.training_media:speech",
}


class MediaDataConfig(Config):
    """`[data]` of a codec run: mixture of sources by integer weight; batch_size in media."""

    mixture: dict[str, Annotated[int, Field(ge=0)]] = {"shapes": 1}
    batch_size: int = Field(32, ge=1)

    @field_validator("mixture")
    @classmethod
    def _something_to_draw(cls, mixture: dict[str, int]) -> dict[str, int]:
        if not any(mixture.values()):
            raise ValueError("no source has a weight")
        return mixture


@lru_cache(maxsize=8)
def schedule(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Indices of sources, each as often as its weight and as evenly spread as can be."""
    slots = [((k + 0.5) / w, i) for i, w in enumerate(weights) for k in range(w)]
    return tuple(i for _, i in sorted(slots))


class MediaBatches:
    """batch(step) → array (B, ...) of `modality`; the same for the same (mixture, seed, step)."""

    def __init__(self, modality: str, config: MediaDataConfig, seed: int) -> None:
        self.modality, self.config, self.seed = modality, config, seed
        names = [name for name, weight in config.mixture.items() if weight > 0]
        self.functions = [find(SOURCES, name, "data source") for name in names]
        self.order = schedule(tuple(config.mixture[name] for name in names))

    def batch(self, step: int) -> np.ndarray:
        first = step * self.config.batch_size
        items = []
        for index in range(first, first + self.config.batch_size):
            function = self.functions[self.order[index % len(self.order)]]
            items.append(function(self.modality, self.seed, index))
        return np.stack(items)
