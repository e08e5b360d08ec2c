from __future__ import annotations

import pytest
import torch

from polyglyph.kernels import nearest_code as module
from polyglyph.kernels.nearest_code import nearest_code


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("n, k, d", [(1, 1, 1), (129, 37, 5), (1000, 513, 17)])
def test_equals_brute_force_in_fp64(metric: str, n: int, k: int, d: int) -> None:
    torch.manual_seed(0)
    x, codebook = torch.randn(n, d) + 0.5, torch.randn(k, d) + 0.5
    a, b = x.double(), codebook.double()
    if metric == "cosine":
        a, b = torch.nn.functional.normalize(a), torch.nn.functional.normalize(b)
    expected = (a[:, None] - b[None]).square().sum(-1).argmin(1)
    assert torch.equal(nearest_code(x, codebook, metric=metric), expected)


def test_chunks_equal_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    x, codebook = torch.randn(101, 7), torch.randn(13, 7)
    whole = nearest_code(x, codebook)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 40)
    assert torch.equal(nearest_code(x, codebook), whole)


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[4.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -4.0]])
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-3.0, 1.0]])
    assert nearest_code(x, codebook).tolist() == [1, 1, 2]
    torch.manual_seed(2)
    twice = torch.randn(129, 31).repeat(2, 1)
    assert nearest_code(twice, twice).max() < 129


def test_autocast_does_not_lower_the_precision() -> None:
    torch.manual_seed(3)
    x, codebook = torch.randn(257, 9), torch.randn(301, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(x, codebook), nearest_code(x, codebook))
        inside = nearest_code(x, codebook)
    assert torch.equal(inside, nearest_code(x, codebook))


def test_no_vectors_give_no_codes_and_wrong_input_is_named() -> None:
    assert nearest_code(torch.zeros(0, 3), torch.zeros(5, 3)).shape == (0,)
    with pytest.raises(ValueError, match="metric"):
        nearest_code(torch.zeros(1, 3), torch.zeros(5, 3), metric="manhattan")
    with pytest.raises(ValueError, match="codebook"):
        nearest_code(torch.zeros(1, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="codebook"):
        nearest_code(torch.zeros(1, 3), torch.zeros(0, 3))
