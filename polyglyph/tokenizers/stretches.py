"""Stacks of convolutions that look both ways, run over stretches of a signal, exactly.

A layer says which of its inputs some outputs need, and pads with zeros only where the signal ends;
so a sound of any length goes through in bounded memory, and a stretch stays in a core's cache,
with the numbers of the whole. Knows nothing of codes or codecs; not for training.

Shapes: B batch, n steps, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyglyph.tokenizers.steps import channels_last, convolve

Range = tuple[int, int]


@dataclass
class Stretch:
    """Steps [start, start + n) of a signal of `total` steps."""

    x: Tensor  # (B, n, C)
    start: int
    total: int

    @property
    def end(self) -> int:
        return self.start + self.x.shape[1]

    def part(self, start: int, end: int) -> Stretch:
        """Steps [start, end) of the signal, a view."""
        assert self.start <= start <= end <= self.end
        return Stretch(self.x[:, start - self.start : end - self.start], start, self.total)


class Snake(nn.Module):
    """x + sin²(αx) / (α + 1e-9), α per channel (arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def into(self, x: Tensor, out: Tensor) -> None:
        """The activation of x (B, n, C), written to `out`."""
        wave = (x * self.alpha).sin_()
        wave.mul_(wave)
        torch.addcmul(x, wave, (self.alpha + 1e-9).reciprocal(), out=out)


class Layer(nn.Module):
    """A layer over stretches: ranges are [start, end) in steps of its input and output."""

    def total(self, n: int) -> int:
        """Outputs for a signal of n steps."""
        raise AssertionError

    def needs(self, start: int, end: int) -> Range:
        """Inputs that outputs [start, end) depend on; may reach over the signal's ends."""
        raise AssertionError

    def gives(self, start: int, end: int, total: int) -> Range:
        """Outputs that inputs [start, end) of `total` decide."""
        raise AssertionError

    def forward(self, piece: Stretch) -> Stretch:
        raise AssertionError


class EvenConv(Layer):
    """Convolution padded by zeros on both sides, after a Snake where `snake` is true."""

    def __init__(
        self, d_in: int, d_out: int, kernel: int, stride: int = 1, dilation: int = 1,
        padding: int | None = None, snake: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = channels_last(d_out, d_in, 1, kernel)
        self.bias = nn.Parameter(torch.zeros(d_out))
        self.snake = Snake(d_in) if snake else None
        self.stride, self.dilation = stride, dilation
        self.reach = (kernel - 1) * dilation + 1
        self.padding = self.reach // 2 if padding is None else padding

    def total(self, n: int) -> int:
        return (n + 2 * self.padding - self.reach) // self.stride + 1

    def needs(self, start: int, end: int) -> Range:
        first = start * self.stride - self.padding
        return first, (end - 1) * self.stride - self.padding + self.reach

    def gives(self, start: int, end: int, total: int) -> Range:
        first = -(-(start + self.padding) // self.stride) if start else 0
        last = (end + self.padding - self.reach) // self.stride + 1
        return first, self.total(total) if end == total else last

    def forward(self, piece: Stretch) -> Stretch:
        first, last = self.gives(piece.start, piece.end, piece.total)
        start, end = self.needs(first, last)
        left, right = max(0, -start), max(0, end - piece.total)
        x = piece.part(start + left, end - right).x
        if left or right or self.snake is not None:
            buffer = x.new_empty(len(x), end - start, x.shape[2])
            buffer[:, :left] = 0
            buffer[:, end - start - right :] = 0
            inner = buffer[:, left : end - start - right]
            if self.snake is None:
                inner.copy_(x)
            else:
                self.snake.into(x, inner)
            x = buffer
        y = convolve(x, self.weight, self.bias, self.stride, self.dilation)
        return Stretch(y, first, self.total(piece.total))


class EvenConvTranspose(Layer):
    """Snake, then a transposed convolution, kernel 2·stride, less `padding` steps at either end.

    The weight is (stride·d_out, d_in, 1, 2): the phases, see `steps.phases_of`."""

    def __init__(self, d_in: int, d_out: int, stride: int, padding: int) -> None:
        super().__init__()
        self.weight = channels_last(stride * d_out, d_in, 1, 2)
        self.bias = nn.Parameter(torch.zeros(d_out))
        self.snake = Snake(d_in)
        self.stride, self.padding = stride, padding

    def total(self, n: int) -> int:
        return (n + 1) * self.stride - 2 * self.padding

    def needs(self, start: int, end: int) -> Range:
        first = (start + self.padding) // self.stride - 1
        return first, (end - 1 + self.padding) // self.stride + 1

    def gives(self, start: int, end: int, total: int) -> Range:
        first = (start + 1) * self.stride - self.padding if start else 0
        return first, self.total(total) if end == total else end * self.stride - self.padding

    def forward(self, piece: Stretch) -> Stretch:
        b, n, c = piece.x.shape
        left, right = int(piece.start == 0), int(piece.end == piece.total)
        buffer = piece.x.new_empty(b, left + n + right, c)
        buffer[:, :left] = 0
        buffer[:, left + n :] = 0
        self.snake.into(piece.x, buffer[:, left : left + n])
        y = convolve(buffer, self.weight, self.bias.repeat(self.stride), 1, 1)
        y = y.reshape(b, y.shape[1] * self.stride, -1)  # phases side by side are steps
        start = (piece.start + 1 - left) * self.stride - self.padding
        first, last = self.gives(piece.start, piece.end, piece.total)
        return Stretch(y[:, first - start : last - start], first, self.total(piece.total))


class EvenUnit(Layer):
    """x + conv1(snake(conv7(snake(x)))), the middle dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.wide = EvenConv(channels, channels, 7, dilation=dilation)
        self.snake = Snake(channels)
        self.weight = nn.Parameter(torch.zeros(channels, channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def total(self, n: int) -> int:
        return n

    def needs(self, start: int, end: int) -> Range:
        return self.wide.needs(start, end)

    def gives(self, start: int, end: int, total: int) -> Range:
        return self.wide.gives(start, end, total)

    def forward(self, piece: Stretch) -> Stretch:
        inner = self.wide(piece)
        x = inner.x
        self.snake.into(x, x)
        y = nn.functional.linear(x, self.weight, self.bias)
        return Stretch(y.add_(piece.part(inner.start, inner.end).x), inner.start, piece.total)


def run(layers: Sequence[Layer], piece: Stretch, size: int) -> Stretch:
    """All that `piece` decides of the last layer's output, computed `size` outputs at a time."""
    first, last, total = piece.start, piece.end, piece.total
    for layer in layers:
        first, last = layer.gives(first, last, total)
        total = layer.total(total)
    if last - first <= size:
        return _through(layers, piece).part(first, last)
    parts = [
        run_range(layers, piece, start, min(start + size, last)).x
        for start in range(first, last, size)
    ]
    return Stretch(torch.cat(parts, dim=1), first, total)


def run_range(layers: Sequence[Layer], piece: Stretch, start: int, end: int) -> Stretch:
    """Outputs [start, end) of the last layer."""
    return _through(layers, piece.part(*needed(layers, piece.total, start, end))).part(start, end)


def needed(layers: Sequence[Layer], total: int, start: int, end: int) -> Range:
    """The inputs, of a signal of `total` steps, that the last layer's outputs depend on."""
    totals = [total]
    for layer in layers:
        totals.append(layer.total(totals[-1]))
    for layer, n in zip(reversed(layers), reversed(totals[:-1])):
        start, end = layer.needs(start, end)
        start, end = max(0, start), min(n, end)
    return start, end


def _through(layers: Sequence[Layer], piece: Stretch) -> Stretch:
    for layer in layers:
        piece = layer(piece)
    return piece


__all__ = [
    "EvenConv", "EvenConvTranspose", "EvenUnit", "Layer", "Snake", "Stretch", "needed", "run",
    "run_range",
]  # fmt: skip
