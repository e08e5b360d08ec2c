"""EnCodec (arXiv:2210.13438) with its published weights: 24 kHz, 32 kHz (MusicGen), 48 kHz stereo.

SEANet around an LSTM, weight norm folded, residual Euclidean codebooks. 24 kHz is causal and goes
through streams; 32 kHz sees the whole sound; 48 kHz cuts it into windows of a second that overlap
by 1 % and divides each by its level, which is kept in the meta. Knows nothing of files or keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polyglyph.errors import InputError
from polyglyph.tokenizers.base import AudioMeta, CodeGrid
from polyglyph.tokenizers.fixed_audio import (
    FixedAudioConfig,
    FixedAudioTokenizer,
    FixedResidual,
    as_steps,
)
from polyglyph.tokenizers.seanet_fixed import SeanetDecoder, SeanetEncoder, SeanetShape
from polyglyph.tokenizers.steps import State

_CHUNKS_TOGETHER = 8  # of the 48 kHz model: 50 MB for each of its widest activations


class EncodecConfig(FixedAudioConfig):
    """A published EnCodec. Samples per frame = the product of `ratios`, the decoder's order.

    norm: "weight" (folded into the weights) or "group", over the whole of a sound. normalize:
    divide by the level. chunk_s, overlap: seconds of a window, and the share that two have in
    common; None for the whole sound at once."""

    architecture: Literal["encodec"] = "encodec"
    width: PositiveInt = 32
    ratios: tuple[PositiveInt, ...] = Field((8, 5, 4, 2), min_length=1)
    n_units: PositiveInt = 1
    kernel: PositiveInt = 7
    last_kernel: PositiveInt = 7
    unit_kernel: PositiveInt = 3
    dilation_growth: PositiveInt = 2
    compress: PositiveInt = 2
    n_lstm: int = Field(2, ge=0)
    causal: bool = True
    mode: Literal["reflect", "constant", "replicate"] = "reflect"
    norm: Literal["weight", "group"] = "weight"
    conv_skip: bool = True
    normalize: bool = False
    chunk_s: float | None = Field(None, gt=0)
    overlap: float = Field(0.0, ge=0, lt=1)

    def shape(self) -> SeanetShape:
        """The net's."""
        names = ("width", "ratios", "n_units", "kernel", "last_kernel", "unit_kernel", "n_lstm",
                 "dilation_growth", "compress", "causal", "mode", "conv_skip")  # fmt: skip
        return SeanetShape(
            n_channels=self.channels,
            d_latent=self.d_code,
            normed=self.norm == "group",
            **{name: getattr(self, name) for name in names},
        )


class Encodec(nn.Module):
    """Samples (B, S, C) ↔ codes (B, Q, ⌈S / hop⌉)."""

    config_class = EncodecConfig

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.shape()
        self.hop = shape.hop
        self.is_causal = config.causal and config.norm == "weight" and config.chunk_s is None
        self.encoder = SeanetEncoder(shape)
        self.decoder = SeanetDecoder(shape)
        self.quantizer = FixedResidual(config.n_codebooks, config.codebook_size, config.d_code)

    def as_tokenizer(self, fingerprint: str) -> EncodecTokenizer:
        return EncodecTokenizer(self, fingerprint)

    @torch.no_grad()
    def encode(self, samples: Tensor, n_codebooks: int, state: State | None = None) -> Tensor:
        return self.quantizer.encode(self.encoder(samples, state), n_codebooks)

    @torch.no_grad()
    def decode(self, codes: Tensor, state: State | None = None) -> Tensor:
        return self.decoder(self.quantizer.decode(codes), state)


class EncodecTokenizer(FixedAudioTokenizer):
    """EnCodec behind the contract; n_codebooks = 1000·kbps / (frame_rate · log2(codebook_size))."""

    net: Encodec
    config: EncodecConfig  # type: ignore[assignment]

    # -- windows of a second ---------------------------------------------------------------------

    @property
    def _chunk(self) -> tuple[int, int]:
        """(samples of a window, samples from one to the next)."""
        assert self.config.chunk_s is not None
        length = int(self.config.chunk_s * self.config.sample_rate)
        return length, max(1, int((1.0 - self.config.overlap) * length))

    def _codes(self, wave: np.ndarray, n: int) -> tuple[np.ndarray, dict[str, Any]]:
        if self.config.chunk_s is None:
            codes, levels = self._encode_chunks([wave], n)
        else:
            length, step = self._chunk
            chunks = [wave[:, a : a + length] for a in range(0, wave.shape[1], step)]
            codes, levels = self._encode_chunks(chunks, n)
        return np.concatenate(codes, axis=1), {"levels": tuple(levels)}

    def _encode_chunks(
        self, chunks: list[np.ndarray], n: int
    ) -> tuple[list[np.ndarray], list[float]]:
        """Codes (Q, f) of every chunk (C, s), and its level where that is taken out."""
        if not self.config.normalize and self.config.chunk_s is None:
            return [super()._codes(chunks[0], n)[0]], []
        codes: list[np.ndarray] = []
        levels: list[float] = []
        for group in _alike(chunks, _CHUNKS_TOGETHER):
            x = torch.cat([as_steps(chunk) for chunk in group])  # (B, S, C)
            if self.config.normalize:
                level = x.mean(dim=2).square().mean(dim=1).sqrt() + 1e-8
                x = x / level[:, None, None]
                levels += level.tolist()
            codes += list(self.net.encode(x, n).numpy())
        return codes, levels

    def _wave(self, codes: Tensor, meta: AudioMeta) -> Tensor:
        if self.config.chunk_s is None:
            wave = super()._wave(codes, meta)
            return wave * meta.levels[0] if meta.levels else wave
        _, step = self._chunk
        frames = self._frames_of_chunks(codes.shape[-1], meta.n_samples)
        parts = list(codes.split(frames, dim=-1))
        waves: list[Tensor] = []
        for group in _alike(parts, _CHUNKS_TOGETHER):
            waves += list(self.net.decode(torch.cat(group)).transpose(1, 2))  # (C, s) each
        for wave, level in zip(waves, meta.levels):
            wave *= level
        return overlap_add(waves, step)

    def _frames_of_chunks(self, n_frames: int, n_samples: int) -> list[int]:
        """Frames of every window: as encoding cut them, else whole windows and a rest."""
        length, step = self._chunk
        hop = self.net.hop
        cut = [-(-min(length, n_samples - a) // hop) for a in range(0, n_samples, step)]
        if sum(cut) == n_frames:
            return cut
        whole = -(-length // hop)
        return [whole] * (n_frames // whole) + [n_frames % whole] * (n_frames % whole > 0)

    def default_meta(self, grid_shape: Any) -> AudioMeta:
        meta = super().default_meta(grid_shape)
        if self.config.chunk_s is None or not grid_shape[0]:
            return meta
        frames = self._frames_of_chunks(grid_shape[0], 0)
        n_samples = (len(frames) - 1) * self._chunk[1] + frames[-1] * self.net.hop
        return replace(meta, n_samples=n_samples)

    def _checked(self, grid: CodeGrid) -> AudioMeta:
        meta = super()._checked(grid)
        if meta.levels:
            n = 1
            if self.config.chunk_s is not None:
                n = len(self._frames_of_chunks(grid.shape[0], meta.n_samples))
            if len(meta.levels) != n or not self.config.normalize:
                expected = n if self.config.normalize else 0
                raise InputError(
                    f"these {grid.shape[0]} frames have {expected} levels, their meta holds "
                    f"{len(meta.levels)}; decode them with the meta that encoding gave"
                )
        return meta


def _alike(items: list[Any], most: int) -> list[list[Any]]:
    """Neighbours of one shape in groups of at most `most`."""
    groups: list[list[Any]] = []
    for item in items:
        last = groups[-1] if groups else []
        if last and len(last) < most and last[0].shape == item.shape:
            last.append(item)
        else:
            groups.append([item])
    return groups


def overlap_add(waves: list[Tensor], step: int) -> Tensor:
    """Windows (C, s), `step` samples apart, as one sound: where they overlap, each counts by its
    distance from its own end."""
    length = waves[0].shape[1]
    t = torch.linspace(0, 1, length + 2)[1:-1]
    weight = 0.5 - (t - 0.5).abs()
    total = step * (len(waves) - 1) + waves[-1].shape[1]
    total = max(total, max(step * i + wave.shape[1] for i, wave in enumerate(waves)))
    out, weights = torch.zeros(len(waves[0]), total), torch.zeros(total)
    for i, wave in enumerate(waves):
        here = slice(i * step, i * step + wave.shape[1])
        out[:, here] += weight[: wave.shape[1]] * wave
        weights[here] += weight[: wave.shape[1]]
    return out / weights.clamp_min(torch.finfo(torch.float32).tiny)


__all__ = ["Encodec", "EncodecConfig", "EncodecTokenizer", "overlap_add"]
