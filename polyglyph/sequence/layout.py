"""Layouts and dialects as data, and the one function that puts a grid of codes into order.

Knows names of controls, not their ids; nothing of vocabularies, documents or automata.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyglyph.errors import ConfigError, unknown

ORDERS = ("frame-major", "coarse-first", "delayed")
SIZES = ("none", "ids", "digits")
ROW_END, FRAME_END = -1, -2  # marks of `linearise`


@dataclass(frozen=True)
class Layout:
    """How one modality is written. Names of controls may hold `{span}`, so codecs differ.

    A layout whose size is "none" and that has no `fixed` grid is open: its end id decides, and
    it must be of rank 1. Its end id is legal at a frame boundary only; in coarse-first and
    delayed order the number of frames is fixed by the first id of codebook 1 that stands where
    codebook 0 might have gone on, so no header is needed there either.
    """

    begin: str | None = "begin_{span}"  # None: no begin and no end id (Emu3's text)
    end: str | None = "end_{span}"
    size: str = "none"  # none | ids (one `size` id per axis) | digits (text ids, joined by a star)
    after_size: str | None = None  # control behind the header
    fixed: tuple[int, ...] = ()  # the grid, where it is not written
    row_end: str | None = None
    row_end_last: bool = True  # does the last row have one?
    frame_end: str | None = None
    frame_end_last: bool = True
    order: str = "frame-major"  # of RVQ codes: frame-major | coarse-first | delayed
    min_frames: int = 1  # 0: nothing may stand between begin and end (an empty text)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown("order", self.order, ORDERS, ConfigError)
        if self.size not in SIZES:
            raise unknown("way to write a size", self.size, SIZES, ConfigError)
        if self.size == "digits" and self.after_size is None:
            raise ConfigError("a size in digits needs a control behind it; set after_size")
        if self.begin is None and (self.end or self.size != "none" or self.fixed):
            raise ConfigError("a layout without a begin id can have neither end nor size")
        if self.end is None and self.begin is not None and self.is_open:
            raise ConfigError("a layout without an end id needs its size written or fixed")

    @property
    def is_open(self) -> bool:
        """True where only the end id says how much there is."""
        return self.size == "none" and not self.fixed

    @property
    def is_bare(self) -> bool:
        """True where the codes stand between segments, without begin and end."""
        return self.begin is None


@dataclass(frozen=True)
class Dialect:
    """One way to write documents: a layout per modality, and the controls around them."""

    name: str
    layouts: Mapping[str, Layout]
    bos: str = "bos"
    eos: str = "eos"
    pad: str | None = "pad"
    size_span: str = "size"
    digit_ids: tuple[int, ...] = ()  # ids of "0" .. "9", for sizes in digits
    star_id: int = -1  # what joins them
    max_digits: int = 4

    def __post_init__(self) -> None:
        assert 1 <= self.max_digits <= 4  # counters hold 15 bits

    def layout(self, modality: str) -> Layout:
        if modality not in self.layouts:
            raise unknown(f"modality of dialect {self.name}", modality, self.layouts, ConfigError)
        return self.layouts[modality]

    def with_digits(self, digit_ids: Sequence[int], star_id: int) -> Dialect:
        """This dialect with the text ids of "0".."9" and of the star, from a checkpoint's text."""
        digits = tuple(int(i) for i in digit_ids)
        return dataclasses.replace(self, digit_ids=digits, star_id=int(star_id))

    def with_order(self, modality: str, order: str) -> Dialect:
        """This dialect with the RVQ codes of `modality` in another order."""
        changed = dataclasses.replace(self.layout(modality), order=order)
        return dataclasses.replace(self, layouts={**self.layouts, modality: changed})

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        data["layouts"] = {name: dataclasses.asdict(v) for name, v in self.layouts.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dialect:
        """Inverse of `to_json`. ConfigError on unknown or missing fields."""
        try:
            layouts = {
                name: Layout(**{**v, "fixed": tuple(v.get("fixed", ()))})
                for name, v in data["layouts"].items()
            }
            digits = tuple(data.get("digit_ids", ()))
            return cls(**{**data, "layouts": layouts, "digit_ids": digits})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is not a dialect: {error}") from error


def axes(grid: Sequence[int]) -> tuple[int, int, int]:
    """(frames, rows, columns) of a grid of rank 1 to 3."""
    assert 1 <= len(grid) <= 3
    frame, row, column = (1, 1, 1, *grid)[-3:]
    return frame, row, column


def linearise(layout: Layout, n_codebooks: int, grid: Sequence[int]) -> np.ndarray:
    """The order of a body, int64 (n,): cell * n_codebooks + codebook, ROW_END or FRAME_END.

    Cells count through the grid in row-major order. Delayed is the permutation that sorts by
    (frame + codebook, codebook); it and coarse-first are orders of rank 1.
    """
    frames, rows, columns = axes(grid)
    n = frames * rows * columns * n_codebooks
    if n_codebooks > 1 and layout.order != "frame-major":
        cell, codebook = np.divmod(np.arange(n), n_codebooks)
        first = codebook if layout.order == "coarse-first" else cell + codebook
        second = cell if layout.order == "coarse-first" else codebook
        return np.lexsort((second, first))
    body: np.ndarray = np.arange(n).reshape(frames, rows, columns * n_codebooks)
    if layout.row_end is not None:
        body = np.concatenate([body, np.full((frames, rows, 1), ROW_END)], 2)
    body = body.reshape(frames, -1)
    if layout.row_end is not None and not layout.row_end_last:
        body = body[:, :-1]
    if layout.frame_end is not None:
        body = np.concatenate([body, np.full((frames, 1), FRAME_END)], 1)
    body = body.reshape(-1)
    return body[:-1] if layout.frame_end is not None and not layout.frame_end_last else body
