"""Convolutions over time on (B, S, C) activations, for codecs whose weights are fixed.

With a step's channels side by side in memory a CPU convolves without re-ordering, a transposed
convolution is a plain one on its phases, and an activation writes into the padded input of the
next layer, so that padding costs no copy. Causal layers keep a stream's past in a `State`.
Padding follows EnCodec (arXiv:2210.13438): a last window is filled up on the right.

Shapes: B batch, S or n steps, C channels. Knows nothing of codes or files; not for training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[nn.Module, Any]
"""What each causal layer keeps of a stream: the last steps (B, n, C) of its padded input."""

ELU, NONE = "elu", ""


def write_activation(name: str, x: Tensor, out: Tensor) -> None:
    """`x` through "elu" or nothing into `out`, of its shape."""
    assert name in (ELU, NONE), name
    if name == ELU:
        torch.ops.aten.elu.out(x, 1.0, 1.0, 1.0, out=out)
    else:
        out.copy_(x)


def fill_edges(buffer: Tensor, left: int, right: int, mode: str) -> None:
    """Pads in place: `buffer` (B, left + n + right, C) holds its n steps; the rest is written.

    mode: "constant" (zeros), "replicate" or "reflect". Inputs too short to reflect are followed by
    zeros first, as EnCodec does."""
    n = buffer.shape[1] - left - right
    inner = buffer[:, left : left + n]
    if mode == "constant":
        buffer[:, :left] = 0
        buffer[:, left + n :] = 0
    elif mode == "replicate":
        buffer[:, :left] = inner[:, :1]
        buffer[:, left + n :] = inner[:, -1:]
    elif n > max(left, right):
        buffer[:, :left] = inner[:, 1 : left + 1].flip(1)
        buffer[:, left + n :] = inner[:, n - 1 - right : n - 1].flip(1)
    else:
        longer = F.pad(inner, (0, 0, 0, max(left, right) + 1 - n))
        mirrored = torch.cat([longer, longer[:, :-1].flip(1)], dim=1)
        buffer[:, :left] = longer[:, 1 : left + 1].flip(1)
        buffer[:, left + n :] = mirrored[:, n : n + right].clone()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    """Valid convolution of (B, n, C) with a weight (C', C, 1, k) whose channels lie together."""
    as_image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, n), channels last in memory
    y = F.conv2d(as_image, weight, bias, (1, stride), 0, (1, dilation))
    return y.squeeze(2).transpose(1, 2)


def channels_last(*shape: int) -> nn.Parameter:
    """An empty weight (C', C, 1, k), laid out as `convolve` reads it."""
    return nn.Parameter(torch.zeros(shape).contiguous(memory_format=torch.channels_last))


def group_norm(norm: nn.GroupNorm | None, y: Tensor) -> Tensor:
    """The norm of (B, n, C) over steps and channels, where there is one."""
    return y if norm is None else norm(y.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


class StepConv(nn.Module):
    """Convolution with EnCodec's padding: (B, n, d_in) to (B, ⌈n / stride⌉, d_out).

    causal: all padding but the fill of the last window is on the left. normed: GroupNorm over the
    whole output of a sound (48 kHz EnCodec), which a stream can't have."""

    def __init__(
        self, d_in: int, d_out: int, kernel: int, stride: int = 1, dilation: int = 1, *,
        causal: bool = True, mode: str = "constant", normed: bool = False, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = channels_last(d_out, d_in, 1, kernel)
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        self.norm = nn.GroupNorm(1, d_out) if normed else None
        self.stride, self.dilation, self.mode = stride, dilation, mode
        total = (kernel - 1) * dilation + 1 - stride
        assert total >= 0
        self.right = 0 if causal else total // 2
        self.left = total - self.right

    def forward(self, x: Tensor, state: State | None = None, activation: str = NONE) -> Tensor:
        x = self._padded(x, state, activation)
        y = convolve(x, self.weight, self.bias, self.stride, self.dilation)
        return group_norm(self.norm, y)

    def onto(self, x: Tensor, y: Tensor) -> Tensor:
        """y plus the output for x, in place where that is free; kernel 1, stride 1."""
        if self.norm is not None or self.bias is None:
            return y.add_(self(x))
        matrix = self.weight[:, :, 0, 0].t()
        flat = y.flatten(0, 1).addmm_(x.reshape(-1, x.shape[-1]), matrix)
        return flat.add_(self.bias).view_as(y)

    def _padded(self, x: Tensor, state: State | None, activation: str) -> Tensor:
        b, n, c = x.shape
        right = self.right + -n % self.stride
        if not (self.left or right or activation):
            return x
        buffer = x.new_empty(b, self.left + n + right, c)
        write_activation(activation, x, buffer[:, self.left : self.left + n])
        past = None if state is None else state.get(self)
        if past is None:
            fill_edges(buffer, self.left, right, self.mode)
        else:
            buffer[:, : self.left] = past
            if right:  # the end of the stream, long enough to reflect
                fill_edges(buffer, 0, right, self.mode)
        if state is not None and self.left:
            state[self] = buffer[:, buffer.shape[1] - right - self.left :][:, : self.left].clone()
        return buffer


class StepConvTranspose(nn.Module):
    """Transposed convolution, kernel a multiple of the stride, less `cut` steps at either end.

    A plain convolution over kernel / stride steps gives the phases of every step: the weight is
    (stride·d_out, d_in, 1, taps), see `phases_of`. Causal where all is cut at the end:
    (B, n, d_in) to (B, n·stride, d_out), and only then may there be a state."""

    def __init__(
        self, d_in: int, d_out: int, kernel: int, stride: int, *, causal: bool = True,
        normed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        assert kernel % stride == 0
        self.stride, self.past = stride, kernel // stride - 1
        self.weight = channels_last(stride * d_out, d_in, 1, self.past + 1)
        self.bias = nn.Parameter(torch.zeros(d_out))
        self.norm = nn.GroupNorm(1, d_out) if normed else None
        total = kernel - stride
        self.cut = (0, total) if causal else (total - total // 2, total // 2)

    def forward(self, x: Tensor, state: State | None = None, activation: str = NONE) -> Tensor:
        b, n, c = x.shape
        whole = self.norm is not None or self.cut[0] > 0  # the norm sees what is cut, too
        behind = self.past if whole else 0
        buffer = x.new_empty(b, self.past + n + behind, c)
        write_activation(activation, x, buffer[:, self.past : self.past + n])
        fill_edges(buffer, self.past, behind, "constant")
        if state is not None:
            assert not whole
            if self in state:
                buffer[:, : self.past] = state[self]
            state[self] = buffer[:, n:].clone()
        y = convolve(buffer, self.weight, self.bias.repeat(self.stride), 1, 1)
        y = y.reshape(b, y.shape[1] * self.stride, -1)  # phases side by side are steps
        y = group_norm(self.norm, y)
        return y[:, self.cut[0] : y.shape[1] - self.cut[1]] if whole else y


def phases_of(weight: Tensor, stride: int) -> Tensor:
    """A transposed convolution's weight (d_in, d_out, kernel) as `StepConvTranspose` has it."""
    if weight.ndim != 3 or weight.shape[2] % stride:
        raise RuntimeError(
            f"expected (d_in, d_out, multiple of {stride}), got {tuple(weight.shape)}"
        )
    d_in, d_out, kernel = weight.shape
    taps = kernel // stride
    phases = weight.reshape(d_in, d_out, taps, stride).flip(2)  # the newest step comes last
    return phases.permute(3, 1, 0, 2).reshape(stride * d_out, d_in, 1, taps)


__all__ = [
    "ELU", "NONE", "State", "StepConv", "StepConvTranspose", "channels_last", "convolve",
    "fill_edges", "group_norm", "phases_of", "write_activation",
]  # fmt: skip
