"""Codecs on disk: what is saved is what runs, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyglyph.checkpoint import fingerprint, load_tensors, save_tensors
from polyglyph.errors import ConfigError, FormatError
from polyglyph.tokenizers import load_tokenizer
from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig, ImageTokenizer
from polyglyph.tokenizers.neural import inference_state, load_weights, read_codec, save_codec


def codec(**options: Any) -> ImageCodec:
    torch.manual_seed(2)
    small = {"base": 8, "multipliers": (1, 2), "quantizer": {"codebook_size": 16, "d_code": 4}}
    return ImageCodec(ImageCodecConfig(**{**small, **options}))


def save(folder: Path, net: ImageCodec, dtype: torch.dtype | None = None) -> str:
    return save_codec(folder, net, net.config, modality="image", span="image", dtype=dtype)


def change_json(folder: Path, **changes: Any) -> None:
    """Edits codec.json and makes its fingerprint right again."""
    path = folder / "codec.json"
    data = json.loads(path.read_text()) | changes
    tensors = load_tensors(folder / "weights.safetensors")
    data["fingerprint"] = fingerprint(tensors, data["config"] or {})
    path.write_text(json.dumps(data))


def test_a_saved_codec_is_loaded_with_its_fingerprint_and_its_codes(tmp_path: Path) -> None:
    net = codec()
    mark = save(tmp_path / "c", net)
    tokenizer: Any = load_tokenizer(tmp_path / "c")
    assert isinstance(tokenizer, ImageTokenizer) and tokenizer.fingerprint == mark
    assert not tokenizer.net.training
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    codes = net.eval().encode(pixels)
    assert torch.equal(tokenizer.net.encode(pixels), codes)
    assert torch.equal(tokenizer.net.decode(codes), net.decode(codes))
    assert save(tmp_path / "again", tokenizer.net) == mark


def test_the_fingerprint_is_of_values_dtype_and_config(tmp_path: Path) -> None:
    nets = [codec(), codec(), codec(span="image-2")]
    with torch.no_grad():
        nets[1].quantizer.codebook[0, 3, 1] += 1e-6
    marks = [save(tmp_path / str(i), net) for i, net in enumerate(nets)]
    marks.append(save(tmp_path / "low", nets[0], torch.bfloat16))
    assert len(set(marks)) == 4
    assert save(tmp_path / "same", codec()) == marks[0]


def test_a_codec_stored_in_bf16_runs_in_fp32_from_the_stored_values(tmp_path: Path) -> None:
    net = codec()
    mark = save(tmp_path / "c", net, torch.bfloat16)
    data, stored = read_codec(tmp_path / "c")
    assert {v.dtype for v in stored.values()} == {torch.bfloat16}
    assert mark == data["fingerprint"] == fingerprint(stored, data["config"])
    loaded: Any = load_tokenizer(tmp_path / "c")
    for name, value in loaded.net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, net.state_dict()[name].bfloat16().float())


def test_nothing_of_a_learner_is_saved(tmp_path: Path) -> None:
    net = codec()
    net.quantizer.learner = nn.Linear(3, 3)
    save(tmp_path / "c", net)
    names = set(load_tensors(tmp_path / "c" / "weights.safetensors"))
    assert names == set(codec().state_dict()) == set(inference_state(net))
    assert "quantizer.learner.weight" in net.state_dict()


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "c", codec())
    path = tmp_path / "c" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"weights have fingerprint .* is damaged"):
        load_tokenizer(tmp_path / "c")


def test_a_changed_config_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "c", codec())
    path = tmp_path / "c" / "codec.json"
    path.write_text(path.read_text().replace('"patch": 2', '"patch": 1'))
    with pytest.raises(FormatError, match="fingerprint"):
        load_tokenizer(tmp_path / "c")


def test_row_31_unknown_keys_of_a_config_are_named_with_the_nearest(tmp_path: Path) -> None:
    net = codec()
    save(tmp_path / "c", net)
    change_json(tmp_path / "c", config={**net.config.model_dump(mode="json"), "pach": 2})
    with pytest.raises(ConfigError, match="unknown key 'pach'; did you mean 'patch'"):
        load_tokenizer(tmp_path / "c")
    change_json(tmp_path / "c", config=None)
    with pytest.raises(FormatError, match="holds no config"):
        load_tokenizer(tmp_path / "c")


def test_weights_that_do_not_fit_are_refused_naming_the_first(tmp_path: Path) -> None:
    tensors = inference_state(codec())
    first = min(tensors)
    with pytest.raises(FormatError, match=r"0 missing, 0 unknown, \d+ of other shape \(first: d"):
        load_weights(codec(base=12), tensors, "here")
    short = {k: v for k, v in tensors.items() if k != first}
    with pytest.raises(FormatError, match=rf"codec here: .* 1 missing, 0 .* \(first: {first}\)"):
        load_weights(codec(), short, "here")
    with pytest.raises(FormatError, match=r"0 missing, 1 unknown, 0 .* \(first: a\)"):
        load_weights(codec(), {**tensors, "a": torch.zeros(1)}, "here")
    net = codec().train()
    load_weights(net, {k: v + 1 for k, v in tensors.items()}, "here")
    assert not net.training
    assert all(torch.equal(v, tensors[k] + 1) for k, v in net.state_dict().items())


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    save(tmp_path / "c", codec())
    with pytest.raises(ValueError, match="exists"):
        save(tmp_path / "c", codec())


def test_weights_missing_altogether_are_named(tmp_path: Path) -> None:
    save(tmp_path / "c", codec())
    save_tensors(tmp_path / "c" / "weights.safetensors", {"x": torch.zeros(2)}, force=True)
    change_json(tmp_path / "c")
    with pytest.raises(FormatError, match=r"\d+ missing, 1 unknown"):
        load_tokenizer(tmp_path / "c")
    (tmp_path / "c" / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        load_tokenizer(tmp_path / "c")
