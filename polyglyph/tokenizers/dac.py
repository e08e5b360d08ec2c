"""DAC, the Descript Audio Codec (arXiv:2306.06546), with its published weights.

Snake convolutions that look both ways around residual codebooks of low width, searched by
direction. Sounds are filled up with zeros to whole frames and go through in exact stretches of
bounded memory. Knows nothing of files or keys.

Shapes: B batch, S samples, F frames, D latent width, Q codebooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polyglyph.kernels.nearest_code import nearest_code
from polyglyph.tokenizers.fixed_audio import (
    FixedAudioConfig,
    FixedAudioTokenizer,
    refuse_non_finite,
)
from polyglyph.tokenizers.steps import State
from polyglyph.tokenizers.stretches import (
    EvenConv,
    EvenConvTranspose,
    EvenUnit,
    Layer,
    Stretch,
    needed,
    run,
)
from polyglyph.tokenizers.windows import Push, Windows

_DILATIONS = (1, 3, 9)
# Elements (steps x channels) of a stretch, and up to which width layers run in them: 1 MB of fp32.
_STRETCH = 260_000
_WIDEST_IN_STRETCHES = 256
_WINDOW_S = 20  # seconds that go through all layers at once: 0.5 GiB


class DacConfig(FixedAudioConfig):
    """A published DAC. Samples per frame = the product of `strides`, the encoder's order."""

    architecture: Literal["dac"] = "dac"
    channels: Literal[1] = 1  # type: ignore[assignment]
    strides: tuple[PositiveInt, ...] = Field((2, 4, 5, 8), min_length=1)
    width: PositiveInt = 64
    decoder_width: PositiveInt = 1536
    d_latent: PositiveInt = 1024
    d_code: PositiveInt = 8


class DacQuantizer(nn.Module):
    """Latents (B, F, D) ↔ codes (B, Q, F): each codebook in a low-dimensional projection."""

    codebook: Tensor

    def __init__(self, config: DacConfig) -> None:
        super().__init__()
        q, d, d_code = config.n_codebooks, config.d_latent, config.d_code
        self.register_buffer("codebook", torch.zeros(q, config.codebook_size, d_code))
        self.in_weight = nn.Parameter(torch.zeros(q, d_code, d))
        self.in_bias = nn.Parameter(torch.zeros(q, d_code))
        self.out_weight = nn.Parameter(torch.zeros(q, d, d_code))
        self.out_bias = nn.Parameter(torch.zeros(q, d))

    def encode(self, z: Tensor, n_codebooks: int) -> Tensor:
        refuse_non_finite(z)
        residual = z.reshape(-1, z.shape[-1]).clone()
        codes = []
        for q in range(n_codebooks):
            low = torch.addmm(self.in_bias[q], residual, self.in_weight[q].t())
            codes.append(nearest_code(low, self.codebook[q], metric="cosine"))
            residual.addmm_(self.codebook[q][codes[-1]], self.out_weight[q].t(), alpha=-1)
            residual -= self.out_bias[q]
        return torch.stack([code.view(z.shape[:2]) for code in codes], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        b, n, f = codes.shape
        z = self.out_bias[:n].sum(0).expand(b * f, -1).clone()
        for q in range(n):
            z.addmm_(self.codebook[q][codes[:, q].reshape(-1)], self.out_weight[q].t())
        return z.view(b, f, -1)


class Dac(nn.Module):
    """Samples (B, S, 1) ↔ codes (B, Q, ⌈S / hop⌉). Odd strides make the decoder's sound a few
    samples shorter than its frames."""

    is_causal = False
    config_class = DacConfig

    def __init__(self, config: DacConfig) -> None:
        super().__init__()
        self.config = config
        self.hop = math.prod(config.strides)
        self.encoder = nn.ModuleList(_encoder(config))
        self.decoder = nn.ModuleList(_decoder(config))
        self.quantizer = DacQuantizer(config)

    def as_tokenizer(self, fingerprint: str) -> DacTokenizer:
        return DacTokenizer(self, fingerprint)

    @torch.no_grad()
    def encode(self, samples: Tensor, n_codebooks: int, state: State | None = None) -> Tensor:
        assert state is None
        return torch.cat(list(self.encoding(n_codebooks)(samples, True)), dim=-1)

    @torch.no_grad()
    def decode(self, codes: Tensor, state: State | None = None) -> Tensor:
        assert state is None
        return torch.cat(list(self.decoding()(codes, True)), dim=1)

    def encoding(self, n_codebooks: int) -> Push:
        layers: list[Layer] = list(self.encoder)  # type: ignore[arg-type]

        def compute(piece: Stretch, start: int, end: int) -> Tensor:
            z = self._through(layers, piece, True).part(start, end).x
            return self.quantizer.encode(z, n_codebooks)

        windows = self._windows(layers, _WINDOW_S * self.config.sample_rate // self.hop, compute)
        n = 0

        def push(samples: Tensor, is_last: bool) -> Iterator[Tensor]:
            nonlocal n
            n += samples.shape[1]
            fill = -n % self.hop if is_last else 0
            filled = torch.nn.functional.pad(samples, (0, 0, 0, fill)) if fill else samples
            return windows.push(filled, is_last)

        return push

    def decoding(self) -> Push:
        layers: list[Layer] = list(self.decoder)  # type: ignore[arg-type]

        def compute(piece: Stretch, start: int, end: int) -> Tensor:
            z = self.quantizer.decode(piece.x.transpose(1, 2))
            latents = Stretch(z, piece.start, piece.total)
            return self._through(layers, latents, False).part(start, end).x.tanh()

        windows = self._windows(layers, _WINDOW_S * self.config.sample_rate, compute)
        return lambda codes, is_last: windows.push(codes.transpose(1, 2), is_last)

    @staticmethod
    def _windows(
        layers: list[Layer], size: int, compute: Callable[[Stretch, int, int], Tensor]
    ) -> Windows:
        def total(n: int) -> int:
            for layer in layers:
                n = layer.total(n)
            return n

        return Windows(size, lambda start, end, n: needed(layers, n, start, end), total, compute)

    def _through(self, layers: list[Layer], piece: Stretch, encoding: bool) -> Stretch:
        """Narrow layers of high rate in stretches, the others in one go."""
        wide = [layer.weight.shape[1] > _WIDEST_IN_STRETCHES for layer in layers]
        n = wide.index(True) if True in wide else len(layers)
        if encoding:
            size = max(1, _STRETCH // self.config.width // self._rate(layers[:n]))
            return run(layers[n:], run(layers[:n], piece, size), 1 << 60)
        n = len(layers) - wide[::-1].index(True) if True in wide else 0
        size = max(1, _STRETCH * self.hop // self.config.decoder_width)
        return run(layers[n:], run(layers[:n], piece, 1 << 60), size)

    @staticmethod
    def _rate(layers: list[Layer]) -> int:
        """Inputs per output."""
        return math.prod(layer.stride for layer in layers if isinstance(layer, EvenConv))


def _encoder(config: DacConfig) -> list[Layer]:
    layers: list[Layer] = [EvenConv(1, config.width, 7, snake=False)]
    width = config.width
    for stride in config.strides:
        layers += [EvenUnit(width, dilation) for dilation in _DILATIONS]
        layers += [EvenConv(width, 2 * width, 2 * stride, stride, padding=-(-stride // 2))]
        width *= 2
    return [*layers, EvenConv(width, config.d_latent, 3)]


def _decoder(config: DacConfig) -> list[Layer]:
    width = config.decoder_width
    layers: list[Layer] = [EvenConv(config.d_latent, width, 7, snake=False)]
    for stride in reversed(config.strides):
        layers += [EvenConvTranspose(width, width // 2, stride, -(-stride // 2))]
        width //= 2
        layers += [EvenUnit(width, dilation) for dilation in _DILATIONS]
    return [*layers, EvenConv(width, 1, 7)]


class DacTokenizer(FixedAudioTokenizer):
    """DAC behind the contract."""

    net: Dac


__all__ = ["Dac", "DacConfig", "DacQuantizer", "DacTokenizer"]
