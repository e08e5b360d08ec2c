"""EnCodec's three models and key layouts: transformers' class, its checkpoints, the package."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator
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
from polyglyph.errors import FormatError, InputError
from polyglyph.media import Audio
from polyglyph.tokenizers import encodec, fixed_audio, load_tokenizer, seanet_fixed
from polyglyph.tokenizers.base import load_codes, save_codes
from polyglyph.tokenizers.fixed_audio import as_steps
from polyglyph.tokenizers.importers import import_codec

HOP = 24
SMALL = {
    "num_filters": 4, "hidden_size": 8, "codebook_size": 16, "upsampling_ratios": [4, 3, 2],
    "sampling_rate": RATE, "target_bandwidths": [0.8, 2.4],
}  # fmt: skip
STYLES: dict[str, dict[str, Any]] = {
    "24 kHz": {},
    "32 kHz": {"use_causal_conv": False},
    "48 kHz": {
        "use_causal_conv": False, "norm_type": "time_group_norm", "audio_channels": 2,
        "normalize": True, "chunk_length_s": 0.2, "overlap": 0.05,
    },
}  # fmt: skip
LENGTHS = (1, HOP - 1, HOP, HOP + 1, 457, 20 * HOP, 967)


def peer(style: str) -> Any:
    from transformers import EncodecConfig, EncodecModel

    return shaken(EncodecModel(EncodecConfig(**SMALL, **STYLES[style])))


@pytest.fixture(params=list(STYLES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """(their model, our tokenizer)."""
    model = peer(request.param)
    return model, import_codec(saved(model, tmp_path / "theirs"))[0]


@torch.no_grad()
def their_codes(model: Any, audio: Audio, bandwidth: float = 2.4) -> tuple[np.ndarray, Any]:
    """Codes (Q, F) of all windows in a row, and what their decoder wants."""
    out = model.encode(torch.from_numpy(audio.samples)[None], bandwidth=bandwidth)
    codes = list(out.audio_codes[:, 0])
    if out.last_frame_pad_length:
        codes[-1] = codes[-1][:, : -out.last_frame_pad_length]
    return torch.cat(codes, dim=-1).numpy(), out


@torch.no_grad()
def test_codes_and_sound_are_those_of_transformers_at_every_length(pair: Any) -> None:
    model, tokenizer = pair
    for n in LENGTHS:
        audio = sound(n, model.config.audio_channels)
        due, out = their_codes(model, audio)
        grid = tokenizer.encode(audio)
        if model.config.chunk_length_s is None:
            x = torch.from_numpy(audio.samples)[None]
            latents = model.encoder(x)[0].t()
            gap = residual_gap(latents, tokenizer.net.quantizer.codebook)
            assert wrong_frames(grid.codes, due, gap) == 0
        else:
            assert np.array_equal(grid.codes, due)
        expected = model.decode(
            out.audio_codes, out.audio_scales, last_frame_pad_length=out.last_frame_pad_length
        )
        same_sound(tokenizer.decode(grid), expected.audio_values[0], n)
    assert len(np.unique(due)) > 12


def test_every_tensor_is_accounted_for_and_the_saved_codec_is_the_imported_one(
    tmp_path: Path,
) -> None:
    folder = saved(peer("24 kHz"), tmp_path / "theirs")
    tokenizer, report = import_codec(folder)
    assert report.kind == "encodec" and not report.missing and not report.unexpected
    assert all("statistics" in why for why in report.ignored.values()) and report.ignored
    tokenizer.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert type(again) is type(tokenizer) and again.fingerprint == tokenizer.fingerprint
    audio = sound(500)
    assert again.encode(audio) == tokenizer.encode(audio)


def test_a_batch_equals_its_sounds_and_fewer_codebooks_are_the_first(pair: Any) -> None:
    model, tokenizer = pair
    sounds = [sound(n, model.config.audio_channels, seed=n) for n in (1, 700, 25, 480)]
    alone = [tokenizer.encode(item) for item in sounds]
    assert tokenizer.encode_batch(sounds) == alone
    fewer = tokenizer.encode(sounds[1], n_codebooks=2)
    assert np.array_equal(fewer.codes, alone[1].codes[:2])
    assert np.array_equal(fewer.codes, their_codes(model, sounds[1], 0.8)[0])
    assert tokenizer.decode(fewer).samples.shape == sounds[1].samples.shape
    with pytest.raises(InputError, match="1 to 6"):
        tokenizer.encode(sounds[0], n_codebooks=7)


def test_levels_of_windows_go_through_a_file_of_codes(tmp_path: Path) -> None:
    tokenizer = import_codec(saved(peer("48 kHz"), tmp_path / "theirs"))[0]
    grid = tokenizer.encode(sound(1200, 2))
    assert len(grid.meta.levels) == 3
    save_codes(tmp_path / "a.codes", [("0", "a.wav", [grid])])
    again = load_codes(tmp_path / "a.codes")[0][2][0]
    assert np.array_equal(tokenizer.decode(again).samples, tokenizer.decode(grid).samples)
    made = tokenizer.default_meta((47,))  # generated codes have no levels
    assert tokenizer.decode(type(grid)("audio", grid.codes[:, :47], made)).samples.shape[1] > 1000
    other = type(grid)("audio", grid.codes[:, :20], grid.meta, grid.fingerprint)
    with pytest.raises(InputError):
        tokenizer.decode(other)


def test_windows_pieces_and_streams_give_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = import_codec(saved(peer("24 kHz"), tmp_path / "theirs"))[0]
    audio = sound(100 * HOP + 7)
    whole = tokenizer.encode(audio)
    decoded = tokenizer.decode(whole).samples
    monkeypatch.setattr(seanet_fixed, "_PIECE", 9 * HOP * 4)
    monkeypatch.setattr(fixed_audio, "_WINDOW_S", 20 * HOP / RATE)
    assert tokenizer.encode(audio) == whole
    assert np.abs(tokenizer.decode(whole).samples - decoded).max() <= 1e-5
    for sizes in ((1000,), (7, 300, 25), (5000,)):
        assert joined_stream(tokenizer, audio, sizes) == whole
    for frames in ((1,), (3, 30, 2)):
        pieces = tokenizer.decode_stream(cut(whole, tokenizer, frames))
        samples = np.concatenate([piece.samples for piece in pieces], axis=1)
        assert samples.shape == decoded.shape and np.abs(samples - decoded).max() <= 1e-5


def test_windows_and_streams_of_a_codec_that_looks_ahead_give_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = import_codec(saved(peer("32 kHz"), tmp_path / "theirs"))[0]
    audio = sound(100 * HOP + 7)
    due = tokenizer.net.encode(as_steps(audio.samples), 6)[0]
    decoded = tokenizer.net.decode(due[None])[0].t().clamp(-1, 1).numpy()[:, : 100 * HOP + 7]
    monkeypatch.setattr(encodec, "_WINDOW_S", 20 * HOP / RATE)
    whole = tokenizer.encode(audio)
    assert np.array_equal(whole.codes, due.numpy())
    assert np.abs(tokenizer.decode(whole).samples - decoded).max() <= 1e-5
    for sizes in ((1000,), (7, 300, 25), (5000,)):
        assert joined_stream(tokenizer, audio, sizes) == whole
    for frames in ((1,), (3, 30, 2), (200,)):
        pieces = tokenizer.decode_stream(cut(whole, tokenizer, frames))
        samples = np.concatenate([piece.samples for piece in pieces], axis=1)
        assert np.array_equal(samples, tokenizer.decode(whole).samples)


@pytest.mark.parametrize("n", [1, 456, 457, 479, 4000, 8 * 456, 8 * 456 + 5, 9000])
def test_streams_of_windows_give_the_whole(n: int, tmp_path: Path) -> None:
    tokenizer = import_codec(saved(peer("48 kHz"), tmp_path / "theirs"))[0]
    assert tokenizer._chunk == (480, 456)
    audio = sound(n, 2)
    whole = tokenizer.encode(audio)
    decoded = tokenizer.decode(whole).samples
    for sizes in ((999,), (7, 5000)):
        assert joined_stream(tokenizer, audio, sizes) == whole
    chunks = [Audio(audio.samples[:, a : a + 700], RATE) for a in range(0, n, 700)]
    pieces = tokenizer.decode_stream(tokenizer.encode_stream(chunks))
    samples = np.concatenate([piece.samples for piece in pieces], axis=1)
    assert np.array_equal(samples, decoded)


@pytest.mark.parametrize("name", ["32 kHz", "48 kHz"])
def test_streams_hold_a_bounded_stretch_of_a_sound(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = import_codec(saved(peer(name), tmp_path / "theirs"))[0]
    monkeypatch.setattr(encodec, "_WINDOW_S", 20 * HOP / RATE)
    taken = 0

    def chunks() -> Iterator[Audio]:
        nonlocal taken
        for i in range(60):
            taken += 1
            yield sound(10 * HOP, tokenizer.config.channels, seed=i)

    n_out, longest = 0, 0
    for piece in tokenizer.decode_stream(tokenizer.encode_stream(chunks())):
        n_out += piece.samples.shape[1]
        longest = max(longest, taken * 10 * HOP - n_out)
    assert n_out == 600 * HOP
    # Four windows of 20 frames follow one another; of windows of a second, three groups of eight.
    assert longest < (24 * 480 if name == "48 kHz" else 130 * HOP)


# --- other layouts ------------------------------------------------------------------------------


def package_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' keys in the package's names."""
    renames = (
        (r"^(encoder|decoder)\.layers\.", r"\1.model."),
        (r"\.parametrizations\.weight\.original0", ".weight_g"),
        (r"\.parametrizations\.weight\.original1", ".weight_v"),
        (r"\.(conv|norm)\.(weight\w*|bias)$", r".conv.\1.\2"),
        (r"^(decoder\.model\.(?:3|6|9))\.conv\.(conv|norm)\.", r"\1.convtr.\2."),
        (r"\.convtr\.conv\.", ".convtr.convtr."),
        (r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook."),
    )
    made = {}
    for key, tensor in state.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        made[key] = tensor
    return made


@pytest.mark.parametrize("style", ["24 kHz", "48 kHz"])
def test_the_packages_key_layout_is_the_same_codec(style: str, tmp_path: Path) -> None:
    model = peer(style)
    ours = import_codec(saved(model, tmp_path / "hf"))[0]
    folder = tmp_path / "package"
    folder.mkdir()
    torch.save({"best_state": package_layout(model.state_dict())}, folder / "model.th")
    (folder / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    assert import_codec(folder)[0].fingerprint == ours.fingerprint


def test_a_codec_within_musicgen_is_found(tmp_path: Path) -> None:
    model = peer("32 kHz")
    ours = import_codec(saved(model, tmp_path / "hf"))[0]
    folder = tmp_path / "musicgen"
    folder.mkdir()
    state = {f"audio_encoder.{key}": tensor for key, tensor in model.state_dict().items()}
    save_tensors(folder / "model.safetensors", {**state, "decoder.lm_head": torch.ones(2)})
    config = {"model_type": "musicgen", "audio_encoder": model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer, report = import_codec(folder)
    assert tokenizer.fingerprint == ours.fingerprint
    assert "another part" in report.ignored["decoder.lm_head"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.layers.0.conv.bias"), "1 missing"),
        (lambda s: s.update(spare=torch.ones(1)), "1 unexpected .*spare"),
        (lambda s: s.update({"decoder.layers.0.conv.bias": torch.ones(3)}), "another shape"),
        (lambda s: s.update({"quantizer.layers.9.codebook.embed": torch.ones(16, 8)}), "index"),
        (lambda s: s["encoder.layers.0.conv.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_a_silent_mismatch_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    model = peer("24 kHz")
    saved(model, tmp_path / "hf")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    change(state)
    save_tensors(tmp_path / "hf" / "model.safetensors", state, force=True)
    with pytest.raises(FormatError, match=message):
        import_codec(tmp_path / "hf")


def test_weights_of_an_unknown_model_need_their_config(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", peer("24 kHz").state_dict())
    with pytest.raises(FormatError, match=r"config\.json"):
        import_codec(tmp_path / "a.safetensors")


# --- the package itself -------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `encodec` package, which imports torchaudio by name only for what isn't used here."""
    if importlib.util.find_spec("encodec") is None:
        pytest.skip("the encodec package is not installed; `make test` does so")
    stand_in = types.ModuleType("torchaudio")
    stand_in.transforms = stand_in.functional = types.SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchaudio", stand_in)
    import encodec

    monkeypatch.delitem(sys.modules, "torchaudio")
    return encodec


def package_model(package: Any, stereo: bool) -> Any:
    torch.manual_seed(0)
    rate = 48_000 if stereo else 24_000
    shape = {
        "channels": 1 + stereo, "dimension": 8, "n_filters": 4, "causal": not stereo,
        "norm": "time_group_norm" if stereo else "weight_norm",
    }  # fmt: skip
    seanet = package.modules
    quantizer = package.quantization.ResidualVectorQuantizer(dimension=8, n_q=4, bins=16)
    model = package.EncodecModel(
        seanet.SEANetEncoder(**shape), seanet.SEANetDecoder(**shape), quantizer, [1.0], rate,
        1 + stereo, normalize=stereo, segment=1.0 if stereo else None,
    )  # fmt: skip
    for layer in quantizer.vq.layers:
        layer._codebook.inited.fill_(1)
    return shaken(model)


@pytest.mark.parametrize("stereo", [False, True])
@torch.no_grad()
def test_the_encodec_package_gives_the_same_codes_and_sound(
    stereo: bool, package: Any, tmp_path: Path
) -> None:
    model = package_model(package, stereo)
    torch.save(model.state_dict(), tmp_path / "encodec.th")
    tokenizer, report = import_codec(tmp_path / "encodec.th")
    assert "kHz model" in report.notes[0]
    assert (tokenizer.config.sample_rate, tokenizer.config.channels) == (
        model.sample_rate,
        1 + stereo,
    )
    n = 52_001 if stereo else 3_217
    audio = Audio(sound(n, 1 + stereo).samples, model.sample_rate)
    frames = model.encode(torch.from_numpy(audio.samples)[None])
    grid = tokenizer.encode(audio)
    assert np.array_equal(grid.codes, torch.cat([codes[0] for codes, _ in frames], -1).numpy())
    assert len(np.unique(grid.codes)) > 8
    same_sound(tokenizer.decode(grid), model.decode(frames)[0], n)
