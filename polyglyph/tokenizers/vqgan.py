"""The nets of published image codecs: trunks of Table 7 (2012.09841) around a fixed codebook.

One net, by configuration, is taming's VQGAN (with VQ or Gumbel codes) and its latent-diffusion
relatives, LlamaGen's and Janus's VQ, Chameleon's VQ and SBER's MoVQ. It is for encoding and
decoding: published codes are never restarted, pruned or re-ordered, since the transformer that
goes with them would no longer fit. Knows nothing of files or of the publishers' keys.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polyglyph.config import Config
from polyglyph.errors import InputError
from polyglyph.kernels.nearest_code import CHUNK_ELEMENTS, nearest_code
from polyglyph.tokenizers.blocks import Decoder2d, Encoder2d, SpatialNorm, TrunkStyle


class CodebookConfig(Config):
    """How a published codec chooses codes.

    kind: "euclidean" the nearest row; "cosine" the row of nearest direction, emitted with length
    one (LlamaGen); "logits" the largest score of a linear layer (Gumbel, without its noise).
    """

    kind: Literal["euclidean", "cosine", "logits"] = "euclidean"
    codebook_size: int = Field(ge=2)
    d_code: int = Field(ge=1)
    n_codebooks: Literal[1] = 1


class VqganConfig(Config):
    """A published image codec. Stride = 2^(levels - 1).

    attention_levels: levels (0 the finest) with attention after every block; the middle always has
    it. n_groups: of every GroupNorm. decoder: "plain"; "movq" with spatial norms, of which
    `norm_conv` says whether they convolve the condition; "none" for an encoder without its half.
    """

    architecture: str = "vqgan"
    modality: str = "image"
    span: str = "image"
    base: int = Field(128, ge=1)
    multipliers: tuple[PositiveInt, ...] = Field((1, 1, 2, 2, 4), min_length=1)
    n_res_blocks: int = Field(2, ge=1)
    attention_levels: tuple[int, ...] = ()
    z_channels: int = Field(256, ge=1)
    n_groups: int = Field(32, ge=1)
    decoder: Literal["plain", "movq", "none"] = "plain"
    norm_conv: bool = False
    quantizer: CodebookConfig


class FixedCodebook(nn.Module):
    """Vectors (B, N, D) ↔ codes (B, N, 1) by a table that no training touches."""

    codebook: Tensor

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        shape = (1, config.codebook_size, config.d_code)
        self.register_buffer("codebook", torch.zeros(shape))
        self.score = (
            nn.Linear(config.d_code, config.codebook_size) if config.kind == "logits" else None
        )

    @torch.no_grad()
    def encode(self, z: Tensor, n_codebooks: int | None = None) -> Tensor:
        x = z.reshape(-1, z.shape[-1])
        if self.score is None:
            metric = "cosine" if self.config.kind == "cosine" else "euclidean"
            codes = nearest_code(x, self.codebook[0], metric=metric)
        else:
            rows = max(1, CHUNK_ELEMENTS // self.config.codebook_size)
            codes = torch.cat([self.score(part).argmax(-1) for part in x.split(rows)])
        return codes.reshape(*z.shape[:2], 1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        rows = self.codebook[0][codes[..., 0]]
        return F.normalize(rows, dim=-1) if self.config.kind == "cosine" else rows


def trunk_style(config: VqganConfig) -> TrunkStyle:
    """Norms and attention of the published trunks."""

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(config.n_groups, channels, eps=1e-6)

    def spatial(channels: int) -> nn.Module:
        return SpatialNorm(channels, config.quantizer.d_code, norm, config.norm_conv)

    decoder_norm = spatial if config.decoder == "movq" else norm
    return TrunkStyle(config.attention_levels, norm, decoder_norm, whole=True)


def channels_last(net: nn.Module) -> None:
    """Lays out the 2-D convolutions' weights so that channels are the last axis in memory: they
    are faster so on a CPU, and a spatial norm's rows are whole vectors."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Vqgan(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] ↔ codes (B, 1, H/s, W/s)."""

    config_class = VqganConfig

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        trunk = (config.base, config.multipliers, config.n_res_blocks, True)
        style, z, d = trunk_style(config), config.z_channels, config.quantizer.d_code
        self.encoder = Encoder2d(*trunk, style=style)
        self.stride = self.encoder.stride
        self.conv_out = nn.Conv2d(self.encoder.width, z, 3, padding=1)
        self.quant_conv = nn.Conv2d(z, d, 1)
        self.quantizer = FixedCodebook(config.quantizer)
        if config.decoder != "none":
            self.post_quant_conv = nn.Conv2d(d, z, 1)
            self.conv_in = nn.Conv2d(z, self.encoder.width, 3, padding=1)
            self.decoder = Decoder2d(*trunk, style=style)
        channels_last(self)

    def latents(self, pixels: Tensor) -> Tensor:
        """What is quantized: (B, d, H/s, W/s)."""
        pixels = pixels.to(self.conv_out.weight.device, memory_format=torch.channels_last)
        return self.quant_conv(self.conv_out(self.encoder(pixels)))

    @torch.no_grad()
    def encode(self, pixels: Tensor, n_codebooks: int | None = None) -> Tensor:
        """Codes (B, 1, H/s, W/s) of the one codebook; H and W are whole strides."""
        z = self.latents(pixels)
        b, _, h, w = z.shape
        return self.quantizer.encode(z.flatten(2).transpose(1, 2)).reshape(b, 1, h, w)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), clamped. InputError where the checkpoint came without a decoder."""
        if self.config.decoder == "none":
            raise InputError(
                "this codec came without a decoder: its checkpoint held the encoder's half only; "
                "import the publisher's original file to decode"
            )
        b, _, h, w = codes.shape
        zq = self.quantizer.decode(codes.to(self.conv_out.weight.device).reshape(b, h * w, 1))
        zq = zq.transpose(1, 2).reshape(b, -1, h, w).contiguous(memory_format=torch.channels_last)
        condition = zq if self.config.decoder == "movq" else None
        return self.decoder(self.conv_in(self.post_quant_conv(zq)), condition).clamp(-1, 1)


__all__ = [
    "CodebookConfig",
    "FixedCodebook",
    "Vqgan",
    "VqganConfig",
    "channels_last",
    "trunk_style",
]
