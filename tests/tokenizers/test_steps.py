"""Convolutions on (B, S, C): padding, phases and state against torch's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.tokenizers.steps import (
    ELU,
    NONE,
    State,
    StepConv,
    StepConvTranspose,
    fill_edges,
    phases_of,
)


def filled(layer: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


def padded(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    buffer = torch.full((x.shape[0], left + x.shape[1] + right, x.shape[2]), float("nan"))
    buffer[:, left : left + x.shape[1]] = x
    fill_edges(buffer, left, right, mode)
    return buffer


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect"])
@pytest.mark.parametrize("edges", [(0, 0), (3, 0), (0, 4), (2, 5)])
def test_edges_are_those_of_torchs_padding(mode: str, edges: tuple[int, int]) -> None:
    x = torch.randn(2, 7, 3)
    due = F.pad(x.transpose(1, 2), edges, mode=mode).transpose(1, 2)
    assert torch.equal(padded(x, *edges, mode), due)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_short_sound_is_followed_by_zeros_before_it_is_mirrored(n: int) -> None:
    x = torch.arange(1.0, n + 1).view(1, n, 1)
    left, right = 3, 2
    longer = F.pad(x, (0, 0, 0, 4 - n)).transpose(1, 2)
    due = F.pad(longer, (left, right), mode="reflect").transpose(1, 2)[:, : left + n + right]
    assert torch.equal(padded(x, left, right, "reflect"), due)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 5, 12, 13])
def test_a_causal_convolution_fills_up_its_last_window(stride: int, n: int) -> None:
    layer = filled(StepConv(3, 5, 2 * stride, stride))
    x = torch.randn(2, n, 3)
    right = -n % stride
    due = F.conv1d(
        F.pad(F.elu(x).transpose(1, 2), (layer.left, right)),
        layer.weight[:, :, 0], layer.bias, stride,
    )  # fmt: skip
    torch.testing.assert_close(layer(x, None, ELU), due.transpose(1, 2))
    assert due.shape[2] == -(-n // stride)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", [2, 5])
@pytest.mark.parametrize("normed", [True, False])
def test_phases_are_a_transposed_convolution(causal: bool, stride: int, normed: bool) -> None:
    theirs = filled(nn.ConvTranspose1d(3, 4, 2 * stride, stride))
    layer = filled(StepConvTranspose(3, 4, 2 * stride, stride, causal=causal, normed=normed))
    layer.weight.copy_(phases_of(theirs.weight, stride))
    layer.bias.copy_(theirs.bias)
    x = torch.randn(2, 7, 3)
    due = theirs(x.transpose(1, 2))
    due = due if layer.norm is None else layer.norm(due)
    left = 0 if causal else stride - stride // 2
    due = due[..., left : left + 7 * stride].transpose(1, 2)
    torch.testing.assert_close(layer(x, None, NONE), due, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_a_stream_of_steps_equals_the_whole(mode: str) -> None:
    down = filled(StepConv(3, 4, 4, 2, mode=mode))
    wide = filled(StepConv(4, 4, 3, dilation=2, mode=mode))
    up = filled(StepConvTranspose(4, 2, 6, 3))
    x = torch.randn(1, 41, 3)

    def through(part: Tensor, state: State) -> Tensor:
        return up(wide(down(part, state), state, ELU), state, ELU)

    state: State = {}
    parts = [through(part, state) for part in (x[:, :12], x[:, 12:14], x[:, 14:30], x[:, 30:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), through(x, {}), rtol=1e-5, atol=1e-5)


def test_a_kernel_of_broken_phases_is_refused() -> None:
    with pytest.raises(RuntimeError, match="multiple of 3"):
        phases_of(torch.zeros(2, 2, 7), 3)
