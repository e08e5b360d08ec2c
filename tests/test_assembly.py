from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import codecs, make_checkpoint, make_codecs, make_model

from polyglyph.assembly import (
    Tokenizers,
    build_tokens,
    load_model,
    load_parts,
    save_model_checkpoint,
    save_tokens,
)
from polyglyph.checkpoint import MANIFEST, read_manifest
from polyglyph.config import read_toml
from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.base import CodeGrid


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_codecs(tmp_path_factory.mktemp("codecs"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"), context=64)


def test_codecs_get_one_vocabulary_in_the_order_given(folders: list[Path]) -> None:
    parts = build_tokens([folders[2], folders[0]], n_sizes=5, untrained=("region",))
    assert list(parts.tokenizers) == ["video", "text", "region"]
    assert parts.vocabulary is not None and parts.grammar is not None
    assert parts.vocabulary.spans == ("size", "video", "text", "region")
    marks = {span: tokenizer.fingerprint for span, tokenizer in parts.tokenizers.items()}
    assert parts.grammar.fingerprints == marks and all(marks.values())


def test_a_codec_s_own_folder_does_as_well_as_its_checkpoint(folders: list[Path]) -> None:
    inner = build_tokens([folders[1] / "tokenizers" / "image"])
    outer = build_tokens([folders[1]])
    assert inner.tokenizers["image"].fingerprint == outer.tokenizers["image"].fingerprint
    assert inner.vocabulary == outer.vocabulary


def test_two_codecs_of_one_span_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = make_codecs(tmp_path, seed=1)
    with pytest.raises(InputError, match="both have the span 'image'"):
        build_tokens([folders[1], other[1]])


def test_saved_tokens_come_back_with_the_same_ids(folders: list[Path], tmp_path: Path) -> None:
    parts = build_tokens(folders)
    save_tokens(tmp_path / "tokens", parts)
    again = load_parts(tmp_path / "tokens")
    assert again.vocabulary == parts.vocabulary and again.grammar is not None
    assert parts.grammar is not None
    assert again.grammar.fingerprints == parts.grammar.fingerprints
    assert again.grammar.dialect == parts.grammar.dialect
    assert list(again.tokenizers) == list(parts.tokenizers)


def test_a_saved_model_loads_to_the_stored_values_in_fp32(tmp_path: Path) -> None:
    parts = build_tokens(make_codecs(tmp_path / "codecs"), n_sizes=7)
    assert parts.grammar is not None
    model = make_model(parts, context=33)
    config = {"run": {"steps": 3, "none": None}, "sampling": {"image": {"top_k": 4}}}
    save_model_checkpoint(
        tmp_path / "m", model, parts.grammar, parts.tokenizers, config, folders=parts.folders
    )
    manifest = read_manifest(tmp_path / "m", kind="model")
    found = load_model(tmp_path / "m", manifest)
    assert found.config == model.config and manifest["config"]["sampling"] == config["sampling"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.bfloat16().float()), name
    assert read_toml(tmp_path / "m" / "config.toml")["model"]["context"] == 33


def test_codecs_without_a_folder_keep_their_fingerprint_through_bf16(tmp_path: Path) -> None:
    tokenizer = codecs()["image"]
    tokenizer.save(tmp_path / "codec", dtype=torch.bfloat16)  # type: ignore[call-arg]
    parts = build_tokens([tmp_path / "codec"])
    parts.folders.clear()
    save_tokens(tmp_path / "tokens", parts)
    again = load_parts(tmp_path / "tokens").tokenizers["image"]
    assert again.fingerprint == parts.tokenizers["image"].fingerprint


def test_a_modality_finds_its_first_codec_and_a_typo_the_nearest() -> None:
    made = codecs()
    made["image"].span = "image-fine"
    tokenizers = Tokenizers({"image-fine": made["image"], "text": made["text"]}, "checkpoint x")
    assert tokenizers["image"] is tokenizers["image-fine"] is made["image"]
    assert "image" in tokenizers and "audio" not in tokenizers
    assert list(tokenizers) == ["image-fine", "text"] and len(tokenizers) == 2
    with pytest.raises(InputError, match=r"unknown modality of checkpoint x 'imgae'.*'image'"):
        tokenizers["imgae"]


def test_codes_find_the_codec_that_made_them() -> None:
    first, second = codecs()["image"], codecs()["image"]
    first.fingerprint, second.fingerprint = "a" * 64, "b" * 64
    tokenizers = Tokenizers({"image": first, "image-fine": second, "text": codecs()["text"]})
    codes = np.zeros((1, 2, 2), np.int32)
    for fingerprint, due in (("a" * 64, first), ("b" * 64, second), ("", first), ("c" * 64, first)):
        assert tokenizers.that_made(CodeGrid("image", codes, fingerprint=fingerprint)) is due
    with pytest.raises(InputError, match="unknown modality"):
        tokenizers.that_made(CodeGrid("audio", codes))


def broken(checkpoint: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "vocabulary.json", "tokenizers/text/text.model"]
)
def test_a_flipped_byte_anywhere_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = broken(checkpoint, tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)
    with pytest.raises(FormatError, match=name):
        load_parts(folder)


def forge(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_another_codec_than_the_manifest_s_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = broken(checkpoint, tmp_path)
    entries = json.loads((folder / MANIFEST).read_text())["tokenizers"]
    entries["audio"]["fingerprint"] = "0" * 64
    forge(folder, tokenizers=entries)
    with pytest.raises(FormatError, match="its audio codec is audio"):
        load_parts(folder)


def test_a_vocabulary_of_another_hash_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = broken(checkpoint, tmp_path)
    forge(folder, vocabulary_sha256="1" * 64)
    with pytest.raises(FormatError, match="vocabulary"):
        load_parts(folder)


def test_weights_of_another_shape_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    manifest = read_manifest(checkpoint)
    manifest["config"]["model"]["d_ff"] = 32
    with pytest.raises(FormatError, match=r"2 of another shape|4 of another shape"):
        load_model(checkpoint, manifest)


def test_codes_of_a_loaded_codec_are_those_of_the_saved_one(checkpoint: Path) -> None:
    from tiny_checkpoints import sound

    from polyglyph.media import Audio

    tone = Audio(sound(777), 4000)
    found = load_parts(checkpoint).tokenizers["audio"].encode(tone)
    assert np.array_equal(found.codes, codecs()["audio"].encode(tone).codes)
