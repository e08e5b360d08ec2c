"""The flat trunk of sound: begins as an orthonormal transform of blocks, looks backwards only,
streams as the other trunk does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyglyph.config import build
from polyglyph.errors import ConfigError
from polyglyph.media import Audio
from polyglyph.tokenizers.audio import AudioCodec, AudioCodecConfig, AudioTokenizer
from polyglyph.tokenizers.flat_audio import FlatDecoder, FlatEncoder, cosine_rows
from polyglyph.tokenizers.seanet import fold_weight_norm, folded_state, is_folded

FLAT: dict[str, Any] = {
    "trunk": "flat", "sample_rate": 4000, "strides": (20,), "widths": (17,), "d_latent": 17,
    "encoder_units": (2,), "decoder_units": (1,), "taps": 2, "decoder_activation": "elu",
    "quantizer": {"kind": "rvq", "codebook_size": 31, "n_codebooks": 3, "d_code": 6},
    "loss": {"windows": (256, 64)},
}  # fmt: skip


def codec(**options: Any) -> AudioCodec:
    torch.manual_seed(1)
    net = AudioCodec(AudioCodecConfig(**FLAT | options))
    for module in (net.encoder, net.decoder):
        for parameter in module.parameters():  # units that do something
            with torch.no_grad():
                parameter += 0.03 * torch.randn(parameter.shape)
    return net


def sound(n: int, channels: int = 1) -> Audio:
    samples = 0.2 * np.random.default_rng(0).standard_normal((channels, n))
    return Audio(samples.astype(np.float32), 4000)


@pytest.mark.parametrize(("n", "channels"), [(7, 1), (20, 2)])
def test_the_transform_is_orthonormal_and_climbs_in_frequency(n: int, channels: int) -> None:
    rows = cosine_rows(n, channels)
    assert torch.allclose(rows @ rows.t(), torch.eye(n * channels), atol=1e-6)
    turns = (rows.reshape(-1, channels, n).sum(1).sign().diff(dim=-1) != 0).sum(-1)
    assert torch.equal(turns, turns.sort().values) and turns[0] == 0 and turns[-1] == n - 1


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2])
def test_without_units_the_decoder_begins_as_the_inverse_of_the_encoder(channels: int) -> None:
    torch.manual_seed(0)
    shape: Any = ((8 * channels,), (8,), (0,), 8 * channels, "elu", 3, channels)
    x = torch.randn(2, channels, 40)
    z = FlatEncoder(*shape)(x)
    assert z.shape == (2, 8 * channels, 5)
    assert torch.allclose(z.square().sum(), x.square().sum(), rtol=1e-5)
    assert torch.allclose(FlatDecoder(*shape)(z), x, atol=1e-5)


@torch.no_grad()
def test_a_narrow_trunk_begins_as_the_nearest_sound_of_low_frequencies() -> None:
    torch.manual_seed(0)
    shape: Any = ((5,), (8,), (0,), 5, "elu", 1, 1)
    x = torch.randn(1, 1, 24)
    y = FlatDecoder(*shape)(FlatEncoder(*shape)(x))
    blocks, rows = x.reshape(3, 8), cosine_rows(8)[:5]
    assert torch.allclose(y.reshape(3, 8), blocks @ rows.t() @ rows, atol=1e-5)


@torch.no_grad()
def test_units_begin_as_nearly_nothing() -> None:
    torch.manual_seed(0)
    shape: Any = ((16,), (16,), (3,), 16, "elu", 2, 1)
    x = torch.randn(1, 1, 160)
    error = FlatDecoder(*shape)(FlatEncoder(*shape)(x)) - x
    assert 1e-6 < error.square().mean() < 0.1 * x.square().mean()


@torch.no_grad()
def test_a_later_sample_changes_no_earlier_code_and_chunks_give_the_codes_of_the_whole() -> None:
    tokenizer = AudioTokenizer(codec(), "mark")
    whole = sound(431)
    codes = tokenizer.encode(whole).codes
    other = whole.samples.copy()
    other[:, 200:] += 0.5
    changed = tokenizer.encode(Audio(other, 4000)).codes
    assert np.array_equal(changed[:, :10], codes[:, :10]) and (changed != codes).any()
    for size in (1, 33, 170):
        pieces = (
            Audio(whole.samples[:, i : i + size], 4000) for i in range(0, whole.n_samples, size)
        )
        streamed = np.concatenate([g.codes for g in tokenizer.encode_stream(pieces)], axis=1)
        assert np.array_equal(streamed, codes)
    grid = tokenizer.encode(whole)
    back = tokenizer.decode(grid).samples
    parts = [a.samples for a in tokenizer.decode_stream(tokenizer.encode_stream([whole]))]
    assert np.allclose(np.concatenate(parts, axis=1), back, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
def test_every_weight_learns_and_folding_changes_nothing(channels: int) -> None:
    net = codec(channels=channels)
    net.quantizer.attach_learner()
    net.train()
    generator = torch.Generator().manual_seed(0)
    batch = 0.2 * torch.randn(4, channels, 800, generator=generator)
    torch.stack(list(net.training_losses(batch).losses.values())).sum().backward()
    for part in (net.encoder, net.decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    assert net.last_layer.grad is not None
    folded = codec(channels=channels).encoder
    fold_weight_norm(folded)
    folded.load_state_dict(folded_state(net.encoder))
    assert is_folded(folded)
    assert torch.allclose(folded(batch), net.encoder(batch), atol=1e-5)


def test_the_quantizer_begins_with_the_lowest_frequencies() -> None:
    torch.manual_seed(0)
    net = AudioCodec(AudioCodecConfig(**FLAT | {"encoder_units": (0,), "decoder_units": (0,)}))
    z = torch.randn(2, 3, 17)
    assert torch.equal(net.quantizer.project_in(z), z[..., :6])
    back = net.quantizer.project_out(z[..., :6])
    assert torch.equal(back[..., :6], z[..., :6]) and not back[..., 6:].any()


@pytest.mark.parametrize(
    "wrong", [{"widths": (21,), "d_latent": 21}, {"d_latent": 9},
              {"strides": (5, 4), "widths": (8, 8), "encoder_units": (1, 1),
               "decoder_units": (1, 1)}]
)  # fmt: skip
def test_other_shapes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="flat"):
        build(AudioCodecConfig, FLAT | wrong, "a config")
