"""Convolutional trunks of the image and video codecs.

Encoder and decoder follow Table 7 of Esser et al. (arXiv:2012.09841): residual blocks with
GroupNorm and swish, a middle with self-attention, strided downsampling padded at the right and
bottom, nearest-neighbour upsampling. The temporal blocks are causal in time. Knows nothing of
quantizers, ids or training.

Shapes: B batch, C channels, H W pixels or grid, F frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.tokenizers.convolution import conv3x3, upsampled_conv3x3


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the most groups up to 32 that leave at least four channels each."""
    n_groups = max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return nn.GroupNorm(n_groups, channels, eps=1e-6)


Norm = Callable[[int], nn.Module]  # width → a norm of it


class SpatialNorm(nn.Module):
    """MoVQ's norm (2209.09002): GroupNorm(x) · scale(zq) + shift(zq), so that every code says at
    its own place how bright and how contrasted the features become.

    norm: of x. conv: a 3×3 convolution over zq, at the size of x, before scale and shift.
    """

    def __init__(
        self, channels: int, d_condition: int, norm: Norm = group_norm, conv: bool = False
    ) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.conv = nn.Conv2d(d_condition, d_condition, 3, padding=1) if conv else None
        self.scale = nn.Conv2d(d_condition, channels, 1)
        self.shift = nn.Conv2d(d_condition, channels, 1)

    def forward(self, x: Tensor, zq: Tensor) -> Tensor:
        """x (B, C, n·h, n·w), zq (B, d_condition, h, w)."""
        b, c, height, width = x.shape
        n = height // zq.shape[2]
        if self.conv is not None:
            zq, n = self.conv(_enlarged(zq, n)), 1
        # 1×1 convolutions commute with repeating cells: n² times less work on the small grid.
        scale, shift = (
            self.scale(zq)[:, :, :, None, :, None],
            self.shift(zq)[:, :, :, None, :, None],
        )
        cells = self.norm(x).unflatten(3, (width // n, n)).unflatten(2, (height // n, n))
        out = None if torch.is_grad_enabled() else cells
        return torch.addcmul(shift, cells, scale, out=out).reshape(b, c, height, width)


def _enlarged(x: Tensor, n: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(n), mode="nearest") if n > 1 else x


def swish(fresh: Tensor) -> Tensor:
    """x · sigmoid(x), in place where no gradient asks for what was there: at full size the memory
    of one more tensor costs as much time as the function."""
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


class Swish(nn.Module):
    """`swish` of what the layer before made."""

    def forward(self, x: Tensor) -> Tensor:
        return swish(x)


def _normed(norm: nn.Module, x: Tensor, zq: Tensor | None) -> Tensor:
    return norm(x, zq) if isinstance(norm, SpatialNorm) else norm(x)


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

    def __init__(self, d_in: int, d_out: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.norm1 = norm(d_in)
        self.conv1 = nn.Conv2d(d_in, d_out, 3, padding=1)
        self.norm2 = norm(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, padding=1)
        self.shortcut = nn.Conv2d(d_in, d_out, 1) if d_in != d_out else nn.Identity()

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        """zq: the condition of a SpatialNorm."""
        h = conv3x3(swish(_normed(self.norm1, x, zq)), self.conv1)
        h = conv3x3(swish(_normed(self.norm2, h, zq)), self.conv2)
        kept = self.shortcut(x)
        if torch.is_grad_enabled() or kept.dtype != h.dtype:
            return kept + h
        return h.add_(kept)


# Cells a side that attend to one another. A grid of a photograph is cut into windows of that size:
# over 12 million pixels whole attention takes minutes, and training saw far smaller grids.
_WINDOW = 64


@dataclass(frozen=True)
class TrunkStyle:
    """What published relatives of Table 7 do differently from our own trunks.

    attention_levels: levels (0 the finest) whose every residual block is followed by attention.
    norm: of encoder blocks; decoder_norm: of decoder blocks, a SpatialNorm for MoVQ.
    whole: attention sees the whole grid, whatever its size.
    """

    attention_levels: tuple[int, ...] = ()
    norm: Norm = group_norm
    decoder_norm: Norm = group_norm
    whole: bool = False


class SpatialAttention(nn.Module):
    """Single-head self-attention over the grid, scaled by C^-0.5 (2012.09841, Table 7); over
    windows of it where a side is longer than 64 cells, unless `whole`."""

    def __init__(self, channels: int, norm: Norm = group_norm, whole: bool = False) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.whole = whole
        # Where the first cell lies in a larger grid of which x is a tile: windows stay in place.
        self.origin = (0, 0)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        qkv = self.qkv(_normed(self.norm, x, zq))
        if self.whole:
            return x + self.out(_attend(qkv))
        heights, widths = (_cuts(at, n) for at, n in zip(self.origin, x.shape[2:], strict=True))
        bands = qkv.split(heights, 2)
        rows = [torch.cat([_attend(tile) for tile in band.split(widths, 3)], 3) for band in bands]
        return x + self.out(torch.cat(rows, 2))


def _cuts(start: int, length: int) -> list[int]:
    """The lengths of the windows in cells start to start + length."""
    ends = range(start - start % _WINDOW + _WINDOW, start + length, _WINDOW)
    edges = [start, *ends, start + length]
    return [b - a for a, b in itertools.pairwise(edges)]


def _attend(qkv: Tensor) -> Tensor:
    """(B, 3C, h, w) → (B, C, h, w): every cell attends to all."""
    b, c3, h, w = qkv.shape
    q, k, v = qkv.reshape(b, 3, c3 // 3, h * w).transpose(2, 3).unbind(1)
    y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # (B, HW, C)
    return y.transpose(1, 2).reshape(b, c3 // 3, h, w)


class Middle(nn.Sequential):
    """Two residual blocks at the coarsest level, attention between them."""

    def __init__(
        self,
        channels: int,
        attention: bool,
        norm: Norm = group_norm,
        whole: bool = False,
    ) -> None:
        attend: nn.Module = nn.Identity()
        if attention:
            attend = SpatialAttention(channels, norm, whole)
        super().__init__(
            ResidualBlock(channels, channels, norm), attend, ResidualBlock(channels, channels, norm)
        )

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        for layer in self:
            x = _applied(layer, x, zq)
        return x


def _applied(layer: nn.Module, x: Tensor, zq: Tensor | None) -> Tensor:
    """One layer of a trunk; `zq` reaches those that have norms."""
    conditioned = isinstance(layer, ResidualBlock | SpatialAttention | Middle | SpatialNorm)
    return layer(x, zq) if conditioned and zq is not None else layer(x)


class Downsample(nn.Module):
    """3×3 stride 2 with one row and column of zeros at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every cell twice in height and width, then 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled_conv3x3(x, self.conv)


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
        style: TrunkStyle = TrunkStyle(),
    ) -> None:
        super().__init__()
        widths = [base * m for m in multipliers]
        norm, whole = style.norm, style.whole
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch),
            nn.Conv2d(3 * patch**2, widths[0], 3, padding=1),
        ]
        d = widths[0]
        for level, width in enumerate(widths):
            for _ in range(n_res_blocks):
                layers.append(ResidualBlock(d, width, norm))
                d = width
                if level in style.attention_levels:
                    layers.append(SpatialAttention(d, norm, whole))
            if level < len(widths) - 1:
                layers.append(Downsample(d))
        self.width = d
        self.stride = patch * 2 ** (len(widths) - 1)
        middle = Middle(d, attention, norm, whole)
        self.layers = nn.Sequential(*layers, middle, norm(d), Swish())

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
        self.layers = nn.Sequential(*layers, LocalBlock(d, d), PositionNorm(d), Swish())

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
        style: TrunkStyle = TrunkStyle(),
    ) -> None:
        super().__init__()
        widths = [base * m for m in multipliers]
        norm, whole = style.decoder_norm, style.whole
        d = widths[-1]
        self.width = d
        layers: list[nn.Module] = [Middle(d, attention, norm, whole)]
        for level in reversed(range(len(widths))):
            for _ in range(n_res_blocks + 1):
                layers.append(ResidualBlock(d, widths[level], norm))
                d = widths[level]
                if level in style.attention_levels:
                    layers.append(SpatialAttention(d, norm, whole))
            if level:
                layers.append(Upsample(d))
        self.layers = nn.Sequential(*layers, norm(d), Swish())
        self.is_conditioned = isinstance(self.layers[-2], SpatialNorm)
        self.conv_out = nn.Conv2d(d, 3 * patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(patch)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        """zq (B, d_condition, h, w): the condition of spatial norms, by default the latents."""
        zq = x if zq is None and self.is_conditioned else zq
        for layer in self.layers:
            x = _applied(layer, x, zq)
        return self.unfold(self.conv_out(x))


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
    "SpatialNorm",
    "TemporalDown",
    "TemporalResidual",
    "TemporalUp",
    "TrunkStyle",
    "Upsample",
    "group_norm",
]
