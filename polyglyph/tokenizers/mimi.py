"""Mimi (Moshi, arXiv:2410.00037) with its published weights: 24 kHz speech at 12.5 frames a second.

A causal SEANet, a transformer on either side of the codes that sees 10 seconds back, and two
residual quantizers side by side: one semantic codebook, the rest acoustic. All of it carries a
stream's state. Knows nothing of files or keys.

Shapes: B batch, S samples, T steps (2 per frame), F frames, D latent width, Q codebooks.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polyglyph.tokenizers.fixed_audio import (
    FixedAudioConfig,
    FixedAudioTokenizer,
    FixedResidual,
)
from polyglyph.tokenizers.seanet_fixed import SeanetDecoder, SeanetEncoder, SeanetShape
from polyglyph.tokenizers.steps import State, StepConv


class MimiConfig(FixedAudioConfig):
    """A published Mimi. Samples per frame = latent_stride times the product of `ratios`.

    window: steps that attention sees, its own among them. theta: of the rotary positions."""

    architecture: Literal["mimi"] = "mimi"
    codebook_size: int = Field(2048, ge=2)
    d_code: PositiveInt = 256
    n_semantic: PositiveInt = 1
    width: PositiveInt = 64
    ratios: tuple[PositiveInt, ...] = Field((8, 6, 5, 4), min_length=1)
    n_units: PositiveInt = 1
    kernel: PositiveInt = 7
    last_kernel: PositiveInt = 3
    unit_kernel: PositiveInt = 3
    dilation_growth: PositiveInt = 2
    compress: PositiveInt = 2
    conv_skip: bool = False
    d_latent: PositiveInt = 512
    latent_stride: PositiveInt = 2
    n_layers: PositiveInt = 8
    n_heads: PositiveInt = 8
    d_ff: PositiveInt = 2048
    window: PositiveInt = 250
    theta: float = Field(10_000.0, gt=0)
    eps: float = Field(1e-5, gt=0)

    def shape(self) -> SeanetShape:
        """The convolutional net's."""
        names = ("width", "ratios", "n_units", "kernel", "last_kernel", "unit_kernel", "d_latent",
                 "dilation_growth", "compress", "conv_skip")  # fmt: skip
        return SeanetShape(
            n_channels=self.channels,
            n_lstm=0,
            mode="constant",
            **{name: getattr(self, name) for name in names},
        )


class Block(nn.Module):
    """Pre-norm attention and MLP over steps (B, T, D), each scaled per channel."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        d = config.d_latent
        self.n_heads, self.window = config.n_heads, config.window
        self.norm_attention = nn.LayerNorm(d, eps=config.eps)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.scale_attention = nn.Parameter(torch.zeros(d))
        self.norm_mlp = nn.LayerNorm(d, eps=config.eps)
        self.up = nn.Linear(d, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, d, bias=False)
        self.scale_mlp = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, state: State) -> Tensor:
        y = self._attention(self.norm_attention(x), cos, sin, state)
        x = torch.addcmul(x, self.scale_attention, self.out(y))
        y = self.down(F.gelu(self.up(self.norm_mlp(x))))
        return torch.addcmul(x, self.scale_mlp, y)

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, state: State) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # (B, N, T, K)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self in state:
            past_k, past_v = state[self]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        n = k.shape[2]
        kept = min(n, self.window - 1)
        state[self] = (k[:, :, n - kept :].clone(), v[:, :, n - kept :].clone())
        if n == t <= self.window:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            back = torch.arange(n - t, n)[:, None] - torch.arange(n)[None]
            mask = (back >= 0) & (back < self.window)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).reshape(b, t, d)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (B, N, T, K), first half against second; cos and sin (T, K)."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([-second, first], dim=-1), sin)


class Transformer(nn.Module):
    """Causal blocks over steps (B, T, D); a state makes the steps follow those before."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.d_head = config.d_latent // config.n_heads
        self.theta = config.theta
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))

    def forward(self, x: Tensor, state: State) -> Tensor:
        start = state.get(self, 0)
        state[self] = start + x.shape[1]
        powers = torch.arange(0, self.d_head, 2, dtype=torch.float32) / self.d_head
        steps = torch.arange(start, start + x.shape[1], dtype=torch.float32)
        angles = (steps[:, None] * (1.0 / self.theta**powers)).repeat(1, 2)  # (T, K)
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:
            x = block(x, cos, sin, state)
        return x


class SplitQuantizer(nn.Module):
    """Latents (B, F, D) ↔ codes (B, Q, F): semantic codebooks beside the acoustic ones, each group
    residual in a projection of its own."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.n_semantic = config.n_semantic
        counts = {"semantic": config.n_semantic,
                  "acoustic": config.n_codebooks - config.n_semantic}  # fmt: skip
        for name, count in counts.items():
            setattr(self, name, FixedResidual(count, config.codebook_size, config.d_code))
            into = nn.Linear(config.d_latent, config.d_code, bias=False)
            back = nn.Linear(config.d_code, config.d_latent, bias=False)
            setattr(self, f"{name}_in", into)
            setattr(self, f"{name}_out", back)

    def encode(self, z: Tensor, n_codebooks: int) -> Tensor:
        first = min(n_codebooks, self.n_semantic)
        codes = self.semantic.encode(self.semantic_in(z), first)
        if n_codebooks == first:
            return codes
        more = self.acoustic.encode(self.acoustic_in(z), n_codebooks - first)
        return torch.cat([codes, more], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        z = self.semantic_out(self.semantic.decode(codes[:, : self.n_semantic]))
        if codes.shape[1] > self.n_semantic:
            z += self.acoustic_out(self.acoustic.decode(codes[:, self.n_semantic :]))
        return z


class DepthwiseUp(nn.Module):
    """Transposed convolution of each channel by itself, kernel 2·stride, cut at the end."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, stride, channels))  # of a step, of the one before
        self.stride = stride

    def forward(self, x: Tensor, state: State) -> Tensor:
        """(B, F, D) to (B, F·stride, D)."""
        past = state.get(self, torch.zeros_like(x[:, :1]))
        state[self] = x[:, -1:].clone()
        before = torch.cat([past, x[:, :-1]], dim=1)
        y = torch.addcmul(x[:, :, None] * self.weight[0], before[:, :, None], self.weight[1])
        return y.flatten(1, 2)


class Mimi(nn.Module):
    """Samples (B, S, C) ↔ codes (B, Q, ⌈S / hop⌉)."""

    is_causal = True
    config_class = MimiConfig

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        shape, d, stride = config.shape(), config.d_latent, config.latent_stride
        self.hop = stride * math.prod(config.ratios)
        self.encoder = SeanetEncoder(shape)
        self.encoder_transformer = Transformer(config)
        self.downsample = StepConv(d, d, 2 * stride, stride, mode="replicate", bias=False)
        self.quantizer = SplitQuantizer(config)
        self.upsample = DepthwiseUp(d, stride)
        self.decoder_transformer = Transformer(config)
        self.decoder = SeanetDecoder(shape)

    def as_tokenizer(self, fingerprint: str) -> MimiTokenizer:
        return MimiTokenizer(self, fingerprint)

    @torch.no_grad()
    def encode(self, samples: Tensor, n_codebooks: int, state: State | None = None) -> Tensor:
        state = {} if state is None else state
        x = self.encoder_transformer(self.encoder(samples, state), state)
        return self.quantizer.encode(self.downsample(x, state), n_codebooks)

    @torch.no_grad()
    def decode(self, codes: Tensor, state: State | None = None) -> Tensor:
        state = {} if state is None else state
        x = self.upsample(self.quantizer.decode(codes), state)
        return self.decoder(self.decoder_transformer(x, state), state)


class MimiTokenizer(FixedAudioTokenizer):
    """Mimi behind the contract."""

    net: Mimi


__all__ = ["Mimi", "MimiConfig", "MimiTokenizer"]
