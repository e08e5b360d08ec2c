"""Text codec: nothing is lost, whatever the string, and a damaged model is refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.text import TextTokenizer

TEXTS = [
    f"a {size} {color} {shape} {where} a {color} {shape} moving {way}"
    for size in ("small", "big")
    for color in ("red", "orange", "yellow", "green", "cyan")
    for shape in ("circle", "square", "triangle")
    for where in ("above", "below", "left of")
    for way in ("up", "down", "right")
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, 330)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
@example("")
@example(" ")
@example("  two  spaces, at the end  ")
@example("\u2581")
@example(" \u2581\u2581 a\u2581b \u2581")
@example("<0xE2><0x96><0x81></s><s><unk>")
@example("tab\tline\nreturn\r\nnul\0end")
@example("caf\u00e9 cafe\u0301 \U0001f534\u200d\U0001f7e6 \u4e2d\u6587 \ufeff\uffff")
def test_any_unicode_text_round_trips(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="\u2581 \n\t\0a1<>\u00e9", max_size=30))
def test_whitespace_marks_and_bytes_round_trip_in_any_mixture(
    tokenizer: TextTokenizer, text: str
) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_split(tokenizer: TextTokenizer) -> None:
    codes = tokenizer.encode("1234567").codes
    assert codes.shape == (1, 7) and len(set(codes[0].tolist())) == 7


def test_words_of_the_corpus_take_fewer_codes_than_characters(tokenizer: TextTokenizer) -> None:
    text = "a small red circle above a green square"
    assert tokenizer.encode(text).n_tokens < len(text) / 2


def test_training_is_deterministic_and_the_size_is_exact(tokenizer: TextTokenizer) -> None:
    again = TextTokenizer.train(TEXTS, 330)
    assert again.fingerprint == tokenizer.fingerprint
    assert tokenizer.spec.codebook_size == 330


def test_a_saved_codec_loads_equal(tokenizer: TextTokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    text = "a red circle \u2581 42"
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(text) == tokenizer.encode(text)


def test_a_flipped_byte_is_refused(tokenizer: TextTokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    data = bytearray((tmp_path / "text.model").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "text.model").write_bytes(bytes(data))
    with pytest.raises(FormatError, match="damaged"):
        TextTokenizer.load(tmp_path)


def test_codes_of_another_codec_are_refused(tokenizer: TextTokenizer) -> None:
    other = TextTokenizer.train(TEXTS[::2], 330)
    with pytest.raises(FormatError, match=other.fingerprint[:12]):
        tokenizer.decode(other.encode("a red circle"))


def test_bad_input_is_named(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="not a int"):
        tokenizer.encode(3)
    with pytest.raises(InputError, match="character 2"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(InputError, match="fewer pieces"):
        TextTokenizer.train(["a b"], 4000)
