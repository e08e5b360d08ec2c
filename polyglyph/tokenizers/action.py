"""Actions as bins: every dimension of every step is one code (RT-2, arXiv:2307.15818).

The range of each dimension stands in the config (for a robot of known limits) or is taken from the
clip itself, and travels in the meta; a bin decodes to its middle, so a round trip inside the range
is off by at most half a bin. Knows nothing of what an action means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from polyglyph.checkpoint import fingerprint
from polyglyph.config import Config
from polyglyph.errors import FormatError, InputError
from polyglyph.media import Action
from polyglyph.tokenizers.base import (
    ActionMeta,
    CodeGrid,
    SpanSpec,
    Tokenizer,
    read_config,
    write_codec_json,
)
from polyglyph.tokenizers.region import check_config, from_bins, to_bins


class ActionConfig(Config):
    """low, high: the range of each dimension; one number for all of them, or one each. Values
    beyond are clipped into the outer bins. Empty: the range of each clip."""

    modality: str = "action"
    span: str = "action"
    n_bins: int = Field(64, ge=2)
    low: tuple[float, ...] = (-1.0,)
    high: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> ActionConfig:
        if len(self.low) != len(self.high):
            raise ValueError("low and high need the same number of entries")
        if any(not low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("every low must be below its high")
        return self


class ActionTokenizer(Tokenizer):
    """encode: `Action` values (T, D) → CodeGrid (1, T, D); decode: the other way."""

    config_class = ActionConfig

    def __init__(self, config: ActionConfig | None = None) -> None:
        self.config: ActionConfig = config or ActionConfig()
        self.modality, self.span = "action", self.config.span
        self.spec = SpanSpec(self.span, self.modality, self.config.n_bins, 1, 2)
        self.stride = (1, 1)
        self.fingerprint = fingerprint({}, self.config.model_dump(mode="json"))

    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        """Raises InputError for values that are not finite, not (T, D), or of another D than the
        config's ranges."""
        self.chosen_codebooks(n_codebooks)
        values = self._values(media)
        if values.ndim != 2 or 0 in values.shape:
            raise InputError(f"actions have the shape (steps, dimensions), got {values.shape}")
        if not np.isfinite(values).all():
            raise InputError("actions hold NaN or infinite values; expected finite numbers")
        low, high = self._range(values)
        unit = (values - low) / (high - low)
        codes = to_bins(np.clip(unit, 0.0, 1.0), self.config.n_bins)[None]
        meta = ActionMeta(tuple(low.tolist()), tuple(high.tolist()))
        return CodeGrid(self.modality, codes, meta, self.fingerprint)

    def _values(self, media: Any) -> np.ndarray:
        """`Action`, or numbers, as float64."""
        try:
            return np.asarray(media.values if isinstance(media, Action) else media, np.float64)
        except (TypeError, ValueError):
            raise InputError(
                f"an action is expected, or an array of one; got {type(media).__name__}"
            ) from None

    def gather(self, chunks: Iterable[Any]) -> np.ndarray:
        """The steps of all chunks in a row (T, D): their range is that of the whole."""
        parts = [self._values(chunk) for chunk in chunks]
        same = len({part.shape[1:] for part in parts}) == 1
        if not same or any(part.ndim != 2 for part in parts):
            raise InputError(
                f"the chunks of one action have the same dimensions; got the shapes "
                f"{[part.shape for part in parts]}"
            )
        return np.concatenate(parts)

    def _range(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(D,) low and high: the config's, else those of the values."""
        if self.config.low:
            return self._configured(values.shape[1])
        low, high = values.min(0), values.max(0)
        # A constant dimension gets a bin's width around it, so that it decodes to itself nearly.
        flat = high - low <= 1e-9 * np.maximum(1.0, np.abs(low))
        pad = np.where(flat, 1e-6 * np.maximum(1.0, np.abs(low)), 0.0)
        return low - pad, high + pad

    def _configured(self, n_dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        low = np.asarray(self.config.low, np.float64)
        high = np.asarray(self.config.high, np.float64)
        if len(low) not in (1, n_dimensions):
            raise InputError(
                f"this action codec has ranges for {len(low)} dimensions, got {n_dimensions}"
            )
        return np.broadcast_to(low, n_dimensions), np.broadcast_to(high, n_dimensions)

    def decode(self, grid: CodeGrid) -> Action:
        self.check_fingerprint(grid)
        meta = grid.meta
        assert isinstance(meta, ActionMeta)
        if not len(meta.low) == len(meta.high) == grid.shape[1]:
            raise FormatError(
                f"actions of {grid.shape[1]} dimensions need as many ranges, their meta has "
                f"{len(meta.low)} lows and {len(meta.high)} highs"
            )
        low, high = np.asarray(meta.low), np.asarray(meta.high)
        unit = from_bins(grid.codes[0], self.config.n_bins)
        return Action((low + unit * (high - low)).astype(np.float32))

    def default_meta(self, grid_shape: Sequence[int]) -> ActionMeta:
        """The config's ranges; -1 to 1 where it has none."""
        n = grid_shape[1]
        if not self.config.low:
            return ActionMeta((-1.0,) * n, (1.0,) * n)
        low, high = self._configured(n)
        return ActionMeta(tuple(low.tolist()), tuple(high.tolist()))

    def save(self, folder: str | Path) -> None:
        write_codec_json(folder, self.modality, self.span, self.config, self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> ActionTokenizer:
        tokenizer = cls(read_config(folder, ActionConfig))
        check_config(folder, tokenizer)
        return tokenizer
