"""The audio codec: lengths, rates and channels come back; batches equal single sounds; saved
codecs equal trained ones; a tiny net learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from polyglyph.checkpoint import fingerprint, load_tensors
from polyglyph.config import build
from polyglyph.errors import ConfigError, FormatError, InputError
from polyglyph.media import Audio
from polyglyph.tokenizers.audio import AudioCodec, AudioCodecConfig, AudioTokenizer
from polyglyph.tokenizers.base import AudioMeta, CodeGrid
from polyglyph.tokenizers.quantize import QuantizerConfig

SMALL = AudioCodecConfig(
    sample_rate=4000,
    strides=(5, 4),
    widths=(8, 12),
    encoder_units=(1, 1),
    decoder_units=(1, 1),
    d_latent=9,
    quantizer=QuantizerConfig(kind="rvq", codebook_size=17, n_codebooks=3, d_code=4),
    loss={"windows": (256, 64)},
)


def codec(seed: int = 0) -> AudioCodec:
    torch.manual_seed(seed)
    return AudioCodec(SMALL)


@pytest.fixture(scope="module")
def tokenizer() -> AudioTokenizer:
    return AudioTokenizer(codec(), "f" * 64)


def sound(n: int, rate: int = 4000, channels: int = 1, seed: int = 0) -> Audio:
    samples = 0.2 * np.random.default_rng(seed).standard_normal((channels, n))
    return Audio(samples.astype(np.float32), rate)


@pytest.mark.parametrize("n", [1, 19, 20, 21, 399, 4001])
def test_the_length_comes_back(tokenizer: AudioTokenizer, n: int) -> None:
    grid = tokenizer.encode(sound(n))
    back = tokenizer.decode(grid)
    assert grid.codes.shape == (3, -(-n // 20)) and grid.meta.n_samples == n
    assert back.samples.shape == (1, n) and back.sample_rate == 4000
    assert np.isfinite(back.samples).all() and np.abs(back.samples).max() <= 1


@pytest.mark.parametrize("rate", [2000, 8000, 11_025, 12_345])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_mono_of_the_same_duration(
    tokenizer: AudioTokenizer, rate: int, channels: int
) -> None:
    grid = tokenizer.encode(sound(rate // 2, rate, channels))
    back = tokenizer.decode(grid)
    assert back.samples.shape[0] == 1 and abs(back.duration_s - 0.5) < 2e-3
    assert grid.meta.source_rate == rate and grid.meta.n_channels == channels


def test_stereo_is_mixed_by_the_mean(tokenizer: AudioTokenizer) -> None:
    stereo = sound(200, channels=2)
    mono = Audio(stereo.samples.mean(0, keepdims=True), 4000)
    assert tokenizer.encode(stereo).same_codes(tokenizer.encode(mono))


def test_a_batch_of_different_lengths_equals_single_sounds(tokenizer: AudioTokenizer) -> None:
    sounds = [sound(n, seed=n) for n in (7, 400, 1999, 20, 1234)]
    for one, item in zip(tokenizer.encode_batch(sounds), sounds, strict=True):
        assert one == tokenizer.encode(item)


def test_codes_of_a_beginning_are_the_beginning_of_the_codes(tokenizer: AudioTokenizer) -> None:
    whole = sound(800)
    part = Audio(whole.samples[:, :300], 4000)
    assert np.array_equal(tokenizer.encode(part).codes, tokenizer.encode(whole).codes[:, :15])


@pytest.mark.parametrize("n_frames", [1, 7, 8, 61])
def test_windows_of_a_long_sound_equal_the_whole(
    tokenizer: AudioTokenizer, monkeypatch: pytest.MonkeyPatch, n_frames: int
) -> None:
    x = sound(20 * n_frames - 3)
    grid = tokenizer.encode(x)
    wave = tokenizer.decode(grid).samples
    monkeypatch.setattr("polyglyph.tokenizers.audio._SAMPLES_PER_BATCH", 7 * 20)
    assert tokenizer.encode_batch([sound(5), x]) == [tokenizer.encode(sound(5)), grid]
    assert np.abs(tokenizer.decode(grid).samples - wave).max() <= 1e-5 * np.abs(wave).max()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_saved_codec_loads_and_codes_alike(dtype: torch.dtype | None, tmp_path) -> None:
    trained = AudioTokenizer(codec(3))
    trained.save(tmp_path / "a", dtype)
    loaded = AudioTokenizer.load(tmp_path / "a")
    loaded.save(tmp_path / "b", dtype)
    assert AudioTokenizer.load(tmp_path / "b").fingerprint == loaded.fingerprint
    a, b = trained.encode(sound(2000)).codes, loaded.encode(sound(2000)).codes
    assert np.array_equal(a, b) if dtype is None else (a == b).mean() > 0.5


def test_codes_of_another_codec_and_wrong_lengths_are_refused(tokenizer: AudioTokenizer) -> None:
    grid = tokenizer.encode(sound(100))
    with pytest.raises(FormatError, match="codec"):
        AudioTokenizer(codec(), "0" * 64).decode(grid)
    with pytest.raises(InputError, match="at most 100"):
        tokenizer.decode(CodeGrid("audio", grid.codes, AudioMeta(101, 4000, 1), ""))
    assert tokenizer.decode(
        CodeGrid("audio", grid.codes, tokenizer.default_meta(grid.shape), "")
    ).samples.shape == (1, 100)


def test_silence_encodes_and_decodes(tokenizer: AudioTokenizer) -> None:
    back = tokenizer.decode(tokenizer.encode(Audio(np.zeros((1, 333), np.float32), 4000)))
    assert np.isfinite(back.samples).all()


def test_lists_of_another_length_than_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match="widths needs one entry per stride"):
        build(AudioCodecConfig, {"strides": (8, 5, 4, 4), "widths": (8, 16)}, "test")


def test_a_codec_starts_only_from_one_of_its_shape() -> None:
    net = codec(1)
    net.init_from(AudioTokenizer(codec(4)).net)
    x = 0.2 * torch.randn(1, 1, 100)
    assert torch.equal(net.eval().encode(x), AudioTokenizer(codec(4)).net.encode(x))
    for change, said in (
        ({"widths": (8, 13)}, r"has widths = \(8, 13\), this one \(8, 12\)"),
        ({"quantizer": {**SMALL.quantizer.model_dump(), "codebook_size": 5}}, "codebook_size = 5"),
    ):
        other = AudioCodec(build(AudioCodecConfig, {**SMALL.model_dump(), **change}, "test"))
        with pytest.raises(ConfigError, match=said):
            codec(1).init_from(AudioTokenizer(other).net)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strides": ()}, "strides"),
        ({"strides": (5, 0)}, "strides.1"),
        ({"widths": (8, -1)}, "widths.1"),
        ({"encoder_units": (1, -1)}, "encoder_units.1"),
        ({"channels": 3}, "channels"),
        ({"d_latent": 10**12}, "no AudioCodec has these sizes"),
    ],
)
def test_a_config_that_makes_no_codec_is_a_line(change: dict, said: str, tmp_path: Path) -> None:
    AudioTokenizer(codec()).save(tmp_path / "c")
    path = tmp_path / "c" / "codec.json"
    data = json.loads(path.read_text())
    data["config"] |= change
    tensors = load_tensors(tmp_path / "c" / "weights.safetensors")
    data["fingerprint"] = fingerprint(tensors, data["config"])
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=said):
        AudioTokenizer.load(tmp_path / "c")


def test_a_stereo_codec_keeps_two_channels_and_a_mono_one_says_nothing_of_them() -> None:
    config = build(AudioCodecConfig, {**SMALL.model_dump(), "channels": 2}, "test")
    torch.manual_seed(0)
    stereo = AudioTokenizer(AudioCodec(config))
    a, b = sound(77, channels=2), sound(77, channels=1)
    assert stereo.decode(stereo.encode(a)).samples.shape == (2, 77)
    assert not stereo.encode(a).same_codes(stereo.encode(Audio(a.samples[::-1], 4000)))
    twice = Audio(np.repeat(b.samples, 2, 0), 4000)
    assert stereo.encode(b).same_codes(stereo.encode(twice))
    assert stereo.default_meta((3,)) == AudioMeta(60, 4000, 2)
    step = AudioCodec(config).training_losses(0.2 * torch.randn(3, 2, 400))
    assert step.reconstruction.shape == (3, 2, 400) and step.codes.shape == (3, 20, 3)
    assert "channels" not in SMALL.model_dump() and config.model_dump()["channels"] == 2


def test_fewer_codebooks_are_the_first_ones(tokenizer: AudioTokenizer) -> None:
    whole = tokenizer.encode(sound(333))
    for n in (1, 2, 3):
        grid = tokenizer.encode(sound(333), n_codebooks=n)
        assert np.array_equal(grid.codes, whole.codes[:n]) and grid.meta == whole.meta
        assert tokenizer.decode(grid).samples.shape == (1, 333)
    for n in (0, 4, True, 1.5):
        with pytest.raises(InputError, match="has codebooks 1 to 3; got"):
            tokenizer.encode(sound(333), n_codebooks=n)


def test_a_training_forward_leaves_codebooks_out() -> None:
    quantizer = {**SMALL.quantizer.model_dump(), "quantize_dropout": True}
    net = AudioCodec(build(AudioCodecConfig, {**SMALL.model_dump(), "quantizer": quantizer}, "t"))
    net.train().quantizer.attach_learner()
    depths = set()
    for _ in range(12):
        step = net.training_losses(0.2 * torch.randn(2, 1, 200))
        assert all(bool(torch.isfinite(loss)) for loss in step.losses.values())
        depths.add(int((step.codes[0, 0] >= 0).sum()))
    assert depths == {1, 2, 3}


def test_a_tokenizer_of_a_training_net_leaves_the_net_and_the_random_state_alone() -> None:
    net = codec(1)
    keys, state = set(net.state_dict()), torch.get_rng_state()
    tokenizer = AudioTokenizer(net)
    assert set(net.state_dict()) == keys and torch.equal(torch.get_rng_state(), state)
    x = 0.2 * torch.randn(2, 1, 200)
    assert torch.equal(net.encode(x), tokenizer.net.encode(x))
    assert not any("parametrizations" in key for key in tokenizer.net.state_dict())


def test_training_lowers_the_spectral_distances_on_one_batch() -> None:
    net = codec(2).train()
    net.quantizer.attach_learner()
    t = torch.arange(2000) / 4000
    hertz = torch.tensor([200.0, 260.0, 330.0, 430.0])[:, None, None]
    batch = 0.2 * torch.sin(2 * torch.pi * hertz * t)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, betas=(0.8, 0.99), weight_decay=0)
    history = []
    for _ in range(60):
        step = net.training_losses(batch)
        optimizer.zero_grad()
        torch.stack(list(step.losses.values())).sum().backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in step.losses.items()})
    assert step.codes.shape == (4, 100, 3) and step.reconstruction.shape == batch.shape
    for name in ("mel", "stft"):
        assert history[-1][name] < 0.7 * history[0][name], (name, history[0], history[-1])
    assert net.last_layer.grad is not None and net.last_layer.is_leaf
