"""DAC: transformers' class and checkpoint, Descript's own layout, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published_sounds import (
    RATE,
    cut,
    joined_stream,
    same_sound,
    saved,
    shaken,
    sound,
    wrong_frames,
)
from torch import Tensor

from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers import dac, load_tokenizer
from polyglyph.tokenizers.importers import import_codec

STRIDES = (2, 3, 4)
HOP = 24


def peer(n_codebooks: int = 3) -> Any:
    from transformers import DacConfig, DacModel

    config = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=list(STRIDES), decoder_hidden_size=32,
        n_codebooks=n_codebooks, codebook_size=16, codebook_dim=3, sampling_rate=RATE,
    )  # fmt: skip
    return shaken(DacModel(config), gain=0.8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Any]:
    """(their model, our tokenizer)."""
    model = peer()
    return model, import_codec(saved(model, tmp_path / "theirs"))[0]


def cosine_gap(model: Any, samples: Tensor) -> Any:
    """For `wrong_frames`: their latents, tables compared by direction."""
    latents = model.encoder(samples)[0].t().double()

    def gap(frame: int, q: int, due: np.ndarray) -> Tensor:
        residual = latents[frame]
        for i, part in enumerate(model.quantizer.quantizers[: q + 1]):
            low = part.in_proj.weight[:, :, 0].double() @ residual + part.in_proj.bias.double()
            table = part.codebook.weight.double()
            if i < q:
                back = part.out_proj.weight[:, :, 0].double() @ table[due[i, frame]]
                residual = residual - back - part.out_proj.bias.double()
        scores = F.normalize(table, dim=-1) @ F.normalize(low, dim=0)
        best = scores.topk(2).values
        return (best[0] - best[1]) / best[0].abs()

    return gap


@torch.no_grad()
def test_codes_and_sound_are_those_of_transformers_at_every_length(pair: Any) -> None:
    model, tokenizer = pair
    seen = set()
    for n in (1, HOP - 1, HOP, HOP + 1, 20 * HOP, 967):
        audio = sound(n)
        filled = F.pad(torch.from_numpy(audio.samples)[None], (0, -n % HOP))
        due = model.encode(filled).audio_codes[0].numpy()
        grid = tokenizer.encode(audio)
        assert wrong_frames(grid.codes, due, cosine_gap(model, filled)) == 0
        expected = model.decode(audio_codes=torch.from_numpy(grid.codes).long()[None])
        same_sound(tokenizer.decode(grid), expected.audio_values, n)
        seen |= set(due.ravel().tolist())
    assert len(seen) > 10


@torch.no_grad()
def test_fewer_codebooks_are_the_first_and_a_batch_equals_its_sounds(pair: Any) -> None:
    model, tokenizer = pair
    sounds = [sound(n, seed=n) for n in (1, 700, 25)]
    alone = [tokenizer.encode(item) for item in sounds]
    assert tokenizer.encode_batch(sounds) == alone
    fewer = tokenizer.encode(sounds[1], n_codebooks=2)
    assert np.array_equal(fewer.codes, alone[1].codes[:2])
    codes = torch.from_numpy(fewer.codes).long()[None]
    same_sound(tokenizer.decode(fewer), model.decode(audio_codes=codes).audio_values, 700)
    with pytest.raises(InputError, match="1 to 3"):
        tokenizer.encode(sounds[0], n_codebooks=0)


def test_stretches_windows_and_streams_give_the_whole(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = pair[1]
    audio = sound(120 * HOP + 5)
    whole = tokenizer.encode(audio)
    decoded = tokenizer.decode(whole).samples
    monkeypatch.setattr(dac, "_STRETCH", 300)
    monkeypatch.setattr(dac, "_WIDEST_IN_STRETCHES", 16)
    monkeypatch.setattr(dac, "_WINDOW_S", 1)
    assert tokenizer.encode(audio) == whole
    assert np.abs(tokenizer.decode(whole).samples - decoded).max() <= 1e-5
    windowed = tokenizer.decode(whole).samples
    for sizes in ((999,), (7, 300)):
        assert joined_stream(tokenizer, audio, sizes) == whole
    for frames in ((1,), (50, 3)):
        pieces = list(tokenizer.decode_stream(cut(whole, tokenizer, frames)))
        assert np.array_equal(np.concatenate([p.samples for p in pieces], axis=1), windowed)
    # The first second of sound is out long before the last of its codes are in.
    assert len(pieces) > 1 and pieces[0].samples.shape[1] == RATE


def test_every_tensor_is_accounted_for_and_the_saved_codec_is_the_imported_one(
    tmp_path: Path,
) -> None:
    tokenizer, report = import_codec(saved(peer(), tmp_path / "theirs"))
    assert report.kind == "dac" and report.clean and not report.ignored
    tokenizer.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert type(again) is type(tokenizer) and again.fingerprint == tokenizer.fingerprint
    assert again.encode(sound(500)) == tokenizer.encode(sound(500))


def original_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' keys in Descript's names, with weight norm."""
    n, made = len(STRIDES), {}

    def numbered(match: re.Match[str]) -> str:
        half, i, rest = match[1], int(match[2]) + 1, match[3]
        word, first = ("block", 0) if half == "encoder" else ("model", 2)
        unit = re.match(r"res_unit(\d)\.(snake1|conv1|snake2|conv2)", rest)
        if unit:
            part = ("snake1", "conv1", "snake2", "conv2").index(unit[2])
            rest = f"{first + int(unit[1]) - 1}.block.{part}"
        else:
            rest = {"snake1": "3" if first == 0 else "0", "conv1": "4", "conv_t1": "1"}[rest]
        return f"{half}.{word}.{i}.block.{rest}"

    for key, tensor in state.items():
        name, kind = key.rsplit(".", 1)
        name = re.sub(r"^(encoder|decoder)\.block\.(\d+)\.(.*)$", numbered, name)
        for half, word in (("encoder", "block"), ("decoder", "model")):
            ends = {"conv1": 0, "snake1": n + 1, "conv2": n + 2}
            for part, i in ends.items():
                name = f"{half}.{word}.{i}" if name == f"{half}.{part}" else name
        if kind == "weight" and "codebook" not in name:
            made[f"{name}.weight_g"] = tensor.flatten(1).norm(dim=1)[:, None, None]
            made[f"{name}.weight_v"] = 3 * tensor
        else:
            made[f"{name}.{kind}"] = tensor
    return made


def test_the_original_layout_is_the_same_codec(tmp_path: Path) -> None:
    model = peer(n_codebooks=11)
    ours = import_codec(saved(model, tmp_path / "hf"))[0]
    metadata = {"kwargs": {"sample_rate": RATE, "encoder_rates": list(STRIDES)}}
    state = original_layout(model.state_dict())
    torch.save({"state_dict": state, "metadata": metadata}, tmp_path / "weights.pth")
    tokenizer, report = import_codec(tmp_path / "weights.pth")
    assert report.clean and len(report.loaded) == len(state)
    assert tokenizer.config == ours.config
    audio = sound(20 * HOP)
    a, b = tokenizer.encode(audio), ours.encode(audio)
    assert a.same_codes(b)
    assert np.abs(tokenizer.decode(a).samples - ours.decode(b).samples).max() <= 1e-5


def test_a_rate_that_nobody_states_and_strides_that_disagree_are_refused(tmp_path: Path) -> None:
    model = peer()
    torch.save(original_layout(model.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(FormatError, match="sample rate"):
        import_codec(tmp_path / "weights.pth")
    folder = saved(model, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    config["downsampling_ratios"] = [2, 4, 8]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="downsampling_ratios"):
        import_codec(folder)
