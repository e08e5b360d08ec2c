"""Mimi: transformers' class and checkpoint, Kyutai's own layout, and streams."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_sounds import (
    RATE,
    cut,
    joined_stream,
    residual_gap,
    same_sound,
    saved,
    shaken,
    sound,
    wrong_frames,
)
from torch import Tensor

from polyglyph.checkpoint import save_tensors
from polyglyph.errors import FormatError
from polyglyph.tokenizers import fixed_audio, load_tokenizer, seanet_fixed
from polyglyph.tokenizers.importers import import_codec

HOP = 48
N_HEADS, D_HEAD = 2, 8


def peer(**changes: Any) -> Any:
    from transformers import MimiConfig, MimiModel

    config = {
        "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 3, 2], "codebook_size": 16,
        "codebook_dim": 6, "vector_quantization_hidden_dimension": 6, "num_quantizers": 5,
        "num_hidden_layers": 2, "intermediate_size": 20, "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_HEADS, "head_dim": D_HEAD, "sliding_window": 9,
        "sampling_rate": RATE, "upsample_groups": 16, "layer_scale_initial_scale": 0.5,
    }  # fmt: skip
    return shaken(MimiModel(MimiConfig(**{**config, **changes})))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Any]:
    """(their model, our tokenizer)."""
    model = peer()
    return model, import_codec(saved(model, tmp_path / "theirs"))[0]


@torch.no_grad()
def test_codes_and_sound_are_those_of_transformers_at_every_length(pair: Any) -> None:
    model, tokenizer = pair
    seen = set()
    net = tokenizer.net.quantizer
    for n in (1, 23, 24, 25, HOP - 1, HOP, HOP + 1, 60 * HOP + 31):
        audio = sound(n)
        x = torch.from_numpy(audio.samples)[None]
        due = model.encode(x).audio_codes[0].numpy()
        grid = tokenizer.encode(audio)
        latents = model.encoder(x).latents[0].t()
        parts = (
            (slice(0, 1), net.semantic_in, net.semantic),
            (slice(1, 5), net.acoustic_in, net.acoustic),
        )
        for rows, project, group in parts:
            gap = residual_gap(project(latents), group.codebook)
            assert wrong_frames(grid.codes[rows], due[rows], gap) == 0
        expected = model.decode(torch.from_numpy(grid.codes).long()[None]).audio_values[0]
        same_sound(tokenizer.decode(grid), expected, n)
        seen |= set(due.ravel().tolist())
    assert len(seen) > 10


@torch.no_grad()
def test_fewer_codebooks_are_the_first_and_a_batch_equals_its_sounds(pair: Any) -> None:
    model, tokenizer = pair
    sounds = [sound(n, seed=n) for n in (1, 700, 25)]
    alone = [tokenizer.encode(item) for item in sounds]
    assert tokenizer.encode_batch(sounds) == alone
    for n in (1, 3):
        fewer = tokenizer.encode(sounds[1], n_codebooks=n)
        assert np.array_equal(fewer.codes, alone[1].codes[:n])
        expected = model.decode(torch.from_numpy(fewer.codes).long()[None]).audio_values[0]
        same_sound(tokenizer.decode(fewer), expected, 700)


def test_windows_pieces_and_streams_give_the_whole(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = pair[1]
    audio = sound(50 * HOP + 7)
    whole = tokenizer.encode(audio)
    decoded = tokenizer.decode(whole).samples
    monkeypatch.setattr(seanet_fixed, "_PIECE", 9 * HOP * 4)
    monkeypatch.setattr(fixed_audio, "_WINDOW_S", 0.2)
    assert tokenizer.encode(audio) == whole
    assert np.abs(tokenizer.decode(whole).samples - decoded).max() <= 1e-5
    for sizes in ((1000,), (7, 300, 25)):
        assert joined_stream(tokenizer, audio, sizes) == whole
    for frames in ((1,), (3, 20, 2)):
        pieces = tokenizer.decode_stream(cut(whole, tokenizer, frames))
        samples = np.concatenate([piece.samples for piece in pieces], axis=1)
        assert samples.shape == decoded.shape and np.abs(samples - decoded).max() <= 1e-5


def test_every_tensor_is_accounted_for_and_the_saved_codec_is_the_imported_one(
    tmp_path: Path,
) -> None:
    tokenizer, report = import_codec(saved(peer(), tmp_path / "theirs"))
    assert report.kind == "mimi" and report.clean and len(report.ignored) == 5
    tokenizer.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert type(again) is type(tokenizer) and again.fingerprint == tokenizer.fingerprint
    assert again.encode(sound(500)) == tokenizer.encode(sound(500))


# --- other layouts ------------------------------------------------------------------------------


def test_the_class_in_memory_names_the_same_codec(tmp_path: Path) -> None:
    model = peer()
    ours = import_codec(saved(model, tmp_path / "hf"))[0]
    save_tensors(tmp_path / "hf" / "model.safetensors", model.state_dict(), force=True)
    assert import_codec(tmp_path / "hf")[0].fingerprint == ours.fingerprint


def neighbours(weight: Tensor) -> Tensor:
    """Rows that pair the halves of a head, so that they pair neighbours."""
    return weight.view(N_HEADS, 2, D_HEAD // 2, -1).transpose(1, 2).reshape(weight.shape)


def kyutai_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The class's keys in Kyutai's names."""
    renames = (
        (r"^(encoder|decoder)\.\1_seanet\.layers\.", r"\1.model."),
        (r"^(?:en|de)coder\.((?:en|de)coder_transformer)\.", r"\1.transformer."),
        (r"^encoder\.downsample\.conv\.", "downsample.conv.conv.conv."),
        (r"^decoder\.upsample\.conv\.", "upsample.convtr.convtr.convtr."),
        (r"^((?:en|de)coder\.model\..*)\.conv\.(weight|bias)$", r"\1.conv.conv.\2"),
        (r"^(decoder\.model\.(?:2|5|8))\.conv\.conv\.", r"\1.convtr.convtr."),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.mlp\.fc(\d)\.", r".linear\1."),
        (r"\.input_layernorm\.", ".norm1."),
        (r"\.post_attention_layernorm\.", ".norm2."),
        (r"\.self_attn_layer_scale\.", ".layer_scale_1."),
        (r"\.mlp_layer_scale\.", ".layer_scale_2."),
        (r"\.semantic_residual_vector_quantizer\.", ".rvq_first."),
        (r"\.acoustic_residual_vector_quantizer\.", ".rvq_rest."),
        (r"\.layers\.(\d+)\.codebook\.", r".vq.layers.\1._codebook."),
        (r"\.embed_sum$", ".embedding_sum"),
        (r"\.initialized$", "._initialized"),
    )
    made = {}
    for key, tensor in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            k, v = (state[key.replace("q_proj", name)] for name in ("k_proj", "v_proj"))
            tensor = torch.cat([neighbours(tensor), neighbours(k), v])
            key = key.replace("q_proj.weight", "in_proj_weight")
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        made[key] = tensor
    return made


def test_kyutais_layout_is_the_same_codec(tmp_path: Path) -> None:
    model = peer()
    folder = saved(model, tmp_path / "hf")
    ours = import_codec(folder)[0]
    state = kyutai_layout(model.state_dict())
    save_tensors(folder / "model.safetensors", state, force=True)
    tokenizer, report = import_codec(folder)
    assert tokenizer.fingerprint == ours.fingerprint and "Kyutai" in report.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_mode": "replicate"}, "pad_mode"),
        ({"num_key_value_heads": 1}, "key than query heads"),
        ({"sliding_window": None}, None),
    ],
)
def test_a_config_that_is_no_mimis_is_refused(
    changes: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    import json

    folder = saved(peer(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    if message is None:  # left out: the published window
        assert import_codec(folder)[0].config.window == 250
        return
    with pytest.raises(FormatError, match=message):
        import_codec(folder)
