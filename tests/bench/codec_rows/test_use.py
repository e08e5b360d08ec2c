"""The row of codebook use: every shipped codec, on the media it was trained on, counted twice."""

from __future__ import annotations

import pytest
import torch

from polyglyph.bench.codec_rows import use
from polyglyph.data.media_batches import MediaBatches
from polyglyph.errors import missing_extra
from polyglyph.eval.metrics import codebook_use
from polyglyph.media import Image


def test_all_codecs_with_a_codebook_are_found_with_the_run_that_trained_them() -> None:
    found = {name: (tokenizer, run) for name, tokenizer, run in use.shipped_codecs()}
    assert {"tiny-image", "tiny-video", "tiny-audio"} <= found.keys()
    for name, (tokenizer, run) in found.items():
        assert run.run.name == name and run.codec["modality"] == tokenizer.modality


def test_use_is_that_of_the_codes_that_tokenizing_gives() -> None:
    """Against pictures that go through the tokenizer's door, counted by eval."""
    _, tokenizer, run = next(f for f in use.shipped_codecs() if f[0] == "tiny-image")
    batches = MediaBatches("image", run.data, run.run.seed + 1_000_003)
    pictures = [Image(picture) for step in range(2) for picture in batches.batch(step)]
    size = tokenizer.spec.codebook_size
    n_codes = 81 * len(pictures)
    grids = tokenizer.encode_batch(pictures)
    due = [made.usage for made in codebook_use(grids, tokenizer.spec)]
    assert use.uses_of(tokenizer, run, (n_codes - 1) / size) == due


def test_the_row_is_the_least_of_all_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "shipped_codecs", lambda: iter([("a", 1, 0), ("b", 2, 0)]))
    uses = {1: [0.99, 0.97], 2: [1.0]}
    monkeypatch.setattr(use, "uses_of", lambda tokenizer, run, offered: uses[tokenizer])
    (row,) = use.rows(True, lambda what: None)
    assert row.value == 0.97 and row.met and row.facts["uses"] == {"a": [0.99, 0.97], "b": [1.0]}
    assert row.summary.endswith("a 97.0%, b 100.0%")


def test_a_codec_whose_media_are_missing_leaves_the_row_unmeasured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(tokenizer: int, run: int, offered: float) -> list[float]:
        if tokenizer == 2:
            raise missing_extra("espeakng-loader", "speech")
        return [1.0]

    monkeypatch.setattr(use, "shipped_codecs", lambda: iter([("a", 1, 0), ("b", 2, 0)]))
    monkeypatch.setattr(use, "uses_of", fails)
    (row,) = use.rows(True, lambda what: None)
    assert row.value is None and "a 100.0%" in row.summary and "espeakng-loader" in row.summary


def test_residual_codebooks_are_counted_one_by_one() -> None:
    found = [f for f in use.shipped_codecs() if f[0] == "tiny-audio"]
    ((_, tokenizer, run),) = found
    with torch.no_grad():
        uses = use.uses_of(tokenizer, run, 0.5)
    assert len(uses) == tokenizer.spec.n_codebooks and all(0 < value <= 0.6 for value in uses)
