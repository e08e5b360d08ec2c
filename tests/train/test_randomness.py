"""The saved random state gives the same numbers again."""

from __future__ import annotations

import pytest
import torch

from polyglyph.train.randomness import random_state, set_random_state


def test_the_same_numbers_come_again_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    state = random_state(cpu)
    first = torch.rand(5)
    torch.rand(3)
    set_random_state(state, cpu)
    assert torch.equal(torch.rand(5), first) and set(state) == {"rng"}


@pytest.mark.gpu
def test_the_same_numbers_come_again_on_a_gpu() -> None:
    gpu = torch.device("cuda", 0)
    state = random_state(gpu)
    first = torch.rand(5, device=gpu)
    set_random_state(state, gpu)
    assert torch.equal(torch.rand(5, device=gpu), first)
    set_random_state({"rng": state["rng"]}, gpu)
