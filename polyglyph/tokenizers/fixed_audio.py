"""What the published audio codecs share: fixed residual codebooks, and the contract around a net.

EnCodec, DAC and Mimi come with weights that nobody trains here: their nets take samples (B, S, C)
to codes (B, Q, F) and back. Sounds keep their true length (no zeros are added where the publisher
adds none) and go through in windows of bounded memory, streams too: a causal net hands its state
on, another's windows overlap by what it looks ahead and back. A net that norms a sound as a whole
sees it whole. Knows nothing of files or of the publishers' keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from polyglyph.tokenizers.base import AudioMeta, CodeGrid, SpanSpec, as_medium, check_follows
from polyglyph.tokenizers.seanet_fixed import pieces
from polyglyph.tokenizers.steps import State
from polyglyph.tokenizers.windows import Push

_WINDOW_S = 16  # seconds of sound in a window: 0.2 GiB of EnCodec at 24 kHz
_LEAST_FRAMES = 8  # of the first and last window of a stream: their ends are reflected
_NO_CHUNK = "a stream of sound needs at least one chunk, got none"


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

    def encoding(self, n_codebooks: int) -> Push | None:
        """Of a net that isn't causal: parts of a sound (B, s, C) to codes (B, n_codebooks, f).
        None where it has to see the whole."""

    def decoding(self) -> Push | None:
        """Parts of codes (B, Q, f) to sound (B, s, C)."""

    def eval(self) -> Any: ...


@dataclass(frozen=True)
class Encoded:
    """A part of a sound's codes."""

    codes: Tensor  # (1, Q, f)
    n_samples: int  # that it stands for, before the sound's end is cut off
    levels: tuple[float, ...] = ()


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
        return self._grid(codes, wave.shape[1], sound, **more)

    def encode_batch(
        self, media: Sequence[Any], *, n_codebooks: int | None = None
    ) -> list[CodeGrid]:
        return [self.encode(item, n_codebooks=n_codebooks) for item in media]

    def _codes(self, wave: np.ndarray, n: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Codes (Q, F) of a sound (C, S), and what the meta holds beside its length."""
        if not self.net.is_causal:
            course = self._encoding(n)
            if course is None:
                return self.net.encode(as_steps(wave), n)[0].numpy(), {}
            made = list(course(as_steps(wave), True))
            codes = torch.cat([part.codes[0] for part in made], dim=-1).numpy()
            return codes, {"levels": tuple(level for part in made for level in part.levels)}
        state: State = {}
        parts = pieces(wave.shape[1], self._frames_per_window * self.net.hop)
        made = [self.net.encode(as_steps(wave[:, a:b]), n, state)[0] for a, b in parts]
        return torch.cat(made, dim=-1).numpy(), {}

    def _encoding(self, n: int) -> Callable[[Tensor, bool], Iterator[Encoded]] | None:
        """Of a net that isn't causal: parts of a sound (1, s, C) to what is sure by then."""
        push = self.net.encoding(n)
        if push is None:
            return None
        return lambda samples, is_last: (
            Encoded(codes, codes.shape[-1] * self.net.hop) for codes in push(samples, is_last)
        )

    @torch.no_grad()
    def encode_stream(
        self, chunks: Iterable[Any], *, n_codebooks: int | None = None
    ) -> Iterator[CodeGrid]:
        """Whole frames: of a causal net eight behind what came in, of another a window at a time;
        one that sees the sound whole waits for the end."""
        n = self.chosen_codebooks(n_codebooks)
        if not self.net.is_causal:
            yield from self._stream_windows(chunks, n)
            return
        waiting = np.zeros((self.config.channels, 0), np.float32)
        state: State = {}
        sound, hop, is_first = None, self.net.hop, True
        for sound, new, is_last in self._converted(chunks):
            waiting = np.concatenate([waiting, new], axis=1)
            if is_last:
                continue
            ready = (waiting.shape[1] // hop - _LEAST_FRAMES) * hop
            if ready >= _LEAST_FRAMES * hop:
                yield from self._next(waiting[:, :ready], n, state, sound)
                waiting, is_first = waiting[:, ready:].copy(), False
        if sound is None:
            raise InputError(_NO_CHUNK)
        if is_first and not waiting.shape[1]:
            waiting = np.zeros((self.config.channels, 1), np.float32)
        if waiting.shape[1]:
            yield from self._next(waiting, n, state, sound)

    def _stream_windows(self, chunks: Iterable[Any], n: int) -> Iterator[CodeGrid]:
        course = self._encoding(n)
        waiting = np.zeros((self.config.channels, 0), np.float32)  # for a net that sees the whole
        sound, n_in, n_out = None, 0, 0
        for sound, new, is_last in self._converted(chunks):
            if is_last and not n_in + new.shape[1]:
                new = np.zeros((self.config.channels, 1), np.float32)
            n_in += new.shape[1]
            if course is None:
                waiting = np.concatenate([waiting, new], axis=1)
                continue
            for part in course(as_steps(new), is_last):
                n_samples = min(part.n_samples, n_in - n_out)
                n_out += n_samples
                yield self._grid(part.codes[0].numpy(), n_samples, sound, levels=part.levels)
        if sound is None:
            raise InputError(_NO_CHUNK)
        if course is None:
            codes, more = self._codes(waiting, n)
            yield self._grid(codes, n_in, sound, **more)

    def _grid(self, codes: np.ndarray, n_samples: int, sound: Audio, **more: Any) -> CodeGrid:
        meta = replace(self._meta(n_samples, sound), **more)
        return CodeGrid(self.modality, codes.astype(np.int32), meta, self.fingerprint)

    def _next(self, wave: np.ndarray, n: int, state: State, sound: Audio) -> Iterator[CodeGrid]:
        for a, b in pieces(wave.shape[1], self._frames_per_window * self.net.hop):
            codes = self.net.encode(as_steps(wave[:, a:b]), n, state)[0].numpy()
            yield self._grid(codes, b - a, sound)

    # -- decoding --------------------------------------------------------------------------------

    def _waves(self, codes: np.ndarray, meta: AudioMeta) -> Iterator[np.ndarray]:
        whole = torch.from_numpy(codes.astype(np.int64))[None]
        for wave in self._decoded(whole, meta):
            yield wave[0].t().clamp(-1.0, 1.0).numpy()

    def _decoded(self, codes: Tensor, meta: AudioMeta) -> Iterator[Tensor]:
        """Samples (1, s, C), one after the other, of codes (1, Q, F)."""
        if self.net.is_causal:
            state: State = {}
            for a, b in pieces(codes.shape[-1], self._frames_per_window):
                yield self.net.decode(codes[..., a:b], state)
            return
        course = self._decoding()
        if course is not None:
            yield from course(codes, meta, True)
            return
        wave = self.net.decode(codes)
        yield wave * meta.levels[0] if meta.levels else wave

    def _decoding(self) -> Callable[[Tensor, AudioMeta, bool], Iterator[Tensor]] | None:
        """Of a net that isn't causal: parts of codes (1, Q, f), their meta, and whether they are
        the last, to samples (1, s, C)."""
        push = self.net.decoding()
        return None if push is None else lambda codes, _, is_last: push(codes, is_last)

    def _sound(self, wave: Tensor, meta: AudioMeta) -> Audio:
        samples = wave.clamp(-1.0, 1.0).contiguous().numpy()
        return Audio(samples, self.config.sample_rate, source_rate=meta.source_rate)

    @torch.no_grad()
    def decode_stream(self, pieces: Iterable[CodeGrid]) -> Iterator[Audio]:
        """Of a causal net the sound of every piece, the first of them together until there are
        eight frames; of another a window at a time, or at the end where it sees the whole."""
        if not self.net.is_causal:
            yield from self._windows_of_stream(pieces)
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

    def _windows_of_stream(self, grids: Iterable[CodeGrid]) -> Iterator[Audio]:
        course = self._decoding()
        if course is None:
            yield self.decode(self.join(list(grids)))
            return
        over, due, first = torch.zeros(self.config.channels, 0), 0, None
        for grid, is_last in _with_last(grids):
            meta = self._checked(grid)
            first = first or grid
            check_follows(first, grid)
            due += meta.n_samples
            codes = torch.from_numpy(grid.codes.astype(np.int64))[None]
            for wave in course(codes, meta, is_last):
                over = torch.cat([over, wave[0].t()], dim=1)
                ready, over = over[:, :due], over[:, due:].clone()
                due -= ready.shape[1]
                if ready.shape[1]:
                    yield self._sound(ready, meta)
            if is_last and due:  # the net gives a little less than its frames
                yield self._sound(torch.zeros(self.config.channels, due), meta)

    def join(self, grids: Sequence[CodeGrid]) -> CodeGrid:
        whole = super().join(grids)
        metas = [grid.meta for grid in (whole, *grids) if isinstance(grid.meta, AudioMeta)]
        levels = tuple(level for meta in metas[1:] for level in meta.levels)
        return replace(whole, meta=replace(metas[0], levels=levels))


def _with_last(items: Iterable[CodeGrid]) -> Iterator[tuple[CodeGrid, bool]]:
    """Each item, and whether it is the last. InputError for none."""
    held = None
    for item in items:
        if held is not None:
            yield held, False
        held = item
    if held is None:
        raise InputError("a stream of codes needs at least one piece, got none")
    yield held, True


def as_steps(wave: np.ndarray) -> Tensor:
    """Samples (C, S) as (1, S, C)."""
    return torch.from_numpy(np.ascontiguousarray(wave.T))[None]


__all__ = [
    "Encoded", "FixedAudioConfig", "FixedAudioNet", "FixedAudioTokenizer",
    "FixedResidual", "as_steps", "refuse_non_finite",
]  # fmt: skip
