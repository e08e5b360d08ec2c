"""Stretches of a signal give the numbers of the whole, in every layer and in stacks of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyglyph.tokenizers.steps import phases_of
from polyglyph.tokenizers.stretches import (
    EvenConv,
    EvenConvTranspose,
    EvenUnit,
    Layer,
    Snake,
    Stretch,
    needed,
    run,
    run_range,
)


def filled(layers: list[Layer]) -> list[Layer]:
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        for part in layer.modules():
            if isinstance(part, Snake):
                nn.init.uniform_(part.alpha, 0.5, 2.0)
    return layers


def stacks() -> dict[str, list[Layer]]:
    down = [EvenConv(1, 3, 7, snake=False), EvenUnit(3, 1), EvenUnit(3, 9)]
    down += [EvenConv(3, 4, 10, 5, padding=3), EvenUnit(4, 3), EvenConv(4, 2, 4, 2, padding=1)]
    up = [EvenConv(1, 4, 7, snake=False), EvenConvTranspose(4, 3, 5, 3), EvenUnit(3, 3)]
    up += [EvenConvTranspose(3, 2, 2, 1), EvenConv(2, 1, 7)]
    return {"down": filled(down), "up": filled(up)}


@torch.no_grad()
@pytest.mark.parametrize("name", ["down", "up"])
@pytest.mark.parametrize("n", [20, 70])
@pytest.mark.parametrize("size", [19, 60])
def test_stretches_are_the_whole(name: str, n: int, size: int) -> None:
    layers = stacks()[name]
    whole = Stretch(torch.randn(2, n, 1), 0, n)
    due = run(layers, whole, 1 << 60)
    found = run(layers, whole, size)
    assert (found.start, found.total) == (0, due.x.shape[1])
    torch.testing.assert_close(found.x, due.x, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["down", "up"])
def test_the_needed_inputs_are_enough(name: str) -> None:
    layers = stacks()[name]
    whole = Stretch(torch.randn(1, 230, 1), 0, 230)
    due = run(layers, whole, 1 << 60)
    for start, end in ((0, 2), (9, 11), (due.total - 3, due.total)):
        first, last = needed(layers, 230, start, end)
        assert last - first < 230
        found = run_range(layers, whole.part(first, last), start, end)
        torch.testing.assert_close(found.x, due.x[:, start:end], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_layers_are_torchs_own() -> None:
    x = torch.randn(2, 31, 3)
    piece = Stretch(x, 0, 31)
    snake = Snake(3)
    nn.init.uniform_(snake.alpha, 0.5, 2.0)
    alpha = snake.alpha[:, None]
    wavy = x.transpose(1, 2) + (alpha * x.transpose(1, 2)).sin() ** 2 / alpha
    conv = filled([EvenConv(3, 4, 10, 5, padding=3)])[0]
    conv.snake = snake
    due = F.conv1d(wavy, conv.weight[:, :, 0], conv.bias, 5, 3)
    torch.testing.assert_close(conv(piece).x, due.transpose(1, 2), rtol=1e-5, atol=1e-5)
    up = filled([EvenConvTranspose(3, 2, 5, 3)])[0]
    up.snake = snake
    weight = torch.randn(3, 2, 10)
    up.weight.copy_(phases_of(weight, 5))
    due = F.conv_transpose1d(wavy, weight, up.bias, 5, 3)
    torch.testing.assert_close(up(piece).x, due.transpose(1, 2), rtol=1e-5, atol=1e-5)
