from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.rope import rope, rope_tables


def test_equals_complex_rotation() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    cos, sin = rope_tables(5, 8, 100.0)
    angle = torch.arange(5.0)[:, None] * 100.0 ** (-torch.arange(4.0) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle.double())[:, None]
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(rope(x, cos.double(), sin.double()), expected, atol=1e-6, rtol=0)


def test_gradient_is_the_rotation_back() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    tables = [table.double() for table in rope_tables(3, 4, 10.0)]
    assert torch.autograd.gradcheck(lambda y: rope(y, *tables), (x,))


def test_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(2)
    q, k = torch.randn(2, 1, 1, 1, 16).double()
    cos, sin = (table.double() for table in rope_tables(50, 16, 10_000.0))

    def score(i: int, j: int) -> torch.Tensor:
        turned = rope(q, cos[i : i + 1], sin[i : i + 1]), rope(k, cos[j : j + 1], sin[j : j + 1])
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(45, 40), rtol=1e-5, atol=1e-6)


def test_positions_per_row_equal_rows_one_by_one() -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 4, 3, 6)
    cos, sin = rope_tables(20, 6, 100.0)
    positions = torch.tensor([[0, 1, 2, 3], [7, 0, 19, 1]])
    both = rope(x, cos[positions], sin[positions])
    for row in range(2):
        single = rope(x[row : row + 1], cos[positions[row]], sin[positions[row]])
        assert torch.equal(both[row : row + 1], single)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="even"):
        rope_tables(4, 5, 100.0)
    with pytest.raises(ValueError, match="cos"):
        rope(torch.zeros(1, 4, 2, 6), *rope_tables(3, 6, 100.0))
