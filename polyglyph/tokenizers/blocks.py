"""Convolutional trunks of the image and video codecs.

Encoder and decoder follow Table 7 of Esser et al. (arXiv:2012.09841): residual blocks with
GroupNorm and swish, a middle with self-attention, strided downsampling padded at the right and
bottom, nearest-neighbour upsampling. The temporal blocks are causal in time. Knows nothing of
quantizers, ids or training.

Shapes: B batch, C channels, H W pixels or grid, F frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the most groups up to 32 that leave at least four channels each."""
    n_groups = max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return nn.GroupNorm(n_groups, channels, eps=1e-6)


class PositionNorm(nn.Module):
    """RMS norm over the channels of each position by itself: nothing crosses the picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...), pictures and clips alike."""
        shape = (-1,) + (1,) * (x.ndim - 2)
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x.dtype)
        weight, bias = self.weight.to(x.dtype).view(shape), self.bias.to(x.dtype).view(shape)
        return x * scale * weight + bias


class LocalBlock(nn.Module):
    """A residual block that looks at one position only."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.norm1 = PositionNorm(d_in)
        self.conv1 = nn.Conv2d(d_in, d_out, 1)
        self.norm2 = PositionNorm(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 1)
        self.shortcut = nn.Conv2d(d_in, d_out, 1) if d_in != d_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class ResidualBlock(nn.Module):
    """norm → swish → 3×3 → norm → swish → 3×3, with a 1×1 shortcut where the width changes."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(d_in)
        self.conv1 = nn.Conv2d(d_in, d_out, 3, padding=1)
        self.norm2 = group_norm(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, padding=1)
        self.shortcut = nn.Conv2d(d_in, d_out, 1) if d_in != d_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


# Cells a side that attend to one another. A grid of a photograph is cut into windows of that size:
# over 12 million pixels whole attention takes minutes, and training saw far smaller grids.
_WINDOW = 64


class SpatialAttention(nn.Module):
    """Single-head self-attention over the grid, scaled by C^-0.5 (2012.09841, Table 7); over
    windows of it where a side is longer than 64 cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        bands = self.qkv(self.norm(x)).split(_WINDOW, 2)
        rows = [torch.cat([_attend(tile) for tile in band.split(_WINDOW, 3)], 3) for band in bands]
        return x + self.out(torch.cat(rows, 2))


def _attend(qkv: Tensor) -> Tensor:
    """(B, 3C, h, w) → (B, C, h, w): every cell attends to all."""
    b, c3, h, w = qkv.shape
    q, k, v = qkv.reshape(b, 3, c3 // 3, h * w).transpose(2, 3).unbind(1)
    y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # (B, HW, C)
    return y.transpose(1, 2).reshape(b, c3 // 3, h, w)


class Middle(nn.Sequential):
    def __init__(self, channels: int, attention: bool) -> None:
        attend: nn.Module = SpatialAttention(channels) if attention else nn.Identity()
        super().__init__(
            ResidualBlock(channels, channels), attend, ResidualBlock(channels, channels)
        )


class Downsample(nn.Module):
    """3×3 stride 2 with one row and column of zeros at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder2d(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] → latents (B, width, H / s, W / s), s = patch · 2^(levels-1).

    patch > 1 folds patch × patch pixels into channels before the first convolution (as the
    wavelet stem of Cosmos does): the finest level, three quarters of the work, is then skipped.
    """

    def __init__(
        self,
        base: int,
        multipliers: tuple[int, ...],
        n_res_blocks: int,
        attention: bool,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = [base * m for m in multipliers]
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch),
            nn.Conv2d(3 * patch**2, widths[0], 3, padding=1),
        ]
        d = widths[0]
        for level, width in enumerate(widths):
            for _ in range(n_res_blocks):
                layers.append(ResidualBlock(d, width))
                d = width
            if level < len(widths) - 1:
                layers.append(Downsample(d))
        self.width = d
        self.stride = patch * 2 ** (len(widths) - 1)
        self.layers = nn.Sequential(*layers, Middle(d, attention), group_norm(d), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LocalEncoder2d(nn.Module):
    """As Encoder2d, but a latent sees its own stride × stride pixels and nothing else.

    GroupNorm and attention make every latent depend on the whole picture: 75 % of the codes of the
    built-in world's pictures are empty ground, and they took 632 values with 3.7 nats of entropy
    given their position (300 pictures), which a transformer must all predict. Looking one stride
    around left 1.1 nats. Here empty ground is one vector, so one code.
    """

    def __init__(
        self, base: int, multipliers: tuple[int, ...], n_res_blocks: int, patch: int = 1
    ) -> None:
        super().__init__()
        widths = [base * m for m in multipliers]
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch),
            nn.Conv2d(3 * patch**2, widths[0], 1),
        ]
        d, last = widths[0], len(widths) - 1
        for level, width in enumerate(widths):
            for _ in range(n_res_blocks):
                layers.append(LocalBlock(d, width))
                d = width
            if level < last:
                layers.append(nn.Conv2d(d, d, 2, stride=2))
        self.width = d
        self.stride = patch * 2**last
        self.layers = nn.Sequential(*layers, LocalBlock(d, d), PositionNorm(d), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder2d(nn.Module):
    """Latents (B, width, h, w) → pixels (B, 3, H, W); one residual block more per level."""

    def __init__(
        self,
        base: int,
        multipliers: tuple[int, ...],
        n_res_blocks: int,
        attention: bool,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = [base * m for m in multipliers]
        d = widths[-1]
        self.width = d
        layers: list[nn.Module] = [Middle(d, attention)]
        for level in reversed(range(len(widths))):
            for _ in range(n_res_blocks + 1):
                layers.append(ResidualBlock(d, widths[level]))
                d = widths[level]
            if level:
                layers.append(Upsample(d))
        self.layers = nn.Sequential(*layers, group_norm(d), nn.SiLU())
        self.conv_out = nn.Conv2d(d, 3 * patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.unfold(self.conv_out(self.layers(x)))


class CausalConv3d(nn.Module):
    """Convolution over (F, H, W) that sees no later frame: all temporal padding is in front.

    The padding repeats nothing but zeros, so a clip's first frames see the same zeros whether
    the clip is one frame or many long.
    """

    def __init__(self, d_in: int, d_out: int, kernel: tuple[int, int, int], stride_t: int = 1):
        super().__init__()
        kt, kh, kw = kernel
        self.front = kt - stride_t
        self.conv = nn.Conv3d(
            d_in, d_out, kernel, stride=(stride_t, 1, 1), padding=(0, kh // 2, kw // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 0, 0, 0, self.front, 0)))


class FrameNorm(nn.Module):
    """GroupNorm of every frame by itself: statistics over time would leak the future."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, f, h, w = x.shape
        y = self.norm(x.transpose(1, 2).reshape(b * f, c, h, w))
        return y.reshape(b, f, c, h, w).transpose(1, 2)


class TemporalResidual(nn.Module):
    """A causal residual block, zero at the start so that it begins as the identity. A local one
    looks at one frame and position only."""

    def __init__(self, channels: int, local: bool = False) -> None:
        super().__init__()
        norm = PositionNorm if local else FrameNorm
        kernel = (1 if local else 3, 1, 1)
        self.norm1 = norm(channels)
        self.conv1 = CausalConv3d(channels, channels, kernel)
        self.norm2 = norm(channels)
        self.conv2 = CausalConv3d(channels, channels, kernel)
        nn.init.zeros_(self.conv2.conv.weight)
        assert self.conv2.conv.bias is not None
        nn.init.zeros_(self.conv2.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class TemporalDown(nn.Module):
    """Halves the frames: frames 2i and 2i + 1 (and, unless local, two before) give frame i."""

    def __init__(self, channels: int, local: bool = False) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (2 if local else 4, 1, 1), stride_t=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class TemporalUp(nn.Module):
    """Doubles the frames: every latent frame gives two by two sets of weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 2 * channels, (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)  # (B, 2C, F, H, W)
        b, c2, f, h, w = y.shape
        y = y.reshape(b, 2, c2 // 2, f, h, w).permute(0, 2, 3, 1, 4, 5)  # (B, C, F, 2, H, W)
        return y.reshape(b, c2 // 2, 2 * f, h, w)


__all__ = [
    "CausalConv3d",
    "Decoder2d",
    "Downsample",
    "Encoder2d",
    "FrameNorm",
    "LocalBlock",
    "LocalEncoder2d",
    "Middle",
    "PositionNorm",
    "ResidualBlock",
    "SpatialAttention",
    "TemporalDown",
    "TemporalResidual",
    "TemporalUp",
    "Upsample",
    "group_norm",
]
