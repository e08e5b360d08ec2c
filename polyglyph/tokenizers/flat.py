"""A trunk that does all its work on the grid of codes: patch transform, residual blocks, transform.

It begins as a transform coder: the first layer is an orthonormal cosine transform of patch × patch
pixels in three opponent colours, coarse coefficients first, the last layer is its inverse, and the
blocks between add nothing yet. A quantizer that takes the first coefficients then starts as a
vector quantizer of patches. Blocks are inverted bottlenecks with a depthwise 3×3 in the middle
(MobileNetV2, arXiv:1801.04381) and no norms (EDSR, arXiv:1707.02921): nothing depends on the whole
picture, and levels of brightness pass as they are. Knows nothing of quantizers, ids or training.

Shapes: B batch, C channels, h w grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EXPANSION = 2
# Brightness, and two differences of colours that are orthogonal to it.
_OPPONENT = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
_SHARES = (1.0, 0.12, 0.03)  # of their variances in natural pictures, about


def cosine_transform(patch: int) -> Tensor:
    """Orthonormal rows (3·patch², 3·patch²) over pixels in PixelUnshuffle's order, by falling
    variance in natural pictures (power 1/f²; Burton and Moorhead, 1987)."""
    n = torch.arange(patch, dtype=torch.float64)
    waves = torch.cos(math.pi / patch * (n + 0.5) * n[:, None])  # (frequency, place)
    waves = F.normalize(waves, dim=1)
    colours = F.normalize(torch.tensor(_OPPONENT, dtype=torch.float64), dim=1)
    rows = torch.einsum("kc,uy,vx->kuvcyx", colours, waves, waves).reshape(3 * patch**2, -1)
    f2 = n[:, None] ** 2 + n**2
    power = torch.tensor(_SHARES, dtype=torch.float64)[:, None, None] / (0.05 + f2)
    order = power.flatten().argsort(descending=True, stable=True)
    return rows[order].float()


class FlatBlock(nn.Module):
    """x + a bottleneck turned inside out, zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = _EXPANSION * width
        self.expand = nn.Conv2d(width, wide, 1)
        self.around = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.contract = nn.Conv2d(wide, width, 1)
        nn.init.zeros_(self.contract.weight)
        assert self.contract.bias is not None
        nn.init.zeros_(self.contract.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.contract(F.silu(self.around(self.expand(x))))


class FlatEncoder2d(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] → latents (B, width, H / patch, W / patch)."""

    def __init__(self, width: int, n_blocks: int, patch: int) -> None:
        super().__init__()
        if width < 3 * patch**2:
            raise ValueError(
                f"a flat trunk is at least as wide as a patch has values, {3 * patch**2}; "
                f"got {width}"
            )
        self.width, self.stride = width, patch
        self.fold = nn.PixelUnshuffle(patch)
        self.conv_in = nn.Conv2d(3 * patch**2, width, 1)
        self.layers = nn.Sequential(*(FlatBlock(width) for _ in range(n_blocks)))
        rows = cosine_transform(patch)
        with torch.no_grad():
            assert self.conv_in.bias is not None
            self.conv_in.bias.zero_()
            self.conv_in.weight[: len(rows), :, 0, 0] = rows

    def forward(self, x: Tensor) -> Tensor:
        x = self.fold(x).contiguous(memory_format=torch.channels_last)
        return self.layers(self.conv_in(x))


class FlatDecoder2d(nn.Module):
    """Latents (B, width, h, w) → pixels (B, 3, patch·h, patch·w)."""

    def __init__(self, width: int, n_blocks: int, patch: int) -> None:
        super().__init__()
        self.width = width
        self.is_conditioned = False
        self.layers = nn.Sequential(*(FlatBlock(width) for _ in range(n_blocks)))
        self.conv_out = nn.Conv2d(width, 3 * patch**2, 1)
        self.unfold = nn.PixelShuffle(patch)
        rows = cosine_transform(patch)
        with torch.no_grad():
            assert self.conv_out.bias is not None
            self.conv_out.bias.zero_()
            self.conv_out.weight.zero_()
            self.conv_out.weight[:, : len(rows), 0, 0] = rows.t()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.unfold(self.conv_out(self.layers(x)))


__all__ = ["FlatBlock", "FlatDecoder2d", "FlatEncoder2d", "cosine_transform"]
