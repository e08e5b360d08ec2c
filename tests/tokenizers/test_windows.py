"""Windows over a signal in parts: the numbers of the whole, and no more held than they need."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polyglyph.tokenizers.stretches import EvenConv, Stretch, needed, run
from polyglyph.tokenizers.windows import Push, Windows, halo


def pushed(push: Push, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The outputs for a signal (B, n, C) that comes in parts of these sizes, in turn."""
    made, start, i = [], 0, 0
    while start < x.shape[1]:
        part = x[:, start : start + sizes[i % len(sizes)]]
        start, i = start + part.shape[1], i + 1
        made += list(push(part, False))
    return torch.cat([*made, *push(x[:, :0], True)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 6, 7, 50, 61])
@pytest.mark.parametrize("sizes", [(1,), (5, 17), (100,)])
def test_a_padded_function_in_windows_is_that_of_the_whole(n: int, sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, kernel = (
        torch.randn(2, n, 1, generator=generator),
        torch.randn(4, 1, 11, generator=generator),
    )

    def strided(part: Tensor) -> Tensor:  # 3 inputs a frame, 4 outputs a frame, zeros at the ends
        filled = F.pad(part.transpose(1, 2), (4, 4 + -part.shape[1] % 3))
        return F.conv1d(filled, kernel, stride=3).transpose(1, 2).reshape(len(part), -1, 1)

    windows = halo(strided, 2, 6, 3, 4)
    torch.testing.assert_close(pushed(windows.push, x, sizes), strided(x))


@torch.no_grad()
def test_layers_of_stretches_go_through_in_parts() -> None:
    torch.manual_seed(0)
    layers = [EvenConv(1, 3, 7, snake=False), EvenConv(3, 2, 4, 2, padding=1)]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
    x = torch.randn(1, 101, 1)
    due = run(layers, Stretch(x, 0, 101), 1 << 60).x

    def total(n: int) -> int:
        return layers[1].total(layers[0].total(n))

    def compute(piece: Stretch, start: int, end: int) -> Tensor:
        return run(layers, piece, 1 << 60).part(start, end).x

    windows = Windows(9, lambda a, b, n: needed(layers, n, a, b), total, compute)
    torch.testing.assert_close(pushed(windows.push, x, (13,)), due, rtol=1e-5, atol=1e-5)


def test_what_no_window_needs_is_forgotten_and_windows_come_once_they_are_sure() -> None:
    windows = halo(lambda x: x.clone(), 2, 4, 1, 1)
    seen = []
    for step in range(20):
        made = list(windows.push(torch.full((1, 1, 1), float(step)), False))
        seen += [(step, part.flatten().tolist()) for part in made]
        assert windows._held is not None and windows._held.x.shape[1] <= 4 + 2 * 2
    assert seen[:2] == [(5, [0, 1, 2, 3]), (9, [4, 5, 6, 7])]
    (rest,) = windows.push(torch.zeros(1, 0, 1), True)
    assert rest.flatten().tolist() == [16, 17, 18, 19]
