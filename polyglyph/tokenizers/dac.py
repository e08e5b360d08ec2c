"""DAC, the Descript Audio Codec (arXiv:2306.06546), with its published weights.

Snake convolutions that look both ways around residual codebooks of low width, searched by
direction. Sounds are filled up with zeros to whole frames and go through in exact stretches of
bounded memory. Knows nothing of files or keys.

Shapes: B batch, S samples, F frames, D latent width, Q codebooks.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polyglyph.kernels.nearest_code import nearest_code
from polyglyph.tokenizers.base import AudioMeta
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
    """Samples (B, S, 1), S whole frames, ↔ codes (B, Q, S / hop)."""

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
        assert state is None and samples.shape[1] % self.hop == 0
        codes = [self.quantizer.encode(z, n_codebooks) for z in self._windows(samples, True)]
        return torch.cat(codes, dim=-1)

    @torch.no_grad()
    def decode(self, codes: Tensor, state: State | None = None) -> Tensor:
        assert state is None
        z = self.quantizer.decode(codes)
        return torch.cat([wave.tanh_() for wave in self._windows(z, False)], dim=1)

    def _windows(self, x: Tensor, encoding: bool) -> list[Tensor]:
        """The layers' whole output, in windows."""
        layers: list[Layer] = list(self.encoder if encoding else self.decoder)  # type: ignore
        total = x.shape[1]
        for layer in layers:
            total = layer.total(total)
        size = _WINDOW_S * self.config.sample_rate // (self.hop if encoding else 1)
        whole = Stretch(x, 0, x.shape[1])
        made = []
        for start in range(0, total, size):
            end = min(start + size, total)
            piece = whole.part(*needed(layers, x.shape[1], start, end))
            made.append(self._through(layers, piece, encoding).part(start, end).x)
        return made

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

    def _codes(self, wave: Any, n: int) -> tuple[Any, dict[str, Any]]:
        filled = torch.nn.functional.pad(torch.from_numpy(wave), (0, -wave.shape[1] % self.net.hop))
        return self.net.encode(filled.t()[None], n)[0].numpy(), {}

    def _wave(self, codes: Tensor, meta: AudioMeta) -> Tensor:
        # Odd strides make the decoder's sound a few samples shorter than its frames.
        wave = self.net.decode(codes)[0].t()
        return torch.nn.functional.pad(wave, (0, max(0, meta.n_samples - wave.shape[1])))


__all__ = ["Dac", "DacConfig", "DacQuantizer", "DacTokenizer"]
