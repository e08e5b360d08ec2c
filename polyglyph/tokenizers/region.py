"""Boxes, points and times as bins: each coordinate in [0, 1] is one code.

Pix2Seq's quantization (arXiv:2109.10852): bin i covers [i / n, (i + 1) / n) and decodes to its
middle, so a round trip is off by at most half a bin. A box is x0, y0, x1, y1, a point x, y, a time
start, stop. Knows nothing of pixels, seconds or ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from polyglyph.checkpoint import fingerprint
from polyglyph.config import Config
from polyglyph.errors import FormatError, InputError, unknown
from polyglyph.media import REGION_SIZES, Region
from polyglyph.tokenizers.base import (
    CodeGrid,
    RegionMeta,
    SpanSpec,
    Tokenizer,
    read_codec_json,
    read_config,
    write_codec_json,
)


class RegionConfig(Config):
    """n_bins: bins of each coordinate."""

    modality: str = "region"
    span: str = "region"
    n_bins: int = Field(64, ge=2)


def to_bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Values in [0, 1] to bins 0..n_bins - 1, int32; 1.0 falls into the last bin."""
    scaled = np.floor(np.asarray(values, np.float64) * n_bins)
    return np.clip(scaled, 0, n_bins - 1).astype(np.int32)


def from_bins(bins: np.ndarray, n_bins: int) -> np.ndarray:
    """The middles of bins, float32 in (0, 1)."""
    return ((np.asarray(bins, np.float64) + 0.5) / n_bins).astype(np.float32)


class RegionTokenizer(Tokenizer):
    """encode: `Region` → CodeGrid (1, n), n = 4 for a box, 2 for a point or a time."""

    config_class = RegionConfig
    target_grid = (REGION_SIZES["box"],)  # three codes are no region

    def __init__(self, config: RegionConfig | None = None) -> None:
        self.config: RegionConfig = config or RegionConfig()
        self.modality, self.span = "region", self.config.span
        self.spec = SpanSpec(self.span, self.modality, self.config.n_bins, 1, 1)
        self.stride = (1,)
        self.fingerprint = fingerprint({}, self.config.model_dump(mode="json"))

    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        """Raises InputError for coordinates that are not in [0, 1] or not as many as the kind
        has."""
        self.chosen_codebooks(n_codebooks)
        if not isinstance(media, Region):
            raise InputError(f"a region is expected, not a {type(media).__name__}")
        values = np.asarray(media.values, np.float64)
        if media.kind not in REGION_SIZES:
            raise unknown("region kind", str(media.kind), REGION_SIZES)
        n = REGION_SIZES[media.kind]
        if values.shape != (n,):
            raise InputError(
                f"a {media.kind} has {n} coordinates, got an array of shape {values.shape}"
            )
        # The comparison is written so that NaN fails it.
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(
                f"coordinates of a {media.kind} lie in [0, 1], got {values.tolist()}; divide them "
                "by the width, height or duration"
            )
        codes = to_bins(values, self.config.n_bins)[None]
        return CodeGrid(self.modality, codes, RegionMeta(media.kind), self.fingerprint)

    def decode(self, grid: CodeGrid) -> Region:
        self.check_fingerprint(grid)
        meta = grid.meta
        assert isinstance(meta, RegionMeta)
        if meta.kind not in REGION_SIZES:
            raise unknown("region kind", meta.kind, REGION_SIZES, FormatError)
        if grid.shape != (REGION_SIZES[meta.kind],):
            raise FormatError(
                f"a {meta.kind} has {REGION_SIZES[meta.kind]} codes, got {grid.shape[0]}"
            )
        codes = grid.codes[0]
        if meta.kind != "point":
            # Generated codes may hold the corners in any order; they span the same box.
            codes = np.sort(codes.reshape(2, -1), axis=0).reshape(-1)
        return Region(from_bins(codes, self.config.n_bins), meta.kind)

    def default_meta(self, grid_shape: Sequence[int]) -> RegionMeta:
        """Four codes are a box, two a point."""
        return RegionMeta("box" if grid_shape[0] == REGION_SIZES["box"] else "point")

    def save(self, folder: str | Path) -> None:
        write_codec_json(folder, self.modality, self.span, self.config, self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> RegionTokenizer:
        tokenizer = cls(read_config(folder, RegionConfig))
        check_config(folder, tokenizer)
        return tokenizer


def check_config(folder: str | Path, tokenizer: Tokenizer) -> None:
    """FormatError unless codec.json's fingerprint is that of its own config."""
    stated = read_codec_json(folder).get("fingerprint")
    if stated != tokenizer.fingerprint:
        raise FormatError(
            f"codec {folder}: its config has fingerprint {tokenizer.fingerprint[:12]}, codec.json "
            f"says {str(stated)[:12]}; the folder is damaged, get a fresh copy"
        )
