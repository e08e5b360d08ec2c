"""The shipped codec of pictures: it loads by its name, uses its codebook, and is ahead of JPEG on
photographs. The figures are measured ones with some slack."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from polyglyph.bench.codec_rows import photographs as module
from polyglyph.bench.codec_rows.photographs import (
    CODEC,
    PHOTOGRAPHS,
    Row,
    beside_jpeg,
    means,
    photographs,
    result,
    shipped,
    smallest_loss,
)
from polyglyph.checkpoint import find_checkpoint
from polyglyph.cli.codecs import Codecs
from polyglyph.eval.metrics import psnr
from polyglyph.media import Image

OURS_DUE, MARGIN = 24.5, 1.3  # dB; measured 24.74 and 1.56


@pytest.fixture(scope="module")
def codec() -> Any:
    return shipped()


def only_jpeg(pil: Any, kind: str, n_bytes: int) -> np.ndarray | None:
    """`smallest_loss` without WebP, which takes three quarters of the time."""
    return smallest_loss(pil, kind, n_bytes) if kind == "JPEG" else None


@pytest.fixture(scope="module")
def rows(codec: Any) -> list[Row]:
    pytest.importorskip("skimage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "smallest_loss", only_jpeg)
        return [beside_jpeg(codec, picture) for picture in photographs()]


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_codec_is_found_by_its_name_and_is_small() -> None:
    codecs = Codecs("tiny", [CODEC])
    assert set(codecs._named) == {"image"}
    folder = find_checkpoint(CODEC)
    assert size_of(folder) <= 3.5e6
    assert size_of(folder.parent) <= 25e6, "all shipped checkpoints together"


def test_a_picture_of_any_size_comes_back_at_its_size(codec: Any) -> None:
    y, x = np.mgrid[:61, :83]
    smooth = np.stack([2 * x + y, 255 - 2 * x, 100 + x], -1).clip(0, 255).astype(np.uint8)
    grid = codec.encode(Image(smooth))
    assert grid.shape == (8, 11) and grid.codes.max() < codec.spec.codebook_size
    assert psnr(codec.decode(grid).array, smooth) > 25


def test_it_is_ahead_of_jpeg_on_photographs(rows: list[Row]) -> None:
    assert len(rows) == len(PHOTOGRAPHS) and all(row.n_bytes == 1536 for row in rows)
    ours, jpeg = means([row.ours for row in rows]), means([row.jpeg for row in rows])
    assert ours is not None and jpeg is not None
    assert all(row.jpeg is not None for row in rows)
    assert ours > OURS_DUE and ours - jpeg > MARGIN


def test_a_file_is_the_best_that_fits() -> None:
    """Against every quality, tried by hand."""
    noise = np.random.default_rng(0).integers(0, 80, (40, 40, 3), dtype=np.uint8)
    pil = PIL.Image.fromarray(noise)
    for n_bytes in (900, 1600):
        fits = []
        for quality in range(1, 101):
            file = io.BytesIO()
            pil.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= n_bytes:
                fits.append(np.asarray(PIL.Image.open(file)))
        found = smallest_loss(pil, "JPEG", n_bytes)
        assert fits and found is not None and np.array_equal(found, fits[-1])
    assert smallest_loss(pil, "JPEG", 100) is None
    assert smallest_loss(pil, "WEBP", 30) is None


def test_a_codec_that_changes_nothing_is_measured_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bench's own way of counting, with 24 bits a patch."""

    class Lossless:
        spec = type("Spec", (), {"codebook_size": 1 << 24})

        def encode(self, picture: Image) -> Any:
            grid = type("Grid", (), {"n_tokens": 1024})()
            grid.picture = picture
            return grid

        def decode(self, grid: Any) -> Image:
            return grid.picture

    picture = Image(np.zeros((256, 256, 3), np.uint8))
    row = beside_jpeg(Lossless(), picture)
    assert row.n_bytes == 3072 and row.ours == 100
    assert row.jpeg == 100 and row.webp == 100, "black is exact in all of them"


def test_the_row_is_the_mean_margin(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr(module, "shipped", lambda: codec)
    monkeypatch.setattr(module, "smallest_loss", only_jpeg)
    said: list[str] = []
    (row,) = module.rows(True, said.append)
    assert [what.rsplit(": ", 1)[1] for what in said] == list(PHOTOGRAPHS[:2])
    shown = row.facts["photographs"]
    assert list(shown) == list(PHOTOGRAPHS[:2])
    margins = [picture["ours"] - picture["jpeg"] for picture in shown.values()]
    assert row.value == pytest.approx(np.mean(margins)) and row.unit == "dB" and row.target == 1


def test_a_margin_needs_a_jpeg_of_every_picture() -> None:
    row = result("photographs", [Row(10, 30.0, 28.0, None), Row(10, 20.0, None, 25.0)])
    assert row.value is None and row.summary.endswith("WebP 25.00 on 1 of 2")
    row = result("photographs", [Row(10, 30.0, 28.0, None), Row(10, 20.0, 21.0, None)])
    assert row.value == 0.5 and row.summary.endswith("no WebP is as small")


def test_without_the_photographs_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (row,) = module.rows(True, lambda what: None)
    assert row.value is None and "scikit-image" in row.summary


def test_means_are_of_what_is_there() -> None:
    assert means([2.0, None, 4.0]) == 3.0 and means([None]) is None
