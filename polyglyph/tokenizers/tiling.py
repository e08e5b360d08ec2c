"""Pictures too large for one forward, in tiles that overlap.

A tile sees a margin of its neighbours, so convolutions know no seam. What looks at the whole
picture is brought along: windows of attention stay where they lie in the whole grid, and a
GroupNorm (arXiv:1803.08494) takes one mean and variance for all tiles. These come from windows
spread over the picture, which go through the net together, and from one pass over all tiles that
says by how much the whole differs from them in every layer. Nets without such layers (a local
encoder) give exactly the codes of the whole. Knows a net by `encode`, `decode` and `stride` only.

Shapes: B batch, C channels, H W pixels, h w cells of the grid of codes, Q codebooks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyglyph.tokenizers import blocks
from polyglyph.tokenizers.blocks import SpatialAttention

# Cells of its neighbours that a tile sees: as far as the shipped decoder's convolutions reach. With
# 8 cells, windows of attention as large as the margin left some pictures at 38 dB from the whole.
MARGIN = 12
# Cells a side of the windows of a sample.
SAMPLE = 16
# At most so many passes over all tiles measure; the last one is that which finds the sample and the
# whole no farther apart than ENOUGH. A photograph starts 0.3 apart and is 38 dB from the whole
# without any correction, 49 after one, 60 after three; an untrained net starts at 1 and needs four.
# (Passes without a sample settle one layer each.)
ROUNDS = 6
ENOUGH = 0.1
# For codes: near a tie a code changes with the last digits.
OF_CODES = 0.025

Box = tuple[int, int, int, int]  # y, x, h, w in cells
Run = Callable[[list[Box]], Tensor]


@dataclass(frozen=True)
class Tile:
    """A box of cells with its margin (top to bottom, left to right), and what of it is kept."""

    top: int
    bottom: int
    left: int
    right: int
    core: tuple[slice, slice]  # in cells, within the tile

    def of(self, x: Any, scale: int = 1) -> Any:
        """The kept part of x (..., scale · h, scale · w), a tensor or an array."""
        rows, columns = (slice(part.start * scale, part.stop * scale) for part in self.core)
        return x[..., rows, columns]


def tiles(height: int, width: int, core: int, margin: int) -> Iterator[Tile]:
    """Tiles that cover height × width cells: cores of `core` a side, from the top left."""
    for y, x in itertools.product(range(0, height, core), range(0, width, core)):
        box = [
            (max(0, a - margin), min(n, a + core + margin)) for a, n in ((y, height), (x, width))
        ]
        (top, bottom), (left, right) = box
        rows = slice(y - top, min(core, height - y) + y - top)
        columns = slice(x - left, min(core, width - x) + x - left)
        yield Tile(top, bottom, left, right, (rows, columns))


def core_size(limit: int, margin: int, window: int) -> int:
    """Cells a side of a core, so that a tile has about `limit` cells: whole windows of attention,
    at least one."""
    side = int(limit**0.5) - 2 * margin
    return max(window, side // window * window) if window else max(1, margin, side)


@dataclass
class _View:
    """What the layers of a net see of the tiling: None, a sample of windows; else the tile."""

    tile: Tile | None = None
    measures: bool = False


class _SharedNorm:
    """Stands in for a GroupNorm: one mean and variance, by group, for all tiles of a picture.

    They are those of a sample, corrected by what the whole was found to differ from it."""

    def __init__(self, norm: nn.GroupNorm, view: _View) -> None:
        self.norm, self.view = norm, view
        self.used: tuple[Tensor, Tensor] | None = None  # mean, var
        self.offset, self.ratio = torch.zeros(()), torch.ones(())
        self.sums: Tensor | None = None  # (3, groups): count, sum, sum of squares

    def __call__(self, x: Tensor) -> Tensor:
        if self.view.tile is None:
            mean, var, _ = self._moments(x)
            self.used = mean + self.offset, var * self.ratio
        elif self.view.measures:
            mean, var, n = self._moments(self.view.tile.of(x, _scale(x, self.view.tile)))
            new = torch.stack([n, n * mean, n * (var + mean.square())])
            self.sums = new if self.sums is None else self.sums + new
        scale, shift = self._affine()
        return torch.addcmul(shift, x, scale)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and count of the groups of x (B, C, h, w), float64 (groups,)."""
        groups = x.unflatten(1, (self.norm.num_groups, -1))
        var, mean = torch.var_mean(groups, (0, 2, 3, 4), correction=0)
        n = torch.full_like(mean, groups.numel() / self.norm.num_groups, dtype=torch.float64)
        return mean.double(), var.double(), n

    def _affine(self) -> tuple[Tensor, Tensor]:
        """What the norm does to x: scale and shift (1, C, 1, 1)."""
        assert self.used is not None
        mean, var = self.used
        width = self.norm.num_channels // self.norm.num_groups
        rstd = (var + self.norm.eps).rsqrt().repeat_interleave(width).float()
        mean = mean.repeat_interleave(width).float()
        weight, bias = self.norm.weight, self.norm.bias
        scale = rstd if weight is None else rstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)

    def correct(self) -> float:
        """Compares the whole, which was just measured, with the sample; how far they were apart,
        in standard deviations and log variances."""
        assert self.sums is not None and self.used is not None
        count, total, squares = self.sums
        mean, var = total / count, squares / count - (total / count).square()
        tiny = self.norm.eps
        offset, ratio = mean - self.used[0], (var.clamp_min(0) + tiny) / (self.used[1] + tiny)
        self.offset, self.ratio = self.offset + offset, self.ratio * ratio
        self.sums = None
        apart = offset.square() / (var.clamp_min(0) + tiny) + ratio.log().square()
        return float(apart.mean().sqrt())


def _scale(x: Tensor, tile: Tile) -> int:
    """Cells of x (..., h, w) a side for each of the tile's."""
    return x.shape[-2] // (tile.bottom - tile.top)


class TiledNet:
    """A twin of `net`, with the same weights, whose layers in `part` know that they see tiles.

    run: what is done with one tile's or a batch of windows' boxes, (y, x, h, w) in cells."""

    def __init__(self, net: nn.Module, part: str, enough: float = ENOUGH) -> None:
        shared = {id(t): t for t in itertools.chain(net.parameters(), net.buffers())}
        self.net = copy.deepcopy(net, shared)
        self.view, self.enough = _View(), enough
        self.norms: list[_SharedNorm] = []
        self.attentions: list[SpatialAttention] = []
        for module in getattr(self.net, part, self.net).modules():
            if isinstance(module, nn.GroupNorm):
                self.norms.append(_SharedNorm(module, self.view))
                module.forward = self.norms[-1]  # type: ignore[method-assign]
            elif isinstance(module, SpatialAttention):
                self.attentions.append(module)
                module.register_forward_pre_hook(self._place)
        self.margin = MARGIN if self.norms or self.attentions else 0

    @torch.no_grad()
    def over(
        self, grid: tuple[int, int], limit: int, run: Run, scale: int = 1
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, what `run` made of them) until all of the grid is there.

        A tile has about `limit` cells; run's results (B, C, h, w), and the rows and columns, have
        `scale` a side for each cell."""
        window = blocks._WINDOW if self.attentions else 0
        core = core_size(limit, self.margin, window)
        boxes = list(tiles(*grid, core, self.margin))
        if self.norms:
            self._sample(grid, limit, run)
            for _ in range(ROUNDS):
                apart = self._measure(boxes, run)
                self._sample(grid, limit, run)
                if apart <= self.enough:
                    break
        for tile in boxes:
            part = tile.of(self._on(tile, run), scale)
            y = (tile.top + tile.core[0].start) * scale
            x = (tile.left + tile.core[1].start) * scale
            yield slice(y, y + part.shape[-2]), slice(x, x + part.shape[-1]), part

    def _sample(self, grid: tuple[int, int], limit: int, run: Run) -> None:
        """Sets every norm by windows spread evenly over the picture, as if they were all of it."""
        side = min(*grid, SAMPLE)
        counts = [n / side for n in grid]
        share = min(1.0, (limit / side**2 / (counts[0] * counts[1])) ** 0.5)
        starts = [
            np.linspace(0, n - side, max(1, int(count * share))).astype(int)
            for n, count in zip(grid, counts, strict=True)
        ]
        self.view.tile = None
        run([(int(y), int(x), side, side) for y in starts[0] for x in starts[1]])

    def _measure(self, boxes: list[Tile], run: Run) -> float:
        """Corrects every norm by what a pass over all tiles finds: the largest difference."""
        self.view.measures = True
        for tile in boxes:
            self._on(tile, run)
        self.view.measures = False
        return max(norm.correct() for norm in self.norms)

    def _on(self, tile: Tile, run: Run) -> Tensor:
        self.view.tile = tile
        return run([(tile.top, tile.left, tile.bottom - tile.top, tile.right - tile.left)])

    def _place(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Tells an attention where in the whole grid, at its level, the tile lies."""
        tile = self.view.tile
        k = 0 if tile is None else _scale(inputs[0], tile)
        module.origin = (0, 0) if tile is None else (tile.top * k, tile.left * k)  # type: ignore[assignment]


def encode_tiled(
    net: Any, array: np.ndarray, to_pixels: Callable[[np.ndarray], Tensor], limit: int, *asked: int
) -> np.ndarray:
    """Codes int32 (Q, h, w) of uint8 (H, W, 3), in tiles of about `limit` pixels.

    to_pixels: uint8 (B, H, W, 3) → what the net encodes, padded to whole strides."""
    s = net.stride
    grid = (-(-array.shape[0] // s), -(-array.shape[1] // s))
    tiled = TiledNet(net, "encoder", OF_CODES)

    def run(boxes: list[Box]) -> Tensor:
        cut = [array[y * s : (y + h) * s, x * s : (x + w) * s] for y, x, h, w in boxes]
        height, width = boxes[0][2] * s, boxes[0][3] * s
        fill = [((0, height - len(a)), (0, width - a.shape[1]), (0, 0)) for a in cut]
        whole = [np.pad(a, ends, mode="edge") for a, ends in zip(cut, fill, strict=True)]
        return tiled.net.encode(to_pixels(np.stack(whole)), *asked)

    parts = list(tiled.over(grid, max(1, limit // s**2), run))
    codes = np.zeros((parts[0][2].shape[1], *grid), np.int32)
    for rows, columns, part in parts:
        codes[:, rows, columns] = part[0].cpu().numpy()
    return codes


def decode_tiled(
    net: Any, codes: np.ndarray, to_uint8: Callable[[Tensor], np.ndarray], limit: int
) -> np.ndarray:
    """uint8 (h · stride, w · stride, 3) of codes (Q, h, w), in tiles of about `limit` pixels."""
    s, (h, w) = net.stride, codes.shape[1:]
    tiled = TiledNet(net, "decoder")
    whole = torch.from_numpy(codes.astype(np.int64))

    def run(boxes: list[Box]) -> Tensor:
        return tiled.net.decode(_cut(whole, boxes))

    picture = np.empty((h * s, w * s, 3), np.uint8)
    for rows, columns, part in tiled.over((h, w), max(1, limit // s**2), run, s):
        picture[rows, columns] = to_uint8(part)[0]
    return picture


def latents_tiled(net: Any, pixels: Tensor, limit: int) -> Tensor:
    """What net.encoder makes of one picture (3, H, W), whole strides: (1, D, h, w)."""
    s = net.stride
    grid = (pixels.shape[1] // s, pixels.shape[2] // s)
    tiled = TiledNet(net, "encoder", OF_CODES)

    def run(boxes: list[Box]) -> Tensor:
        return tiled.net.encoder(
            _cut(pixels, [(s * y, s * x, s * h, s * w) for y, x, h, w in boxes])
        )

    z = pixels.new_empty(1, tiled.net.encoder.width, *grid)
    for rows, columns, part in tiled.over(grid, max(1, limit // s**2), run):
        z[..., rows, columns] = part
    return z


def pixels_tiled(net: Any, z: Tensor, limit: int) -> Tensor:
    """What net.decoder makes of one picture's latents (D, h, w): (1, 3, H, W)."""
    s, (h, w) = net.stride, z.shape[1:]
    tiled = TiledNet(net, "decoder")

    def run(boxes: list[Box]) -> Tensor:
        return tiled.net.decoder(_cut(z, boxes))

    pixels = z.new_empty(1, 3, h * s, w * s)
    for rows, columns, part in tiled.over((h, w), max(1, limit // s**2), run, s):
        pixels[..., rows, columns] = part
    return pixels


def _cut(x: Tensor, boxes: list[Box]) -> Tensor:
    """The boxes of x (C, H, W), all of one size: (B, C, h, w)."""
    return torch.stack([x[:, y : y + h, x0 : x0 + w] for y, x0, h, w in boxes])
