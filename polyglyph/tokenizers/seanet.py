"""Causal convolutional trunk of the audio codec: SEANet as in SoundStream (arXiv:2107.03312) and
EnCodec (arXiv:2210.13438).

Strided convolutions with residual units between them, weight norm in training (folded away by
`fold_weight_norm`), ELU in the encoder, Snake (arXiv:2306.06546) in the decoder, dilated residual
units at the latent rate instead of EnCodec's LSTM. Every layer looks backwards only and pads with
zeros, so a longer input never changes earlier outputs. Knows nothing of codes or files.

Shapes: B batch, C channels, S samples or steps, F frames, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm


class Snake(nn.Module):
    """x + sin²(αx) / α, α per channel: an activation that extrapolates periodic signals."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


def activation(name: str, channels: int) -> nn.Module:
    """"elu" or "snake" for `channels` channels."""
    assert name in ("elu", "snake"), name
    return nn.ELU() if name == "elu" else Snake(channels)


class CausalConv(nn.Module):
    """Convolution that pads (kernel − 1)·dilation + 1 − stride zeros on the left, none right."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(d_in, d_out, kernel, stride, dilation=dilation))
        self.padding = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.padding, 0)))


class CausalConvTranspose(nn.Module):
    """Transposed convolution, kernel ≥ stride; the kernel − stride last steps are cut, so that
    step i of the input first reaches output i·stride."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = weight_norm(nn.ConvTranspose1d(d_in, d_out, kernel, stride), dim=1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., : x.shape[-1] * self.stride]


class ResidualUnit(nn.Module):
    """x + conv1(act(conv_k(act(x)))) with a dilated middle of half the width (true skip)."""

    def __init__(self, channels: int, dilation: int, act: str, kernel: int = 3) -> None:
        super().__init__()
        hidden = max(4, channels // 2)
        self.body = nn.Sequential(
            activation(act, channels),
            CausalConv(channels, hidden, kernel, dilation=dilation),
            activation(act, hidden),
            CausalConv(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _units(channels: int, n_units: int, act: str) -> list[nn.Module]:
    return [ResidualUnit(channels, 3**i, act) for i in range(n_units)]


class Encoder(nn.Module):
    """Sound (B, 1, S), S a multiple of the strides' product, to latents (B, D, F).

    `widths` are the channels before the first stride and after each; `n_units` the residual
    units at each of these rates."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], n_units: Sequence[int],
        d_latent: int, act: str,
    ) -> None:  # fmt: skip
        super().__init__()
        assert len(widths) == len(n_units) == len(strides) + 1
        layers: list[nn.Module] = [CausalConv(1, widths[0], 7), *_units(widths[0], n_units[0], act)]
        for i, stride in enumerate(strides):
            layers += [activation(act, widths[i])]
            layers += [CausalConv(widths[i], widths[i + 1], 2 * stride, stride)]
            layers += _units(widths[i + 1], n_units[i + 1], act)
        layers += [activation(act, widths[-1]), CausalConv(widths[-1], d_latent, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    """Latents (B, D, F) to sound (B, 1, S); arguments as in `Encoder`, applied in reverse."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], n_units: Sequence[int],
        d_latent: int, act: str,
    ) -> None:  # fmt: skip
        super().__init__()
        assert len(widths) == len(n_units) == len(strides) + 1
        layers: list[nn.Module] = [CausalConv(d_latent, widths[-1], 3)]
        layers += _units(widths[-1], n_units[-1], act)
        for i in reversed(range(len(strides))):
            layers += [activation(act, widths[i + 1])]
            layers += [CausalConvTranspose(widths[i + 1], widths[i], 2 * strides[i], strides[i])]
            layers += _units(widths[i], n_units[i], act)
        # The output stays linear: a tanh would cost loud, clipped sounds their level.
        layers += [activation(act, widths[0]), CausalConv(widths[0], 1, 7)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def fold_weight_norm(module: nn.Module) -> None:
    """Replaces every weight-normed weight by its value, in place; outputs stay the same."""
    for child in module.modules():
        if parametrize.is_parametrized(child, "weight"):
            parametrize.remove_parametrizations(child, "weight", leave_parametrized=True)
