"""The net of Emu3's VisionVQ (2409.18869): a picture and video codec in one.

A 2-D trunk per frame, causal temporal layers on its few-channel latents, and MoVQ's decoder. Four
frames are one code; a still picture stands for four equal ones. The trunk runs once per frame that
is there and once per frame that is wanted, where the publishers' code runs it four times for a
picture: what is repeated is the latent, so the codes are the same. Its batch norms are running
statistics of training, part of the weights. Knows nothing of files or keys.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from polyglyph.tokenizers.blocks import CausalConv3d, Decoder2d, Encoder2d
from polyglyph.tokenizers.video import VideoCodec
from polyglyph.tokenizers.vqgan import FixedCodebook, VqganConfig, channels_last, trunk_style

# Channels × pixels that one forward of the trunk may hold at the finest level: 256 MB of fp32.
_ELEMENTS_PER_BATCH = 1 << 26


class VisionVqConfig(VqganConfig):
    """n_temporal_levels: halvings of the frame count. fps: of clips made from generated codes.

    modality: "image" for stills, "video" for clips; the weights are the same.
    """

    architecture: str = "visionvq"
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    base: int = Field(256, ge=1)
    z_channels: int = Field(4, ge=1)
    decoder: Literal["plain", "movq", "none"] = "movq"
    n_temporal_levels: int = Field(2, ge=1)
    fps: float = Field(8.0, gt=0)


class RunningNorm(nn.Module):
    """Batch norm by its running statistics: a scale and a shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, eps=1e-5)  # type: ignore[arg-type]


class TimeResidual(nn.Module):
    """norm → swish → 3×3×3, twice, causal in time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = RunningNorm(channels)
        self.conv1 = CausalConv3d(channels, channels, (3, 3, 3))
        self.norm2 = RunningNorm(channels)
        self.conv2 = CausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class TimeDown(CausalConv3d):
    """Halves the frames, then swish."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (4, 3, 3), stride_t=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class TimeUp(CausalConv3d):
    """Repeats every frame, convolves, then swish."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x.repeat_interleave(2, 2)))


class VisionVq(VideoCodec):
    """Pixels (B, F, 3, H, W) in [-1, 1] ↔ codes (B, 1, F/t, H/s, W/s), and pictures
    (B, 3, H, W) ↔ (B, 1, H/s, W/s)."""

    config_class = VisionVqConfig

    def __init__(self, config: VisionVqConfig) -> None:
        nn.Module.__init__(self)  # another net behind the windows of VideoCodec
        self.config = config  # type: ignore[assignment]
        trunk = (config.base, config.multipliers, config.n_res_blocks, True)
        style, z, d = trunk_style(config), config.z_channels, config.quantizer.d_code
        levels, blocks = range(config.n_temporal_levels), range(config.n_res_blocks)
        self.encoder = Encoder2d(*trunk, style=style)
        self.stride, self.stride_t, self.lead = self.encoder.stride, 2 ** len(levels), 0
        self.conv_out = nn.Conv2d(self.encoder.width, z, 3, padding=1)
        self.temporal_encoder = nn.Sequential(
            *[TimeDown(z) for _ in levels],
            *[TimeResidual(z) for _ in blocks],
            CausalConv3d(z, d, (3, 1, 1)),
        )
        self.quantizer = FixedCodebook(config.quantizer)  # type: ignore[assignment]
        self.post_quant_conv = CausalConv3d(d, z, (3, 1, 1))
        self.temporal_decoder = nn.Sequential(
            *[TimeResidual(z) for _ in blocks], *[TimeUp(z) for _ in levels]
        )
        self.conv_in = nn.Conv2d(z, self.encoder.width, 3, padding=1)
        self.decoder = Decoder2d(*trunk, style=style)
        channels_last(self)

    @property
    def n_past(self) -> int:
        # Two for the convolution at the codes, four per residual block, less than two for all
        # the halvings or doublings together.
        return 4 + 4 * self.config.n_res_blocks

    def _n_frames(self, n_pixels: int) -> int:
        return max(1, _ELEMENTS_PER_BATCH // (self.config.base * n_pixels))

    def trunk(self, pixels: Tensor) -> Tensor:
        """Frame by frame: (B, F, 3, H, W) → (B, z, F, h, w)."""
        b, f = pixels.shape[:2]
        frames = pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        parts = frames.split(self._n_frames(frames.shape[-1] * frames.shape[-2]))
        z = torch.cat([self.conv_out(self.encoder(part)) for part in parts])
        return z.unflatten(0, (b, f)).transpose(1, 2)

    def frames(
        self, z: Tensor, keep: Tensor | None = None, first: int = 0, stop: int | None = None
    ) -> Tensor:
        """Quantized (B, d, F/t, h, w) → pixels (B, F, 3, H, W) of decoded frames `first` to `stop`.

        The temporal layers see the latents and, as if they were more of the batch, the codes that
        condition the decoder's norms."""
        assert keep is None, "published codecs are not trained"
        both = self.temporal_decoder(torch.cat([self.post_quant_conv(z), z]))
        b, f = len(z), both[:, :, first:stop].shape[2]
        both = both.transpose(1, 2)[:, first:stop].flatten(0, 1)
        both = both.contiguous(memory_format=torch.channels_last)
        n = self._n_frames(both.shape[-1] * both.shape[-2] * self.stride**2)
        pixels = torch.cat(
            [
                self.decoder(self.conv_in(h), zq)
                for h, zq in zip(both[: b * f].split(n), both[b * f :].split(n), strict=True)
            ]
        )
        return pixels.unflatten(0, (b, f))

    @torch.no_grad()
    def encode(self, pixels: Tensor, n_codebooks: int | None = None) -> Tensor:
        if pixels.ndim == 4:
            return super().encode(pixels[:, None])[:, :, 0]
        return super().encode(pixels)

    @torch.no_grad()
    def decode(self, codes: Tensor, first: int | None = None, stop: int | None = None) -> Tensor:
        if codes.ndim == 4:
            return super().decode(codes[:, :, None], 0, 1)[:, 0]
        return super().decode(codes, first, stop)


__all__ = ["VisionVq", "VisionVqConfig"]
