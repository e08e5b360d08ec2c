"""A little corpus without networks: three fake codecs and a source of documents.

Fixtures hand out makers, so that a test can have two of a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from polyglyph.errors import MediaError
from polyglyph.media import Audio, Image
from polyglyph.sequence.dialects import DIALECTS
from polyglyph.sequence.document import Document, Segment
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import CodeGrid, Meta, SpanSpec, Tokenizer


class Letters(Tokenizer):
    """One code per byte."""

    def __init__(self, mark: str = "letters") -> None:
        self.span = self.modality = "text"
        self.spec = SpanSpec("text", "text", 256, 1, 1)
        self.fingerprint = mark
        self.n_encoded = 0

    def encode(self, media: Any) -> CodeGrid:
        self.n_encoded += 1
        codes = np.frombuffer(media.encode(), np.uint8).astype(np.int32)[None]
        return CodeGrid("text", codes, Meta(), self.fingerprint)

    def encode_batch(self, media: Sequence[Any]) -> list[CodeGrid]:
        return [self.encode(item) for item in media]

    def decode(self, grid: CodeGrid) -> Any:
        return bytes(grid.codes[0].tolist()).decode()

    def default_meta(self, grid_shape: Sequence[int]) -> Meta:
        return Meta()

    def save(self, folder: Any) -> None:
        raise AssertionError("not saved")

    @classmethod
    def load(cls, folder: Any) -> Letters:
        raise AssertionError("not loaded")


class Corners(Letters):
    """A picture's every 16th pixel, as 0..6 by its red."""

    def __init__(self, mark: str = "corners") -> None:
        super().__init__(mark)
        self.span = self.modality = "image"
        self.spec = SpanSpec("image", "image", 7, 1, 2)

    def encode(self, media: Any) -> CodeGrid:
        self.n_encoded += 1
        codes = np.asarray(media.pil)[::16, ::16, 0].astype(np.int32)[None] % 7
        return CodeGrid("image", codes, Meta(), self.fingerprint)

    def decode(self, grid: CodeGrid) -> Any:
        """Lossy: code c comes back as c + 1."""
        pixels = (grid.codes[0].astype(np.uint8) + 1).repeat(16, 0).repeat(16, 1)
        return Image(np.stack([pixels] * 3, -1))


class Levels(Letters):
    """Two codebooks of 5: every 100th sample."""

    def __init__(self, mark: str = "levels") -> None:
        super().__init__(mark)
        self.span = self.modality = "audio"
        self.spec = SpanSpec("audio", "audio", 5, 2, 1)

    def encode(self, media: Any) -> CodeGrid:
        self.n_encoded += 1
        codes = np.floor(np.abs(media.samples[0, ::100]) * 4.99).astype(np.int32)
        return CodeGrid("audio", np.stack([codes, 4 - codes]), Meta(), self.fingerprint)


class Little:
    """Item i: text → picture, picture → text, and for every third item text → sound."""

    name = "little"

    def __init__(self, seed: int = 0, length: int | None = None, bad: tuple[int, ...] = ()) -> None:
        self.seed, self.length, self.bad = seed, length, bad
        self.n_read = 0

    def get(self, index: int) -> list[Document]:
        self.n_read += 1
        if index in self.bad:
            raise MediaError(f"item {index} is damaged")
        rng = np.random.default_rng((self.seed, index))
        h, w = rng.integers(1, 5, 2) * 16
        text = "abcdefghij"[: int(rng.integers(1, 10))]
        picture = Image(rng.integers(0, 256, (h, w, 3)).astype(np.uint8))
        documents = [_pair(("text", text), ("image", picture))]
        documents.append(_pair(("image", picture), ("text", text)))
        if index % 3 == 0:
            sound = Audio(rng.uniform(-1, 1, (1, int(rng.integers(1, 900)))), 8000)
            documents.append(_pair(("text", text), ("audio", sound)))
        return documents


def _pair(given: tuple[str, Any], target: tuple[str, Any]) -> Document:
    return Document([Segment(*given, "prompt", 0.0), Segment(*target, "target", 1.0)])


@pytest.fixture
def codecs() -> dict[str, Tokenizer]:
    return {t.span: t for t in (Letters(), Corners(), Levels())}


@pytest.fixture
def other_codecs() -> dict[str, Tokenizer]:
    """The same shapes, but another picture codec."""
    return {t.span: t for t in (Letters(), Corners("retrained"), Levels())}


@pytest.fixture
def grammar_of() -> Callable[..., Grammar]:
    def make(codecs: dict[str, Tokenizer], n_sizes: int = 16, wide: bool = False) -> Grammar:
        specs = {span: codec.spec for span, codec in codecs.items()}
        if wide:  # a span of 70,000 ids before all others
            specs = {"action": SpanSpec("action", "action", 70_000, 1, 2), **specs}
        vocabulary = Vocabulary.build(specs.values(), n_sizes=n_sizes)
        marks = {span: codec.fingerprint for span, codec in codecs.items()}
        return Grammar(DIALECTS["polyglyph"], vocabulary, specs, marks)

    return make


@pytest.fixture
def little() -> type[Little]:
    return Little
