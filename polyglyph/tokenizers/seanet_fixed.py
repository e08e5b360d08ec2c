"""SEANet (SoundStream, arXiv:2107.03312) as EnCodec and Mimi publish it, for fixed weights.

The nets of other people's checkpoints, for encoding and decoding alone; our own codec's trunk is
seanet.py. Sounds run through the stages of high rate in pieces that stay in a core's cache, each
handing its past on, which also is what makes streams of causal nets exact. Knows nothing of codes.

Shapes: B batch, S samples, n steps, F frames, C channels, D latent width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.tokenizers.steps import ELU, State, StepConv, StepConvTranspose
from polyglyph.tokenizers.windows import Push, Windows, halo

# Elements (steps x channels) of a piece at its widest: 1.6 MB of fp32 (measured: half or double
# cost 2 to 4 %, the whole sound at once 25 %).
_PIECE = 400_000
# Stages up to this width run in pieces: their weights are small beside the piece.
_WIDEST_IN_PIECES = 128


@dataclass(frozen=True)
class SeanetShape:
    """What the two nets have in common. ratios: of the decoder; the encoder reverses them."""

    n_channels: int = 1
    width: int = 32  # channels at the highest rate; doubled by every stage
    d_latent: int = 128
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    n_units: int = 1
    kernel: int = 7
    last_kernel: int = 7
    unit_kernel: int = 3
    dilation_growth: int = 2
    compress: int = 2
    n_lstm: int = 2
    causal: bool = True
    mode: str = "reflect"
    normed: bool = False
    conv_skip: bool = True

    @property
    def hop(self) -> int:
        return math.prod(self.ratios)

    @property
    def widest(self) -> int:
        return self.width * 2 ** len(self.ratios)

    def conv(self, d_in: int, d_out: int, kernel: int, stride: int = 1, dilation: int = 1,
             ) -> StepConv:  # fmt: skip
        return StepConv(
            d_in, d_out, kernel, stride, dilation,
            causal=self.causal, mode=self.mode, normed=self.normed,
        )  # fmt: skip


class Unit(nn.Module):
    """skip(x) + conv1(elu(conv_k(elu(x)))), with a narrower middle; uses up x."""

    def __init__(self, shape: SeanetShape, width: int, dilation: int) -> None:
        super().__init__()
        hidden = width // shape.compress
        self.narrow = shape.conv(width, hidden, shape.unit_kernel, dilation=dilation)
        self.widen = shape.conv(hidden, width, 1)
        self.skip = shape.conv(width, width, 1) if shape.conv_skip else None

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        hidden = F.elu_(self.narrow(x, state, ELU))
        return self.widen.onto(hidden, x if self.skip is None else self.skip(x))


class Lstm(nn.Module):
    """x + LSTM(x) over frames (B, F, C)."""

    def __init__(self, width: int, n_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, n_layers, batch_first=True)

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        y, carried = self.lstm(x, None if state is None else state.get(self))
        if state is not None:
            state[self] = carried
        return y.add_(x)


class DownStage(nn.Module):
    """Residual units, then a strided convolution to twice the width."""

    def __init__(self, shape: SeanetShape, width: int, ratio: int) -> None:
        super().__init__()
        growth = shape.dilation_growth
        self.units = nn.ModuleList(Unit(shape, width, growth**j) for j in range(shape.n_units))
        self.down = shape.conv(width, 2 * width, 2 * ratio, ratio)

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        for unit in self.units:
            x = unit(x, state)
        return self.down(x, state, ELU)


class UpStage(nn.Module):
    """A transposed convolution to half the width, then residual units."""

    def __init__(self, shape: SeanetShape, width: int, ratio: int) -> None:
        super().__init__()
        growth = shape.dilation_growth
        self.up = StepConvTranspose(
            width, width // 2, 2 * ratio, ratio, causal=shape.causal, normed=shape.normed
        )
        self.units = nn.ModuleList(Unit(shape, width // 2, growth**j) for j in range(shape.n_units))

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        x = self.up(x, state, ELU)
        for unit in self.units:
            x = unit(x, state)
        return x


def pieces(n: int, size: int) -> list[tuple[int, int]]:
    """[start, end) of pieces of `size` that make up n; the last one is up to twice as long.

    So it is never too short for the reflected end of a sound."""
    starts = range(0, max(1, n // size) * size, size)
    return [(start, start + size) for start in starts[:-1]] + [(starts[-1], n)]


class SeanetEncoder(nn.Module):
    """Sound (B, S, n_channels) to latents (B, ⌈S / hop⌉, D).

    With a `state` ({} at the start) the sound goes on where the last one ended, in causal nets;
    all but the last part are whole hops, and the first and last are 8 hops long or all there is."""

    def __init__(self, shape: SeanetShape) -> None:
        super().__init__()
        self.shape = shape
        self.start = shape.conv(shape.n_channels, shape.width, shape.kernel)
        widths = [shape.width * 2**i for i in range(len(shape.ratios))]
        ratios = tuple(reversed(shape.ratios))
        self.stages = nn.ModuleList(DownStage(shape, *pair) for pair in zip(widths, ratios))
        self.n_front = sum(width <= _WIDEST_IN_PIECES for width in widths)
        self.stride_front = math.prod(ratios[: self.n_front])
        self.lstm = Lstm(shape.widest, shape.n_lstm) if shape.n_lstm else None
        self.end = shape.conv(shape.widest, shape.d_latent, shape.last_kernel)

    def forward(self, samples: Tensor, state: State | None = None) -> Tensor:
        if not self.shape.causal:
            assert state is None
            x = self._front(samples, None)
        else:
            state = {} if state is None else state
            size = piece_size(self.shape, len(samples))
            parts = pieces(samples.shape[1], size)
            fronts = [self._front(samples[:, a:b], state) for a, b in parts]
            x = fronts[0] if len(fronts) == 1 else torch.cat(fronts, dim=1)
        for stage in self.stages[self.n_front :]:
            x = stage(x, state)
        if self.lstm is not None:
            x = self.lstm(x, state)
        return self.end(x, state, ELU)

    def _front(self, samples: Tensor, state: State | None) -> Tensor:
        x = self.start(samples, state)
        for stage in self.stages[: self.n_front]:
            x = stage(x, state)
        return x

    def windows(self, size: int) -> Push:
        """For a net that looks both ways: takes parts (B, s, n_channels) of a sound, and whether a
        part is the last, to latents (B, f, D), `size` frames at a time."""
        assert not self.shape.causal and not self.shape.normed
        convs = [self.start, *_convolutions(self.stages)]

        def front(samples: Tensor) -> Tensor:
            x = self._front(samples, None)
            for stage in self.stages[self.n_front :]:
                x = stage(x, None)
            return x

        before = halo(front, reach_of(convs, self.shape.hop, False), size, self.shape.hop, 1)
        after = halo(lambda x: self.end(x, None, ELU), reach_of([self.end], 1, False), size, 1, 1)
        return _around(self.lstm, before, after, self.shape.widest)


class SeanetDecoder(nn.Module):
    """Latents (B, F, D) to sound (B, F·hop, n_channels); `state` as in the encoder."""

    def __init__(self, shape: SeanetShape) -> None:
        super().__init__()
        self.shape = shape
        self.start = shape.conv(shape.d_latent, shape.widest, shape.kernel)
        self.lstm = Lstm(shape.widest, shape.n_lstm) if shape.n_lstm else None
        widths = [shape.widest // 2**i for i in range(len(shape.ratios))]
        self.stages = nn.ModuleList(UpStage(shape, *pair) for pair in zip(widths, shape.ratios))
        self.n_back = sum(width // 2 > _WIDEST_IN_PIECES for width in widths)
        self.end = shape.conv(shape.width, shape.n_channels, shape.last_kernel)

    def forward(self, z: Tensor, state: State | None = None) -> Tensor:
        if self.shape.causal and state is None:
            state = {}
        x = self.start(z, state)
        if self.lstm is not None:
            x = self.lstm(x, state)
        for stage in self.stages[: self.n_back]:
            x = stage(x, state)
        if not self.shape.causal:
            return self._front(x, None)
        done = math.prod(self.shape.ratios[: self.n_back])
        size = piece_size(self.shape, len(z)) * done // self.shape.hop
        parts = [self._front(x[:, a:b], state) for a, b in pieces(x.shape[1], size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _front(self, x: Tensor, state: State | None) -> Tensor:
        for stage in self.stages[self.n_back :]:
            x = stage(x, state)
        return self.end(x, state, ELU)

    def windows(self, size: int) -> Push:
        """As the encoder's: parts of latents (B, f, D) to sound (B, s, n_channels)."""
        assert not self.shape.causal and not self.shape.normed
        convs = [*_convolutions(self.stages), self.end]

        def back(x: Tensor) -> Tensor:
            for stage in self.stages[: self.n_back]:
                x = stage(x, None)
            return self._front(x, None)

        before = halo(self.start, reach_of([self.start], 1, False), size, 1, 1)
        after = halo(back, reach_of(convs, self.shape.hop, True), size, 1, self.shape.hop)
        return _around(self.lstm, before, after, self.shape.widest)


def _around(lstm: Lstm | None, before: Windows, after: Windows, width: int) -> Push:
    """Windows, the LSTM that goes on from window to window, windows."""
    state: State = {}

    def push(x: Tensor, is_last: bool) -> Iterator[Tensor]:
        for made in before.push(x, is_last):
            # The convolution behind has to know which one is the last: it gets an empty one then.
            yield from after.push(made if lstm is None else lstm(made, state), False)
        if is_last:
            yield from after.push(x.new_empty(len(x), 0, width), True)

    return push


def _convolutions(module: nn.Module) -> list[StepConv | StepConvTranspose]:
    """In the order of their work (what is side by side comes one after the other)."""
    return [m for m in module.modules() if isinstance(m, StepConv | StepConvTranspose)]


def reach_of(convs: Sequence[StepConv | StepConvTranspose], hop: int, is_up: bool) -> int:
    """How many frames to either side one frame of a stack's output depends on, at most; a frame
    is `hop` steps of the stack's output where it goes up, else of its input."""
    low, high = 0, hop if is_up else 1
    for conv in reversed(convs):
        if isinstance(conv, StepConv):
            taps = (conv.weight.shape[3] - 1) * conv.dilation + 1
            low, high = low * conv.stride, (high - 1) * conv.stride + taps
            low, high = low - conv.left, high - conv.left
        else:
            low = (low + conv.cut[0]) // conv.stride - conv.past
            high = (high - 1 + conv.cut[0]) // conv.stride + 1
    frame = 1 if is_up else hop
    return max(-(low // frame), -(-high // frame) - 1, 0)


def piece_size(shape: SeanetShape, batch: int) -> int:
    """Samples of a piece: whole frames, at least eight of them for the reflected ends."""
    frames = _PIECE // (batch * shape.width * shape.hop)
    return max(8, frames) * shape.hop


__all__ = ["SeanetDecoder", "SeanetEncoder", "SeanetShape", "pieces", "piece_size"]
