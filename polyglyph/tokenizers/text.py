"""Text as codes of a sentencepiece model (arXiv:1808.06226) that loses nothing.

Identity normalisation, no dummy prefix, whitespace kept, digits split, byte fallback: every string
of Unicode round-trips. U+2581, which sentencepiece uses for the space, goes through its bytes.
Knows nothing of controls, ids or dialects: text that spells a control is plain text here.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from polyglyph.checkpoint import fingerprint
from polyglyph.config import Config
from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.base import (
    CodeGrid,
    SpanSpec,
    TextMeta,
    Tokenizer,
    read_codec_json,
    read_config,
    write_codec_json,
)

MODEL_FILE = "text.model"
_SPACE_MARK = "\u2581"
_MARK_PIECES = [f"<0x{byte:02X}>" for byte in _SPACE_MARK.encode("utf-8")]
_LONGEST_SENTENCE = 1 << 16  # bytes; longer training texts are cut into pieces


class TextConfig(Config):
    """vocabulary_size: pieces, of which 256 are bytes and one is unknown."""

    modality: str = "text"
    span: str = "text"
    vocabulary_size: int = Field(512, ge=260)


class TextTokenizer(Tokenizer):
    """encode: `str` → CodeGrid (1, T); decode: CodeGrid → `str`. Decoding bytes that are not
    UTF-8, which only generated codes hold, gives U+FFFD."""

    config_class = TextConfig

    def __init__(self, model: bytes, config: TextConfig | None = None) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise FormatError(f"the text model cannot be read by sentencepiece: {error}") from error
        n_pieces = self._pieces.get_piece_size()
        self.model = model
        self.config: TextConfig = config or TextConfig(vocabulary_size=n_pieces)
        if n_pieces != self.config.vocabulary_size:
            raise FormatError(
                f"the text model has {n_pieces} pieces, its config says "
                f"{self.config.vocabulary_size}"
            )
        self._mark = [self._pieces.piece_to_id(piece) for piece in _MARK_PIECES]
        self.modality, self.span = "text", self.config.span
        self.spec = SpanSpec(self.span, self.modality, n_pieces, 1, 1)
        self.stride = (1,)
        tensors = {MODEL_FILE: np.frombuffer(model, np.uint8)}
        self.fingerprint = fingerprint(tensors, self.config.model_dump(mode="json"))

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int, span: str = "text") -> TextTokenizer:
        """A byte-pair model of `texts`; the same texts in the same order give the same model.

        Raises InputError where the texts are too few or too plain for so many pieces."""
        from sentencepiece import SentencePieceTrainer

        config = TextConfig(vocabulary_size=vocabulary_size, span=span)
        writer = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=_sentences(texts),
                model_writer=writer,
                model_type="bpe",
                vocab_size=vocabulary_size,
                character_coverage=0.9995,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                byte_fallback=True,
                max_sentence_length=4 * _LONGEST_SENTENCE,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                unk_surface="\ufffd",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no texts"
            raise InputError(
                f"no text model of {vocabulary_size} pieces can be trained on these texts "
                f"({reason}); give more texts or ask for fewer pieces"
            ) from error
        return cls(writer.getvalue(), config)

    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        """Raises InputError for anything but a string, and for lone surrogates."""
        self.chosen_codebooks(n_codebooks)
        codes = np.asarray(self._encode(media), np.int32)[None]  # (1, T)
        return CodeGrid(self.modality, codes, TextMeta(), self.fingerprint)

    def _encode(self, text: Any) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"text is expected, not a {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"character {error.start} of the text is half of a surrogate pair; expected "
                "valid Unicode"
            ) from error
        codes: list[int] = []
        for i, part in enumerate(text.split(_SPACE_MARK)):
            codes += self._mark if i else []
            codes += self._pieces.encode(part)
        return codes

    def decode(self, grid: CodeGrid) -> str:
        self.check_fingerprint(grid)
        return self._pieces.decode(grid.codes[0].tolist())

    def gather(self, chunks: Iterable[Any]) -> str:
        """The chunks in a row: where they end is no end of a piece."""
        parts = list(chunks)
        if wrong := [part for part in parts if not isinstance(part, str)]:
            raise InputError(f"text is expected, not a {type(wrong[0]).__name__}")
        return "".join(parts)

    def piece(self, code: int) -> str:
        """What a code stands for, for people: "▁red", "<0xE2>"."""
        return self._pieces.id_to_piece(int(code))

    def default_meta(self, grid_shape: Sequence[int]) -> TextMeta:
        return TextMeta()

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self.model)
        write_codec_json(folder, self.modality, self.span, self.config, self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        data = read_codec_json(folder)
        path = Path(folder) / MODEL_FILE
        try:
            model = path.read_bytes()
        except FileNotFoundError:
            raise FormatError(f"{folder} holds no {MODEL_FILE}; get a fresh copy") from None
        config = read_config(folder, TextConfig)
        tensors = {MODEL_FILE: np.frombuffer(model, np.uint8)}
        found = fingerprint(tensors, config.model_dump(mode="json"))
        if found != data.get("fingerprint"):
            raise FormatError(
                f"codec {folder}: {MODEL_FILE} has fingerprint {found[:12]}, codec.json says "
                f"{str(data.get('fingerprint'))[:12]}; the folder is damaged, get a fresh copy"
            )
        return cls(model, config)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Training texts in parts that sentencepiece accepts, without what it keeps for itself."""
    for text in texts:
        clean = text.replace(_SPACE_MARK, " ").replace("\0", " ")
        for start in range(0, len(clean), _LONGEST_SENTENCE):
            yield clean[start : start + _LONGEST_SENTENCE]
