"""The audio codec: SEANet and residual vector quantization (SoundStream, arXiv:2107.03312;
EnCodec, arXiv:2210.13438) over mono sound of any length.

Sound of any rate is resampled to the codec's rate and mixed down to one channel by the mean of its
channels; it is padded with zeros to whole frames and cut to its true length again on decoding,
which returns mono at the codec's rate. The net is causal, so a longer or a padded input never
changes earlier codes. Knows nothing of ids, files of sound or training loops.

Shapes: B batch, S samples, F frames, D latent width, Q codebooks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from polyglyph.config import Config, build
from polyglyph.errors import InputError
from polyglyph.media import Audio, mix_channels, resample
from polyglyph.tokenizers.base import AudioMeta, CodeGrid, SpanSpec, Tokenizer
from polyglyph.tokenizers.neural import (
    CodecStep,
    inference_state,
    load_weights,
    read_codec,
    save_codec,
)
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig
from polyglyph.tokenizers.seanet import (
    Decoder,
    Encoder,
    fold_weight_norm,
    folded_state,
    is_folded,
    load_folded,
    past_frames,
)
from polyglyph.tokenizers.spectral import SpectralLoss

# The net works on sound of about unit level; speech and music have a root mean square near 0.2.
_LEVEL = 0.2
# Samples that one batch and one window may hold: about 0.2 GiB of the tiny codec. A longer sound
# goes through in windows that begin with the past they depend on, so the codes stay the same.
_SAMPLES_PER_BATCH = 1 << 20


class AudioLossConfig(Config):
    """`[loss]` of an audio codec: the weight of each summand.

    mel: multi-scale log-mel L1. stft: spectral convergence and log magnitude. waveform: energy of
    the error over the energy of the sound. windows: STFT sizes in samples. adversarial,
    discriminator_start: the discriminator of train/adversarial.py.
    """

    mel: float = Field(1.0, ge=0)
    stft: float = Field(0.3, ge=0)
    waveform: float = Field(1.0, ge=0)
    windows: tuple[int, ...] = (2048, 512, 128)
    adversarial: float = Field(0.0, ge=0)
    discriminator_start: int = Field(0, ge=0)


class AudioCodecConfig(Config):
    """`[codec]` of an audio codec. Samples per frame = the product of `strides`.

    widths: channels after each stride; encoder_units, decoder_units: residual units there;
    taps: length of the first and last filters, in strides. init: folder of a codec of the same
    shape, or the run that made it, to train on from.
    """

    modality: str = "audio"
    span: str = "audio"
    sample_rate: int = Field(16_000, ge=1000)
    strides: tuple[int, ...] = (8, 5, 4, 4)
    widths: tuple[int, ...] = (32, 64, 128, 160)
    encoder_units: tuple[int, ...] = (1, 1, 1, 2)
    decoder_units: tuple[int, ...] = (1, 1, 2, 3)
    d_latent: int = Field(128, ge=1)
    taps: int = Field(5, ge=1)
    decoder_activation: str = Field("snake", pattern="^(elu|snake)$")
    quantizer: QuantizerConfig = QuantizerConfig(
        kind="rvq", codebook_size=256, n_codebooks=4, d_code=16
    )
    loss: AudioLossConfig = AudioLossConfig()
    init: str | None = None

    @model_validator(mode="after")
    def _one_entry_per_stride(self) -> AudioCodecConfig:
        for name in ("widths", "encoder_units", "decoder_units"):
            if len(getattr(self, name)) != len(self.strides):
                raise ValueError(f"{name} needs one entry per stride ({len(self.strides)})")
        return self


class AudioCodec(nn.Module):
    """Sound (B, 1, S) in about [-1, 1] ↔ codes (B, Q, F), S a multiple of `hop`."""

    def __init__(self, config: AudioCodecConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.hop = math.prod(c.strides)
        self.encoder = Encoder(c.widths, c.strides, c.encoder_units, c.d_latent, "elu", c.taps)
        self.decoder = Decoder(
            c.widths, c.strides, c.decoder_units, c.d_latent, c.decoder_activation, c.taps
        )
        self.quantizer = Quantizer(c.quantizer, c.d_latent)
        self.spectral = SpectralLoss(c.sample_rate, c.loss.windows)

    def init_from(self, other: AudioCodec) -> None:
        """Take the weights and codebooks of a trained codec of the same shape."""
        load_folded(self.encoder, other.encoder.state_dict())
        load_folded(self.decoder, other.decoder.state_dict())
        self.quantizer.load_state_dict(inference_state(other.quantizer))
        self.quantizer.attach_learner(warm=True)

    def training_losses(self, batch: Tensor) -> CodecStep:
        """One forward over sounds (B, 1, S)."""
        assert batch.ndim == 3 and batch.shape[1] == 1 and batch.shape[2] % self.hop == 0
        z = self.encoder(batch / _LEVEL).transpose(1, 2)  # (B, F, D)
        out = self.quantizer(z)
        x = _LEVEL * self.decoder(out.quantized.transpose(1, 2).to(z.dtype)).float()
        loss, distance = self.config.loss, self.spectral(x, batch)
        losses = {
            "mel": loss.mel * distance.mel,
            "stft": loss.stft * distance.stft,
            "waveform": loss.waveform * waveform_distance(x, batch),
            "quantizer": out.loss,
        }
        return CodecStep(losses, x, out.codes)

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradient the adaptive adversarial weight is measured at."""
        return self.decoder.last_weight

    def encode(self, samples: Tensor) -> Tensor:
        """(B, 1, S) to codes (B, Q, F)."""
        parts = [
            self._encode(samples[..., start * self.hop : stop * self.hop])[..., skip:]
            for start, skip, stop in self._windows(samples.shape[-1] // self.hop)
        ]
        return torch.cat(parts, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, Q, F) to (B, 1, S)."""
        parts = [
            self._decode(codes[..., start:stop])[..., skip * self.hop :]
            for start, skip, stop in self._windows(codes.shape[-1])
        ]
        return torch.cat(parts, dim=-1)

    def _windows(self, n_frames: int) -> list[tuple[int, int, int]]:
        """(first frame, frames of the past to drop again, end) of each window."""
        c = self.config
        units = [max(pair) for pair in zip(c.encoder_units, c.decoder_units, strict=True)]
        past = past_frames(c.strides, units, c.taps)
        length = max(1, _SAMPLES_PER_BATCH // self.hop)
        starts = range(0, n_frames, length)
        return [(max(0, s - past), min(s, past), min(s + length, n_frames)) for s in starts]

    @torch.no_grad()
    def _encode(self, samples: Tensor) -> Tensor:
        z = self.encoder(samples / _LEVEL).transpose(1, 2)  # (B, F, D)
        return self.quantizer.encode(z).transpose(1, 2)

    @torch.no_grad()
    def _decode(self, codes: Tensor) -> Tensor:
        z = self.quantizer.decode(codes.transpose(1, 2))  # (B, F, D)
        return _LEVEL * self.decoder(z.transpose(1, 2))


def waveform_distance(x: Tensor, target: Tensor) -> Tensor:
    """Energy of the error over the target's energy, (B, 1, S) each, mean over the batch; a scalar.

    The energy is floored at that of -40 dB, so that near silence does not rule the batch."""
    error = (x - target).square().mean(dim=(1, 2))
    return (error / target.square().mean(dim=(1, 2)).clamp_min(1e-4)).mean()


class AudioTokenizer(Tokenizer):
    """encode: `Audio` → CodeGrid (Q, F); decode: CodeGrid → mono `Audio` at the codec's rate."""

    config_class = AudioCodecConfig
    net_class = AudioCodec

    def __init__(self, net: AudioCodec, fingerprint: str = "") -> None:
        self.net = (net if is_folded(net) else _folded(net)).eval()
        self.config: AudioCodecConfig = net.config
        self.modality, self.span = "audio", net.config.span
        quantizer = net.config.quantizer
        self.spec = SpanSpec(
            self.span, self.modality, quantizer.codebook_size, quantizer.n_codebooks, 1
        )
        self.stride = (net.hop,)
        self.fingerprint = fingerprint

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second, Hz."""
        return self.config.sample_rate / self.net.hop

    def encode(self, media: Any) -> CodeGrid:
        return self.encode_batch([media])[0]

    def encode_batch(self, media: Sequence[Any]) -> list[CodeGrid]:
        """Sounds of similar length go through the net together, padded with zeros at the end."""
        sounds = [item if isinstance(item, Audio) else Audio(item) for item in media]
        waves = [self._samples(sound) for sound in sounds]
        grids: list[CodeGrid | None] = [None] * len(waves)
        for part in _groups([len(wave) for wave in waves]):
            n_frames = max(self._n_frames(len(waves[i])) for i in part)
            batch = np.zeros((len(part), 1, n_frames * self.net.hop), np.float32)
            for row, i in enumerate(part):
                batch[row, 0, : len(waves[i])] = waves[i]
            codes = self.net.encode(torch.from_numpy(batch)).numpy()
            for row, i in enumerate(part):
                meta = self._meta(len(waves[i]), sounds[i])
                kept = codes[row, :, : self._n_frames(len(waves[i]))].astype(np.int32)
                grids[i] = CodeGrid(self.modality, kept, meta, self.fingerprint)
        return [grid for grid in grids if grid is not None]

    def _n_frames(self, n_samples: int) -> int:
        return max(1, -(-n_samples // self.net.hop))

    def _samples(self, sound: Audio) -> np.ndarray:
        """Mono at the codec's rate, (S,) float32, S ≥ 1."""
        samples = mix_channels(np.asarray(sound.samples, np.float32), 1)
        if sound.sample_rate != self.config.sample_rate:
            samples = resample(samples, sound.sample_rate, self.config.sample_rate)
        mono = np.asarray(samples, np.float32).reshape(-1)
        if not np.isfinite(mono).all():
            raise InputError("the sound holds NaN or infinite samples; expected finite numbers")
        return mono if mono.size else np.zeros(1, np.float32)

    def _meta(self, n_samples: int, sound: Audio) -> AudioMeta:
        source_rate = sound.source_rate or sound.sample_rate
        n_channels = int(np.asarray(sound.samples).shape[0])  # of the input; decoding gives one
        return AudioMeta(n_samples, self.config.sample_rate, n_channels, source_rate)

    def decode(self, grid: CodeGrid) -> Audio:
        self.check_fingerprint(grid)
        meta = grid.meta
        assert isinstance(meta, AudioMeta)
        full = self.default_meta(grid.shape).n_samples
        if meta.sample_rate != self.config.sample_rate or not 0 < meta.n_samples <= full:
            raise InputError(
                f"{grid.shape[0]} frames of audio codes decode to at most {full} samples at "
                f"{self.config.sample_rate} Hz, their meta says {meta.n_samples} at "
                f"{meta.sample_rate} Hz"
            )
        codes = torch.from_numpy(grid.codes.astype(np.int64))[None]  # (1, Q, F)
        samples = self.net.decode(codes)[0, :, : meta.n_samples].numpy()
        return Audio(
            np.ascontiguousarray(np.clip(samples, -1.0, 1.0), np.float32),
            self.config.sample_rate,
            source_rate=meta.source_rate,
        )

    def default_meta(self, grid_shape: Sequence[int]) -> AudioMeta:
        return AudioMeta(grid_shape[0] * self.net.hop, self.config.sample_rate, 1, None)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        save_codec(
            folder, self.net, self.config, modality=self.modality, span=self.span, dtype=dtype
        )

    @classmethod
    def load(cls, folder: str | Path) -> AudioTokenizer:
        data, tensors = read_codec(folder)
        net = AudioCodec(build(AudioCodecConfig, data["config"], f"codec {folder}"))
        fold_weight_norm(net)
        load_weights(net, tensors, folder)
        return cls(net, data["fingerprint"])


def _folded(net: AudioCodec) -> AudioCodec:
    """A twin for inference: weight norm folded, no learner; `net` goes on training as it is."""
    # Forked: a monitor that drew random numbers would part a resumed run from an unbroken one.
    with torch.random.fork_rng(devices=[]):
        twin = AudioCodec(net.config)
    fold_weight_norm(twin)
    state = folded_state(net)
    twin.load_state_dict({key: state[key] for key in inference_state(twin)})
    return twin.to(net.quantizer.codebook.device)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in batches of similar length whose padded size is bounded."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        last = groups[-1] if groups else []
        if last and (len(last) + 1) * lengths[i] <= _SAMPLES_PER_BATCH:
            last.append(i)
        else:
            groups.append([i])
    return groups


__all__ = ["AudioCodec", "AudioCodecConfig", "AudioLossConfig", "AudioTokenizer"]
