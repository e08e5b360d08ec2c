"""What the published audio codecs share: fixed residual codebooks, and the contract around a net.

EnCodec, DAC and Mimi come with weights that nobody trains here: their nets take samples (B, S, C)
to codes (B, Q, F) and back. Sounds keep their true length (no zeros are added where the publisher
adds none). A causal net goes through a sound of any length in windows, and through streams; one
that isn't sees the whole. Knows nothing of files or of the publishers' keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polyglyph.config import Config
from polyglyph.errors import InputError, PolyglyphError
from polyglyph.kernels.nearest_code import residual_codes
from polyglyph.media import Audio
from polyglyph.tokenizers.audio import AudioTokenizer
from polyglyph.tokenizers.base import AudioMeta, CodeGrid, SpanSpec, as_medium
from polyglyph.tokenizers.seanet_fixed import pieces
from polyglyph.tokenizers.steps import State

_WINDOW_S = 16  # seconds of sound in a window: 0.2 GiB of EnCodec at 24 kHz
_LEAST_FRAMES = 8  # of the first and last window of a stream: their ends are reflected


class FixedAudioConfig(Config):
    """What every published audio codec's config has beside its net."""

    modality: str = "audio"
    span: str = "audio"
    sample_rate: int = Field(24_000, ge=1000)
    channels: int = Field(1, ge=1, le=2)
    codebook_size: int = Field(1024, ge=2)
    n_codebooks: PositiveInt = 32
    d_code: PositiveInt = 128


class FixedResidual(nn.Module):
    """Vectors (B, F, D) ↔ codes (B, Q, F) by residual search in tables that no training touches."""

    codebook: Tensor

    def __init__(self, n_codebooks: int, codebook_size: int, d_code: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(n_codebooks, codebook_size, d_code))

    def encode(self, z: Tensor, n_codebooks: int) -> Tensor:
        """The first n_codebooks codes (B, n, F). PolyglyphError for NaN in z."""
        refuse_non_finite(z)
        codes, _ = residual_codes(z.reshape(-1, z.shape[-1]), self.codebook[:n_codebooks])
        return codes.view(*z.shape[:2], -1).transpose(1, 2).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """(B, Q', F), Q' ≤ Q, to (B, F, D)."""
        z = self.codebook[0][codes[:, 0]]
        for q in range(1, codes.shape[1]):
            z += self.codebook[q][codes[:, q]]
        return z


def refuse_non_finite(z: Tensor) -> None:
    """PolyglyphError for NaN or infinite latents."""
    if not torch.isfinite(z).all():
        raise PolyglyphError(
            "the encoder's latents hold NaN or infinite values; check the codec's weights"
        )


class FixedAudioNet(Protocol):
    """A net of fixed weights. A state ({} at the start, None: none) goes with a causal one."""

    config: Any
    hop: int
    is_causal: bool

    def encode(self, samples: Tensor, n_codebooks: int, state: State | None = None) -> Tensor:
        """(B, S, C) to (B, n_codebooks, F)."""

    def decode(self, codes: Tensor, state: State | None = None) -> Tensor:
        """(B, Q, F) to (B, S, C)."""

    def eval(self) -> Any: ...


class FixedAudioTokenizer(AudioTokenizer):
    """encode: `Audio` → CodeGrid (Q, F); decode: CodeGrid → `Audio`.

    Sounds of a batch go through one by one: a shorter one's end is its own, not the padding of a
    longer one. Saved and loaded as every codec: its config's `architecture` names its net."""

    def __init__(self, net: FixedAudioNet, fingerprint: str = "") -> None:
        self.net = net.eval()
        self.config = net.config
        self.modality, self.span = "audio", net.config.span
        c = net.config
        self.spec = SpanSpec(self.span, self.modality, c.codebook_size, c.n_codebooks, 1)
        self.is_residual = True
        self.stride = (net.hop,)
        self.fingerprint = fingerprint

    @property
    def _frames_per_window(self) -> int:
        frames = math.ceil(_WINDOW_S * self.config.sample_rate / self.net.hop)
        return max(_LEAST_FRAMES, frames)

    # -- encoding --------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        n = self.chosen_codebooks(n_codebooks)
        sound = as_medium(media, Audio)
        wave = self._samples(sound)
        codes, more = self._codes(wave, n)
        meta = replace(self._meta(wave.shape[1], sound), **more)
        return CodeGrid(self.modality, codes.astype(np.int32), meta, self.fingerprint)

    def encode_batch(
        self, media: Sequence[Any], *, n_codebooks: int | None = None
    ) -> list[CodeGrid]:
        return [self.encode(item, n_codebooks=n_codebooks) for item in media]

    def _codes(self, wave: np.ndarray, n: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Codes (Q, F) of a sound (C, S), and what the meta holds beside its length."""
        if not self.net.is_causal:
            return self.net.encode(as_steps(wave), n)[0].numpy(), {}
        state: State = {}
        parts = pieces(wave.shape[1], self._frames_per_window * self.net.hop)
        codes = [self.net.encode(as_steps(wave[:, a:b]), n, state)[0] for a, b in parts]
        return torch.cat(codes, dim=-1).numpy(), {}

    @torch.no_grad()
    def encode_stream(
        self, chunks: Iterable[Any], *, n_codebooks: int | None = None
    ) -> Iterator[CodeGrid]:
        """Whole frames, eight behind what came in; a net that isn't causal waits for the end."""
        n = self.chosen_codebooks(n_codebooks)
        waiting = np.zeros((self.config.channels, 0), np.float32)
        state: State = {}
        sound, hop, is_first = None, self.net.hop, True
        for sound, new, is_last in self._converted(chunks):
            waiting = np.concatenate([waiting, new], axis=1)
            if is_last or not self.net.is_causal:
                continue
            ready = (waiting.shape[1] // hop - _LEAST_FRAMES) * hop
            if ready >= _LEAST_FRAMES * hop:
                yield from self._next(waiting[:, :ready], n, state, sound)
                waiting, is_first = waiting[:, ready:].copy(), False
        if sound is None:
            raise InputError("a stream of sound needs at least one chunk, got none")
        if is_first and not waiting.shape[1]:
            waiting = np.zeros((self.config.channels, 1), np.float32)
        if not self.net.is_causal:
            whole = Audio(waiting, self.config.sample_rate, source_rate=sound.sample_rate)
            grid = self.encode(whole, n_codebooks=n)
            meta = replace(grid.meta, n_channels=sound.n_channels)  # type: ignore[type-var]
            yield CodeGrid(self.modality, grid.codes, meta, self.fingerprint)
        elif waiting.shape[1]:
            yield from self._next(waiting, n, state, sound)

    def _next(self, wave: np.ndarray, n: int, state: State, sound: Audio) -> Iterator[CodeGrid]:
        for a, b in pieces(wave.shape[1], self._frames_per_window * self.net.hop):
            codes = self.net.encode(as_steps(wave[:, a:b]), n, state)[0].numpy().astype(np.int32)
            yield CodeGrid(self.modality, codes, self._meta(b - a, sound), self.fingerprint)

    # -- decoding --------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, grid: CodeGrid) -> Audio:
        meta = self._checked(grid)
        codes = torch.from_numpy(grid.codes.astype(np.int64))[None]
        return self._sound(self._wave(codes, meta)[:, : meta.n_samples], meta)

    def _wave(self, codes: Tensor, meta: AudioMeta) -> Tensor:
        """Samples (C, S) of codes (1, Q, F), at least as many as the meta says."""
        if not self.net.is_causal:
            return self.net.decode(codes)[0].t()
        state: State = {}
        parts = pieces(codes.shape[-1], self._frames_per_window)
        return torch.cat([self.net.decode(codes[..., a:b], state)[0] for a, b in parts]).t()

    def _sound(self, wave: Tensor, meta: AudioMeta) -> Audio:
        samples = wave.clamp(-1.0, 1.0).contiguous().numpy()
        return Audio(samples, self.config.sample_rate, source_rate=meta.source_rate)

    @torch.no_grad()
    def decode_stream(self, pieces: Iterable[CodeGrid]) -> Iterator[Audio]:
        """The sound of every piece, the first of them together until there are eight frames."""
        if not self.net.is_causal:
            yield self.decode(self.join(list(pieces)))
            return
        state: State = {}
        held: list[CodeGrid] = []
        for piece in pieces:
            held.append(piece)
            if state or sum(grid.shape[0] for grid in held) >= _LEAST_FRAMES:
                yield self._decode_next(held, state)
                held = []
        if held:
            yield self._decode_next(held, state)

    def _decode_next(self, held: list[CodeGrid], state: State) -> Audio:  # type: ignore[override]
        grid = self.join(held)
        meta = self._checked(grid)
        codes = torch.from_numpy(grid.codes.astype(np.int64))[None]
        parts = pieces(codes.shape[-1], self._frames_per_window)
        wave = torch.cat([self.net.decode(codes[..., a:b], state)[0] for a, b in parts]).t()
        return self._sound(wave[:, : meta.n_samples], meta)


def as_steps(wave: np.ndarray) -> Tensor:
    """Samples (C, S) as (1, S, C)."""
    return torch.from_numpy(np.ascontiguousarray(wave.T))[None]


__all__ = [
    "FixedAudioConfig", "FixedAudioNet", "FixedAudioTokenizer", "FixedResidual", "as_steps",
    "refuse_non_finite",
]  # fmt: skip
