"""The audio codec: SEANet and residual vector quantization (SoundStream, arXiv:2107.03312;
EnCodec, arXiv:2210.13438) over mono or stereo sound of any length.

Sound of any rate is resampled to the codec's rate and mixed to its channels; it is padded with
zeros to whole frames and cut to its true length again on decoding. The net is causal, so a longer
or a padded input never changes earlier codes, and chunks of a sound give the codes of the whole.
Knows nothing of ids, files of sound or training loops.

Shapes: B batch, C channels, S samples, F frames, D latent width, Q codebooks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from polyglyph.config import Config
from polyglyph.errors import ConfigError, InputError
from polyglyph.media import Audio, mix_channels, resample
from polyglyph.tokenizers.base import (
    AudioMeta,
    CodeGrid,
    SpanSpec,
    Tokenizer,
    as_medium,
    check_follows,
    join_codes,
)
from polyglyph.tokenizers.flat_audio import FlatDecoder, FlatEncoder
from polyglyph.tokenizers.losses import added
from polyglyph.tokenizers.neural import (
    RESIDUAL_KINDS,
    CodecStep,
    inference_state,
    load_net,
    save_codec,
)
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig
from polyglyph.tokenizers.seanet import (
    Decoder,
    Encoder,
    State,
    fold_weight_norm,
    folded_state,
    is_folded,
    load_folded,
)
from polyglyph.tokenizers.spectral import AudioLossConfig, SpectralLoss

# The net works on sound of about unit level; speech and music have a root mean square near 0.2.
_LEVEL = 0.2
# Samples that one batch and one window may hold: about 0.2 GiB of the tiny codec.
_SAMPLES_PER_BATCH = 1 << 20


class Resampler:
    """Chunks (C, s) from one rate to another, in Hz: together they give `resample` of the whole."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self.rates = (from_rate, to_rate)
        self._stream: Any = None
        self._n_in = self._n_out = 0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        if self.rates[0] == self.rates[1]:
            return samples
        if self._stream is None:
            import soxr

            self._stream = soxr.ResampleStream(*self.rates, samples.shape[0], dtype="float32")
        return self._push(samples, False)

    def finish(self, n_channels: int) -> np.ndarray:
        """What is left once the last chunk was given."""
        end = np.zeros((n_channels, 0), np.float32)
        return end if self._stream is None else self._push(end, True)

    def _push(self, samples: np.ndarray, last: bool) -> np.ndarray:
        self._n_in += samples.shape[1]
        from_rate, to_rate = self.rates
        rows = np.ascontiguousarray(samples.T)
        made = self._stream.resample_chunk(rows, last=last).T
        # As many as `resample` makes, which rounds halves up and gives at least one.
        most = max(1, (2 * self._n_in * to_rate + from_rate) // (2 * from_rate)) - self._n_out
        if last and self._n_in:
            made = np.pad(made, ((0, 0), (0, max(0, most - made.shape[1]))))
            made = made[:, :most]
        self._n_out += made.shape[1]
        return np.ascontiguousarray(made, np.float32)


class AudioCodecConfig(Config):
    """`[codec]` of an audio codec. Samples per frame = the product of `strides`.

    channels: 1 (mono) or 2 (stereo) of the sound. widths: channels after each stride;
    encoder_units, decoder_units: residual units there; taps: length of the first and last filters,
    in strides. trunk: "flat" works at the rate of codes alone (flat_audio.py) and has one stride,
    one width and as wide latents. init: folder of a codec of the same shape, or the run that made
    it, to train on from.
    """

    modality: str = "audio"
    span: str = "audio"
    sample_rate: int = Field(16_000, ge=1000)
    # Left out of a dump when it is 1: codecs saved before there was stereo keep their fingerprint.
    channels: int = Field(1, ge=1, le=2, exclude_if=lambda n: n == 1)
    strides: tuple[PositiveInt, ...] = Field((8, 5, 4, 4), min_length=1)
    widths: tuple[PositiveInt, ...] = (32, 64, 128, 160)
    encoder_units: tuple[NonNegativeInt, ...] = (1, 1, 1, 2)
    decoder_units: tuple[NonNegativeInt, ...] = (1, 1, 2, 3)
    d_latent: int = Field(128, ge=1)
    taps: int = Field(5, ge=1)
    trunk: Literal["seanet", "flat"] = added("seanet")
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
        most = self.channels * self.strides[0]
        if self.trunk == "flat" and not (self.d_latent,) == self.widths <= (most,):
            raise ValueError(
                f'trunk "flat" has one stride, one width of at most channels · stride ({most}), '
                f"and d_latent is it; got widths {list(self.widths)}, d_latent {self.d_latent}"
            )
        return self


class AudioCodec(nn.Module):
    """Sound (B, C, S) in about [-1, 1] ↔ codes (B, Q, F), S a multiple of `hop`."""

    discriminator = "sound"  # which of train/adversarial.py judges it

    def __init__(self, config: AudioCodecConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.hop = math.prod(c.strides)
        shape, ends = (c.widths, c.strides), (c.taps, c.channels)
        kinds = (Encoder, Decoder) if c.trunk == "seanet" else (FlatEncoder, FlatDecoder)
        self.encoder = kinds[0](*shape, c.encoder_units, c.d_latent, "elu", *ends)
        self.decoder = kinds[1](*shape, c.decoder_units, c.d_latent, c.decoder_activation, *ends)
        self.quantizer = Quantizer(c.quantizer, c.d_latent)
        if c.trunk == "flat":
            self.quantizer.start_plain()
        self.spectral = SpectralLoss(c.sample_rate, c.loss.windows, c.loss.floor)

    def init_from(self, other: AudioCodec) -> None:
        """Take a trained codec's weights and codebooks; ConfigError if its shape is another."""
        names = ("channels", "strides", "widths", "encoder_units", "decoder_units", "d_latent",
                 "taps", "trunk", "decoder_activation")  # fmt: skip
        sizes = ("kind", "codebook_size", "n_codebooks", "d_code")
        for owner, keys in (("", names), ("quantizer.", sizes)):
            a, b = (c.quantizer if owner else c for c in (self.config, other.config))
            for key in keys:
                ours, theirs = getattr(a, key), getattr(b, key)
                if ours != theirs:
                    raise ConfigError(
                        f"codec.init: the codec has {owner}{key} = {theirs}, this one {ours}; its "
                        "weights fit only a codec of the same shape"
                    )
        load_folded(self.encoder, other.encoder.state_dict())
        load_folded(self.decoder, other.decoder.state_dict())
        self.quantizer.load_state_dict(inference_state(other.quantizer))
        self.quantizer.attach_learner(warm=True)

    def vectors(self, samples: Tensor) -> Tensor:
        """(B, C, S) to what is quantized, (B, F, D)."""
        return self.encoder(samples / _LEVEL).transpose(1, 2)

    def decoded(self, out: CodecStep) -> Tensor:
        """What the codes of half of the step's sounds stand for, without a gradient."""
        return out.reconstruction[: len(out.reconstruction) // 2].detach()

    def training_losses(self, batch: Tensor) -> CodecStep:
        """One forward over sounds (B, C, S)."""
        assert batch.ndim == 3 and batch.shape[1] == self.config.channels
        assert batch.shape[2] % self.hop == 0
        z = self.vectors(batch)  # (B, F, D)
        out = self.quantizer(z)
        x = _LEVEL * self.decoder(out.quantized.transpose(1, 2).to(z.dtype)).float()
        loss, distance = self.config.loss, self.spectral(x, batch)
        losses = {
            "mel": loss.mel * distance.mel,
            "stft": loss.stft * distance.stft,
            "waveform": loss.waveform * waveform_distance(x, batch),
            "quantizer": out.loss,
        }
        if loss.l1:
            losses["l1"] = loss.l1 * (x - batch).abs().mean()
        return CodecStep(losses, x, out.codes, latents=z)

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradient the adaptive adversarial weight is measured at."""
        return self.decoder.last_weight

    @property
    def device(self) -> torch.device:
        return self.quantizer.codebook.device

    @torch.no_grad()
    def encode(
        self, samples: Tensor, n_codebooks: int | None = None, state: State | None = None
    ) -> Tensor:
        """(B, C, S) to codes (B, Q, F). With a `state` ({} at the start) they follow the samples
        before, whose past it holds."""
        z = self.encoder(samples.to(self.device) / _LEVEL, state).transpose(1, 2)  # (B, F, D)
        return self.quantizer.encode(z, n_codebooks).transpose(1, 2)

    @torch.no_grad()
    def decode(self, codes: Tensor, state: State | None = None) -> Tensor:
        """Codes (B, Q, F) to (B, C, S); `state` as in `encode`."""
        z = self.quantizer.decode(codes.to(self.device).transpose(1, 2))  # (B, F, D)
        return _LEVEL * self.decoder(z.transpose(1, 2), state)


def waveform_distance(x: Tensor, target: Tensor) -> Tensor:
    """Energy of the error over the target's energy, (B, C, S) each, mean over the batch; a scalar.

    The energy is floored at that of -40 dB, so that near silence does not rule the batch."""
    error = (x - target).square().mean(dim=(1, 2))
    return (error / target.square().mean(dim=(1, 2)).clamp_min(1e-4)).mean()


class AudioTokenizer(Tokenizer):
    """encode: `Audio` → CodeGrid (Q, F); decode: CodeGrid → `Audio` at the codec's rate and with
    its channels.

    Sounds of any length, and streams of chunks of any size, go through in windows of bounded
    memory that hand the state of every convolution on, so the codes are those of the whole."""

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
        self.is_residual = quantizer.kind in RESIDUAL_KINDS
        self.stride = (net.hop,)
        self.fingerprint = fingerprint

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second, Hz."""
        return self.config.sample_rate / self.net.hop

    # -- encoding --------------------------------------------------------------------------------

    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        return self.encode_batch([media], n_codebooks=n_codebooks)[0]

    def encode_batch(
        self, media: Sequence[Any], *, n_codebooks: int | None = None
    ) -> list[CodeGrid]:
        """Sounds of similar length go through the net together, padded with zeros at the end."""
        n = self.chosen_codebooks(n_codebooks)
        sounds = [as_medium(item, Audio) for item in media]
        waves = [self._samples(sound) for sound in sounds]
        grids: list[CodeGrid | None] = [None] * len(waves)
        for part in _groups([wave.shape[1] for wave in waves]):
            if waves[part[0]].shape[1] > _SAMPLES_PER_BATCH:
                codes = np.concatenate(list(self._windows(waves[part[0]], n)), axis=1)[None]
            else:
                codes = self._encode_together([waves[i] for i in part], n)
            for row, i in enumerate(part):
                n_samples = waves[i].shape[1]
                kept = codes[row, :, : self._n_frames(n_samples)]
                meta = self._meta(n_samples, sounds[i])
                grids[i] = CodeGrid(self.modality, kept, meta, self.fingerprint)
        return [grid for grid in grids if grid is not None]

    def _encode_together(self, waves: Sequence[np.ndarray], n_codebooks: int) -> np.ndarray:
        """Codes (B, Q, F) of sounds (C, S) in one batch as long as the longest."""
        n_frames = max(self._n_frames(wave.shape[1]) for wave in waves)
        shape = (len(waves), self.config.channels, n_frames * self.net.hop)
        batch = np.zeros(shape, np.float32)
        for row, wave in zip(batch, waves, strict=True):
            row[:, : wave.shape[1]] = wave
        return self.net.encode(torch.from_numpy(batch), n_codebooks).cpu().numpy().astype(np.int32)

    def _windows(self, wave: np.ndarray, n_codebooks: int) -> Iterator[np.ndarray]:
        """Codes (Q, f) of one long sound (C, S), a window at a time."""
        state: State = {}
        length = self._frames_per_window * self.net.hop
        for start in range(0, wave.shape[1], length):
            yield self._encode_next(wave[:, start : start + length], n_codebooks, state)

    def _encode_next(self, wave: np.ndarray, n_codebooks: int, state: State) -> np.ndarray:
        """Codes (Q, f) of what follows in a stream (C, s); its end is filled up to a frame."""
        whole = np.pad(wave, ((0, 0), (0, -wave.shape[1] % self.net.hop)))
        codes = self.net.encode(torch.from_numpy(whole)[None], n_codebooks, state)
        return codes[0].cpu().numpy().astype(np.int32)

    @property
    def _frames_per_window(self) -> int:
        return max(1, _SAMPLES_PER_BATCH // self.net.hop)

    def _n_frames(self, n_samples: int) -> int:
        return max(1, -(-n_samples // self.net.hop))

    def _samples(self, sound: Audio) -> np.ndarray:
        """(C, S) float32 at the codec's rate and channels, S ≥ 1."""
        samples = self._mixed(sound)
        if sound.sample_rate != self.config.sample_rate:
            samples = resample(samples, sound.sample_rate, self.config.sample_rate)
        return samples if samples.shape[1] else np.zeros((self.config.channels, 1), np.float32)

    def _mixed(self, sound: Audio) -> np.ndarray:
        """(C, S) float32 with the codec's channels; InputError for what isn't finite."""
        samples = mix_channels(np.asarray(sound.samples, np.float32), self.config.channels)
        if not np.isfinite(samples).all():
            raise InputError("the sound holds NaN or infinite samples; expected finite numbers")
        return samples

    def _meta(self, n_samples: int, sound: Audio) -> AudioMeta:
        source_rate = sound.source_rate or sound.sample_rate
        # n_channels is that of the input; decoding gives as many as the codec has.
        return AudioMeta(n_samples, self.config.sample_rate, sound.n_channels, source_rate)

    def encode_stream(
        self, chunks: Iterable[Any], *, n_codebooks: int | None = None
    ) -> Iterator[CodeGrid]:
        """Whole frames as soon as their samples are there; the last piece fills up a frame.

        chunks: `Audio` of any length, all of one rate and channel count (InputError)."""
        n = self.chosen_codebooks(n_codebooks)
        state: State = {}
        length = self._frames_per_window * self.net.hop
        waiting = np.zeros((self.config.channels, 0), np.float32)
        sound, is_first = None, True
        for sound, new, is_last in self._converted(chunks):
            waiting = np.concatenate([waiting, new], axis=1)
            ready = waiting.shape[1] - (0 if is_last else waiting.shape[1] % self.net.hop)
            if is_last and is_first and not ready:
                waiting, ready = np.zeros((self.config.channels, 1), np.float32), 1
            for start in range(0, ready, length):
                part = waiting[:, start : min(start + length, ready)]
                codes = self._encode_next(part, n, state)
                meta = self._meta(part.shape[1], sound)
                yield CodeGrid(self.modality, codes, meta, self.fingerprint)
                is_first = False
            waiting = waiting[:, ready:].copy()
        if sound is None:
            raise InputError("a stream of sound needs at least one chunk, got none")

    def _converted(self, chunks: Iterable[Any]) -> Iterator[tuple[Audio, np.ndarray, bool]]:
        """(a chunk, new samples (C, s) at the codec's rate, whether they are the last)."""
        first: Audio | None = None
        for chunk in chunks:
            sound = as_medium(chunk, Audio)
            if first is None:
                first = sound
                convert = Resampler(sound.sample_rate, self.config.sample_rate)
            if (sound.sample_rate, sound.n_channels) != (first.sample_rate, first.n_channels):
                raise InputError(
                    f"the chunks of one sound have one rate and channel count; got {first!r}, "
                    f"then {sound!r}"
                )
            yield first, convert(self._mixed(sound)), False
        if first is not None:
            yield first, convert.finish(self.config.channels), True

    # -- decoding --------------------------------------------------------------------------------

    def decode(self, grid: CodeGrid) -> Audio:
        meta = self._checked(grid)
        samples = np.empty((self.config.channels, meta.n_samples), np.float32)
        at = 0
        for part in self.decode_parts(grid):
            samples[:, at : at + part.n_samples] = part.samples
            at += part.n_samples
        return Audio(samples, self.config.sample_rate, source_rate=meta.source_rate)

    @torch.no_grad()
    def decode_parts(self, grid: CodeGrid) -> Iterator[Audio]:
        """What `decode` gives, a window at a time, so that hours of sound need no memory."""
        meta = self._checked(grid)
        left = meta.n_samples
        for wave in self._waves(grid.codes, meta):
            part = np.ascontiguousarray(wave[:, :left])
            left -= part.shape[1]
            if part.shape[1]:
                yield Audio(part, self.config.sample_rate, source_rate=meta.source_rate)
        if left:  # some nets give a little less than their frames
            rest = np.zeros((self.config.channels, left), np.float32)
            yield Audio(rest, self.config.sample_rate, source_rate=meta.source_rate)

    def _waves(self, codes: np.ndarray, meta: AudioMeta) -> Iterator[np.ndarray]:
        """Samples (C, s) in [-1, 1], one after the other, of codes (Q, F)."""
        state: State = {}
        for start in range(0, codes.shape[1], self._frames_per_window):
            yield self._decode_next(codes[:, start : start + self._frames_per_window], state)

    def _decode_next(self, codes: np.ndarray, state: State) -> np.ndarray:
        """Samples (C, s) in [-1, 1] of the codes (Q, f) that follow in a stream."""
        wave = self.net.decode(torch.from_numpy(codes.astype(np.int64))[None], state)[0]
        return wave.clamp_(-1.0, 1.0).cpu().numpy()

    def _checked(self, grid: CodeGrid) -> AudioMeta:
        """The meta of a grid that this codec can decode."""
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
        return meta

    def decode_stream(self, pieces: Iterable[CodeGrid]) -> Iterator[Audio]:
        """The sound of every piece, in order. InputError where a piece that is cut within a frame
        isn't the last."""
        state: State = {}
        is_cut = False
        first: CodeGrid | None = None
        for piece in pieces:
            first = first or piece
            meta = self._checked(piece)
            check_follows(first, piece)
            if is_cut:
                raise InputError("a piece of a sound's stream ends within a frame; it must be last")
            is_cut = meta.n_samples < piece.shape[0] * self.net.hop
            parts = [
                self._decode_next(piece.codes[:, start : start + self._frames_per_window], state)
                for start in range(0, piece.shape[0], self._frames_per_window)
            ]
            samples = np.ascontiguousarray(np.concatenate(parts, axis=1)[:, : meta.n_samples])
            yield Audio(samples, self.config.sample_rate, source_rate=meta.source_rate)

    def join(self, pieces: Sequence[CodeGrid]) -> CodeGrid:
        codes = join_codes(pieces)
        metas = [self._checked(piece) for piece in pieces]
        meta = replace(metas[0], n_samples=sum(meta.n_samples for meta in metas))
        return CodeGrid(self.modality, codes, meta, pieces[0].fingerprint)

    def default_meta(self, grid_shape: Sequence[int]) -> AudioMeta:
        n_samples = grid_shape[0] * self.net.hop
        return AudioMeta(n_samples, self.config.sample_rate, self.config.channels, None)

    # -- disk ------------------------------------------------------------------------------------

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        save_codec(
            folder, self.net, self.config, modality=self.modality, span=self.span, dtype=dtype
        )

    @classmethod
    def load(cls, folder: str | Path) -> AudioTokenizer:
        net, mark = load_net(AudioCodec, AudioCodecConfig, folder, fold_weight_norm)
        # A published codec's net (its config names it) comes with a tokenizer of its own.
        return cls(net, mark) if isinstance(net, AudioCodec) else net.as_tokenizer(mark)


def _folded(net: AudioCodec) -> AudioCodec:
    """A twin for inference: weight norm folded, no learner; `net` goes on training as it is."""
    # Forked: a monitor that drew random numbers would part a resumed run from an unbroken one.
    with torch.random.fork_rng(devices=[]):
        twin = AudioCodec(net.config)
    fold_weight_norm(twin)
    state = folded_state(net)
    twin.load_state_dict({key: state[key] for key in inference_state(twin)})
    return twin.to(net.device)


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
