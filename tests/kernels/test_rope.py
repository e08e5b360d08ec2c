from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.rms_norm import rms_norm
from polyglyph.kernels.rope import heads, rope, rope_tables


def test_equals_complex_rotation() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    cos, sin = rope_tables(5, 8, 100.0)
    angle = torch.arange(5.0)[:, None] * 100.0 ** (-torch.arange(4.0) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle.double())
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(rope(x, cos.double(), sin.double()), expected, atol=1e-6, rtol=0)


def test_gradient_is_the_rotation_back() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
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
    x = torch.randn(2, 3, 4, 6)
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
        rope(torch.zeros(1, 2, 4, 6), *rope_tables(3, 6, 100.0))


@pytest.mark.parametrize("with_norm", [True, False])
def test_heads_equal_norm_and_rotation_apart(with_norm: bool) -> None:
    torch.manual_seed(4)
    n, n_kv, d_head = 4, 2, 6
    qkv = torch.randn(2, 5, (n + 2 * n_kv) * d_head, dtype=torch.float64, requires_grad=True)
    norms = [torch.randn(d_head, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    cos, sin = rope_tables(30, d_head, 100.0)
    positions = torch.tensor([[0, 1, 2, 0, 1], [9, 3, 29, 0, 1]])
    tables = cos[positions], sin[positions]

    def apart(x: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor) -> tuple:
        parts = x.unflatten(-1, (-1, d_head)).transpose(1, 2).split((n, n_kv, n_kv), 1)
        if with_norm:
            parts = rms_norm(parts[0], q_weight), rms_norm(parts[1], k_weight), parts[2]
        return rope(parts[0], *tables), rope(parts[1], *tables), parts[2]

    def together(x: torch.Tensor, *weights: torch.Tensor) -> tuple:
        return heads(x, n, n_kv, *tables, *(weights if with_norm else ()))

    results = []
    for function in (apart, together):
        out = function(qkv, *norms)
        loss = sum((part * i).sin().sum() for i, part in enumerate(out, 1))
        inputs = (qkv, *norms) if with_norm else (qkv,)
        results.append([*out, *torch.autograd.grad(loss, inputs)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        for expected, got in zip(results[0], together(qkv, *norms)):
            torch.testing.assert_close(got, expected)
