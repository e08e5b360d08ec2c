from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.rope import at_positions, examples, rope, rope_tables


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


def test_positions_read_the_rows_that_they_name() -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 3, 4, 6)
    cos, sin = rope_tables(20, 6, 100.0)
    for positions in (torch.tensor([5, 0, 19, 5]), torch.randint(20, (2, 4))):
        got = rope(x, cos, sin, positions)
        assert torch.equal(got, rope(x, cos[positions], sin[positions]))
        assert torch.equal(got, rope(x, cos, sin, positions.int()))


def test_axes_turn_their_own_pairs_only() -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    cos, sin = (table.double() for table in rope_tables(9, 12, 100.0))
    positions, sections = torch.randint(9, (3, 2, 4)), (1, 2, 3)
    got = rope(x, cos, sin, positions, sections)
    for axis, pairs in enumerate(((0,), (1, 2), (3, 4, 5))):
        alone = rope(x, cos, sin, positions[axis])
        for pair in pairs:
            assert torch.equal(got[..., [pair, pair + 6]], alone[..., [pair, pair + 6]])


def test_axes_with_one_position_are_one_dimension() -> None:
    torch.manual_seed(6)
    x = torch.randn(1, 2, 5, 8)
    tables = rope_tables(30, 8, 100.0)
    positions = torch.tensor([3, 1, 4, 1, 29])
    expected = rope(x, *tables, positions)
    for sections in ((4,), (3, 1), (2, 0, 2)):
        alike = positions.expand(len(sections), -1)
        assert torch.equal(rope(x, *tables, alike, sections), expected)


def test_scores_of_a_grid_depend_on_the_distance_along_each_axis() -> None:
    torch.manual_seed(7)
    q, k = torch.randn(2, 1, 1, 1, 12, dtype=torch.float64)
    tables = [table.double() for table in rope_tables(40, 12, 100.0)]

    def score(i: list[int], j: list[int]) -> torch.Tensor:
        turned = (
            rope(v, *tables, torch.tensor(at)[:, None], (2, 2, 2)) for v, at in ((q, i), (k, j))
        )
        return next(turned).mul(next(turned)).sum()

    near = score([2, 9, 4], [0, 3, 7])
    torch.testing.assert_close(near, score([12, 29, 14], [10, 23, 17]), rtol=1e-5, atol=1e-6)
    assert (near - score([9, 2, 4], [3, 0, 7])).abs() > 1e-3


def test_axis_split_gradient_is_exact() -> None:
    torch.manual_seed(8)
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    tables = [table.double() for table in rope_tables(7, 6, 10.0)]
    positions = torch.randint(7, (3, 3))
    assert torch.autograd.gradcheck(lambda y: rope(y, *tables, positions, (1, 1, 1)), (x,))


def test_bad_input_is_named() -> None:
    x, (cos, sin) = torch.zeros(2, 1, 4, 6), rope_tables(9, 6, 100.0)
    four = torch.arange(4)
    cases = [
        ("x must be", (x[0], cos[:4], sin[:4])),
        ("floating point", (x.long(), cos[:4], sin[:4])),
        ("one shape", (x, cos[:4], sin[:3])),
        ("on meta", (x, cos[:4].to("meta"), sin[:4].to("meta"))),
        ("sections need positions", (x, cos[:4], sin[:4], None, (1, 1, 1))),
        ("cos and sin must be", (x, cos[None], sin[None], four)),
        ("int32 or int64", (x, cos, sin, four.float())),
        ("on meta", (x, cos, sin, four.to("meta"))),
        ("add up to", (x, cos, sin, four.expand(3, -1), (1, 1, 2))),
        ("at most 3", (x, cos, sin, four.expand(4, -1), (1, 1, 1, 0))),
        ("add up to", (x, cos, sin, four.expand(3, -1), (-1, 2, 2))),
        ("positions must be", (x, cos, sin, four[:3])),
        ("positions must be", (x, cos, sin, four, (1, 1, 1))),
        ("0..8", (x, cos, sin, four + 6)),
        ("0..8", (x, cos, sin, four - 1)),
    ]
    for named, arguments in cases:
        with pytest.raises(ValueError, match=named):
            rope(*arguments)


def test_nothing_to_turn() -> None:
    cos, sin = rope_tables(4, 6, 10.0)
    assert rope(torch.zeros(2, 1, 0, 6), cos[:0], sin[:0]).shape == (2, 1, 0, 6)
    empty = torch.zeros(0, dtype=torch.int64)
    assert at_positions(cos, sin, empty, None)[0].shape == (0, 3)


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones() -> None:
    pytest.importorskip("triton")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from polyglyph.kernels.rope_triton import rope_triton

    for example in examples("test", torch.float16, "cpu", 0):
        real = example.call(**example.inputs)
        with FakeTensorMode() as mode:
            inputs = {"positions": None, "sections": None, **example.inputs}
            fakes = {
                name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                for name, value in inputs.items()
            }
            x = fakes["x"].requires_grad_()
            fake = rope_triton(**fakes)
            (grad,) = torch.autograd.grad(fake.sum(), x)
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype)
