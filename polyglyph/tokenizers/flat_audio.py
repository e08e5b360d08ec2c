"""A trunk of sound that does all its work at the rate of codes: blocks of samples through a cosine
transform, residual units, and back.

It begins as a transform coder, as flat.py does for pictures: the first layer is the orthonormal
DCT-II of a block of `stride` samples, low frequencies first, the last layer its inverse, and the
units between hardly add anything yet. A quantizer that takes the first coefficients then starts as
a vector quantizer of low-passed sound. SEANet's layers have to find the waveform first: one at
200 Hz still had an error of -4 dB after 9,000 seconds of speech, with or without quantization.
Units look backwards only, so streams go as in seanet.py. Knows nothing of codes or files.

Shapes: B batch, C channels of sound, S samples, F frames, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyglyph.tokenizers.seanet import (
    Analysis,
    Chain,
    Decoder,
    Encoder,
    ResidualUnit,
    Synthesis,
)

_START = 0.1  # of a unit's usual output: nearly nothing, and never a direction without a length


def cosine_rows(n: int, n_channels: int = 1) -> Tensor:
    """Orthonormal rows (n_channels·n, n_channels·n) over samples channel by channel, by rising
    frequency; the channels' rows of one frequency follow each other."""
    place = torch.arange(n, dtype=torch.float64)
    waves = F.normalize(torch.cos(math.pi / n * (place + 0.5) * place[:, None]), dim=1)
    channels = torch.eye(n_channels, dtype=torch.float64)
    rows = torch.einsum("un,cd->ucdn", waves, channels)
    return rows.reshape(n_channels * n, n_channels * n).float()


def _flat_units(width: int, n_units: int, act: str) -> list[ResidualUnit]:
    """Units that add a tenth of what they will."""
    units = [ResidualUnit(width, 3**i, act) for i in range(n_units)]
    for unit in units:
        last = unit.body[-1].conv
        with torch.no_grad():
            last.weight = _START * last.weight  # through the weight norm
    return units


def _transform(widths: Sequence[int], strides: Sequence[int], n_channels: int) -> Tensor:
    """The rows (D, n_channels·stride) that the one width D keeps."""
    ((width,), (stride,)) = (widths, strides)
    assert width <= n_channels * stride
    return cosine_rows(stride, n_channels)[:width]


class FlatEncoder(Encoder):
    """Sound (B, n_channels, S), S a multiple of the stride, to latents (B, D, F).

    Arguments as `Encoder`'s, with one stride and one width D ≤ n_channels·stride."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], n_units: Sequence[int],
        d_latent: int, act: str, taps: int, n_channels: int = 1,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        assert d_latent == widths[0]
        first = Analysis(d_latent, strides[0], taps, n_channels)
        _start_as(first.conv.conv, _transform(widths, strides, n_channels))
        self.layers = Chain(first, *_flat_units(d_latent, n_units[0], act))


class FlatDecoder(Decoder):
    """Latents (B, D, F) to sound (B, n_channels, S); arguments as in `FlatEncoder`."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], n_units: Sequence[int],
        d_latent: int, act: str, taps: int, n_channels: int = 1,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        assert d_latent == widths[0]
        last = Synthesis(d_latent, strides[0], taps, n_channels)
        _start_as(last.conv.conv, _transform(widths, strides, n_channels).t())
        self.layers = Chain(*_flat_units(d_latent, n_units[0], act), last)


@torch.no_grad()
def _start_as(conv: nn.Module, matrix: Tensor) -> None:
    """A convolution of the present block alone, by `matrix` (out, in)."""
    weight = torch.zeros_like(conv.weight)
    weight[..., -1] = matrix
    conv.weight = weight  # through the weight norm
