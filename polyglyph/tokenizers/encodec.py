"""EnCodec (arXiv:2210.13438) with its published weights: 24 kHz, 32 kHz (MusicGen), 48 kHz stereo.

SEANet around an LSTM, weight norm folded, residual Euclidean codebooks. 24 kHz is causal; 32 kHz
looks both ways, so its windows overlap by what its convolutions reach, and the LSTM goes on from
one to the next; 48 kHz cuts a sound into windows of a second that overlap by 1 % and divides each
by its level, which is kept in the meta. All go through streams; a config that norms or levels the
whole of a sound at once (none was published) sees it whole. Knows nothing of files or keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polyglyph.errors import InputError
from polyglyph.tokenizers.base import AudioMeta, CodeGrid
from polyglyph.tokenizers.fixed_audio import (
    Encoded,
    FixedAudioConfig,
    FixedAudioTokenizer,
    FixedResidual,
    as_steps,
)
from polyglyph.tokenizers.seanet_fixed import SeanetDecoder, SeanetEncoder, SeanetShape
from polyglyph.tokenizers.steps import State
from polyglyph.tokenizers.windows import Push

# Seconds of a window of a net that looks both ways: 66 MB for each of 32 kHz' widest activations.
_WINDOW_S = 8
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

    @property
    def _sees_whole(self) -> bool:
        return self.config.norm == "group" or self.config.normalize

    @property
    def _frames_per_window(self) -> int:
        return max(1, int(_WINDOW_S * self.config.sample_rate) // self.hop)

    def encoding(self, n_codebooks: int) -> Push | None:
        if self._sees_whole:
            return None
        push = self.encoder.windows(self._frames_per_window)
        return lambda samples, is_last: (
            self.quantizer.encode(z, n_codebooks) for z in push(samples, is_last)
        )

    def decoding(self) -> Push | None:
        if self._sees_whole:
            return None
        push = self.decoder.windows(self._frames_per_window)
        return lambda codes, is_last: push(self.quantizer.decode(codes), is_last)


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
        if self.config.chunk_s is not None or not self.config.normalize:
            return super()._codes(wave, n)
        codes, levels = self._encoded([as_steps(wave)], n)
        return codes[0].numpy(), {"levels": levels}

    def _encoded(self, chunks: list[Tensor], n: int) -> tuple[Tensor, tuple[float, ...]]:
        """Codes (B, Q, f) of chunks (1, s, C) of one length, and their levels where they are taken
        out."""
        x = torch.cat(chunks)
        if not self.config.normalize:
            return self.net.encode(x, n), ()
        level = x.mean(dim=2).square().mean(dim=1).sqrt() + 1e-8
        return self.net.encode(x / level[:, None, None], n), tuple(level.tolist())

    def _encoding(self, n: int) -> Callable[[Tensor, bool], Iterator[Encoded]] | None:
        if self.config.chunk_s is None:
            return super()._encoding(n)
        length, step = self._chunk
        held = torch.zeros(1, 0, self.config.channels)

        def push(samples: Tensor, is_last: bool) -> Iterator[Encoded]:
            nonlocal held
            held = torch.cat([held, samples], dim=1) if held.shape[1] else samples
            behind = (_CHUNKS_TOGETHER - 1) * step + length  # where a group of whole windows ends
            at, end = 0, held.shape[1]
            while end - at >= behind or (is_last and at < end):
                starts = range(at, min(at + _CHUNKS_TOGETHER * step, end), step)
                for group in _alike([held[:, a : a + length] for a in starts], _CHUNKS_TOGETHER):
                    codes, levels = self._encoded(group, n)
                    joined = torch.cat(list(codes), dim=-1)[None]
                    yield Encoded(joined, len(group) * step, levels)
                at += _CHUNKS_TOGETHER * step
            held = held[:, at:].clone()

        return push

    def _decoding(self) -> Callable[[Tensor, AudioMeta, bool], Iterator[Tensor]] | None:
        if self.config.chunk_s is None:
            return super()._decoding()
        whole = -(-self._chunk[0] // self.net.hop)  # frames of a window
        together = _CHUNKS_TOGETHER * whole
        overlap = OverlapAdd(self._chunk[1])
        held, n_left, is_levelled = torch.zeros(0), 0, False
        levels: list[float] = []

        def push(codes: Tensor, meta: AudioMeta, is_last: bool) -> Iterator[Tensor]:
            nonlocal held, n_left, is_levelled
            held = torch.cat([held, codes], dim=-1) if held.numel() else codes
            levels.extend(meta.levels)
            n_left += meta.n_samples  # from the start of what is held
            is_levelled |= bool(meta.levels)
            # The last two windows of a sound may be shorter ones: they wait for its end.
            ready = max(0, held.shape[-1] - 2 * whole) // together * together
            frames = [whole] * (ready // whole)
            n_left -= len(frames) * self._chunk[1]
            if is_last:
                frames += self._frames_of_chunks(held.shape[-1] - ready, n_left)
                ready = held.shape[-1]
            windows = held[..., :ready].split(frames, dim=-1)
            held = held[..., ready:].clone()
            for group in _alike(list(windows), _CHUNKS_TOGETHER):
                waves = self.net.decode(torch.cat(group)).transpose(1, 2)  # (B, C, s)
                factors = [levels.pop(0) for _ in group] if is_levelled else []
                for i, wave in enumerate(waves):
                    yield overlap.push(wave * factors[i] if factors else wave).t()[None]
            if is_last:
                yield overlap.finish().t()[None]

        return push

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


class OverlapAdd:
    """Windows (C, s), `step` samples apart, as one sound: where they overlap, each counts by its
    distance from its own end. The first window is the longest."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._sums = self._weights = self._weight = torch.zeros(0)

    def push(self, wave: Tensor) -> Tensor:
        """The samples (C, n) that no window after this one changes."""
        n = wave.shape[1]
        if not self._weight.numel():
            t = torch.linspace(0, 1, n + 2)[1:-1]
            self._weight, self._sums = 0.5 - (t - 0.5).abs(), torch.zeros(len(wave), 0)
        more = max(0, n - self._sums.shape[1])
        self._sums = torch.nn.functional.pad(self._sums, (0, more))
        self._weights = torch.nn.functional.pad(self._weights, (0, more))
        self._sums[:, :n] += self._weight[:n] * wave
        self._weights[:n] += self._weight[:n]
        return self._take(self.step)

    def finish(self) -> Tensor:
        """The rest."""
        return self._take(self._sums.shape[1])

    def _take(self, n: int) -> Tensor:
        tiny = torch.finfo(torch.float32).tiny
        out = self._sums[:, :n] / self._weights[:n].clamp_min(tiny)
        self._sums, self._weights = self._sums[:, n:], self._weights[n:]
        return out


__all__ = ["Encodec", "EncodecConfig", "EncodecTokenizer", "OverlapAdd"]
