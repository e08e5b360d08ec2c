"""Convolutions with fewer products: the layer's own result, wherever they take its place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.tokenizers import convolution
from polyglyph.tokenizers.convolution import conv3x3, upsampled_conv3x3


def layer(d_in: int, d_out: int, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(d_in, d_out, 3, padding=1, bias=bias)


def exact(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer in fp64."""
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(x.double(), conv.weight.double(), bias, padding=1)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 34), (41, 40), (5, 206)])
@pytest.mark.parametrize(("d_in", "d_out"), [(64, 65), (70, 64)])
def test_two_outputs_of_four_products_round_no_worse_than_the_layer(
    size: tuple[int, int], d_in: int, d_out: int
) -> None:
    conv = layer(d_in, d_out, bias=d_in != 70)
    x = torch.randn(2, d_in, *size).contiguous(memory_format=torch.channels_last)
    due = exact(conv, x)
    y = conv3x3(x, conv)
    assert y.shape == due.shape and y.is_contiguous(memory_format=torch.channels_last)
    error, of_layer = (y - due).abs().max(), (conv(x) - due).abs().max()
    assert 0 < error < 2 * of_layer


@torch.no_grad()
def test_strips_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = layer(64, 64)
    x = torch.randn(1, 64, 37, 38).contiguous(memory_format=torch.channels_last)
    whole = conv3x3(x, conv)
    monkeypatch.setattr(convolution, "_STRIP", 5 * 38 * 64)
    torch.testing.assert_close(conv3x3(x, conv), whole, rtol=1e-5, atol=1e-5)


def test_the_layer_itself_runs_where_the_other_way_would_not_do() -> None:
    conv = layer(64, 64)
    x = torch.randn(1, 64, 32, 34).contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv3x3(x, conv), conv(x))  # gradients are asked for
    with torch.no_grad():
        assert not torch.equal(conv3x3(x, conv), conv(x))
        for other in (x[..., :33], x[..., :30, :34], x.contiguous()):
            assert torch.equal(conv3x3(other, conv), conv(other))
        narrow = layer(64, 3)
        assert torch.equal(conv3x3(x, narrow), narrow(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert conv3x3(x, conv).dtype == torch.bfloat16
        double = layer(64, 64).double()
        assert torch.equal(conv3x3(x.double(), double), double(x.double()))


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (23, 18), (7, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cells_are_upsampled_without_being_repeated(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    conv = layer(5, 7)
    x = torch.randn(2, 5, *size).contiguous(memory_format=layout)
    due = exact(conv, x.repeat_interleave(2, 2).repeat_interleave(2, 3)).float()
    torch.testing.assert_close(upsampled_conv3x3(x, conv), due, rtol=1e-5, atol=1e-5)
