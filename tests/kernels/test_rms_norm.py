from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.rms_norm import add_rms_norm, examples, rms_norm


def test_equals_torch_and_gradcheck_in_fp64() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.rms_norm(x, (7,), weight, 1e-3)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), expected)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


def test_a_slice_of_a_wider_tensor_gets_its_gradient() -> None:
    torch.manual_seed(1)
    wide = torch.randn(4, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(8, dtype=torch.float64)
    (got,) = torch.autograd.grad(rms_norm(wide[:, 2:5], weight).sin().sum(), wide)
    plain = torch.nn.functional.rms_norm(wide[:, 2:5], (8,), weight, 1e-6)
    (expected,) = torch.autograd.grad(plain.sin().sum(), wide)
    torch.testing.assert_close(got, expected)


def test_rounds_once_and_to_the_autocast_dtype() -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(11, 9), torch.randn(9)
    exact = torch.nn.functional.rms_norm(x.double(), (9,), weight.double(), 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        got = rms_norm(x, weight)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)
    half = rms_norm(x.bfloat16(), weight)
    assert half.dtype == torch.bfloat16


def test_a_zero_vector_stays_zero_and_a_wrong_width_is_named() -> None:
    x = torch.zeros(2, 5, requires_grad=True)
    out = rms_norm(x, torch.ones(5))
    out.sum().backward()
    assert not out.any() and x.grad is not None and torch.isfinite(x.grad).all()
    with pytest.raises(ValueError, match="weight"):
        rms_norm(x, torch.ones(4))


def test_the_sum_and_its_norm_equal_the_steps_apart_gradients_too() -> None:
    torch.manual_seed(3)
    x, residual = torch.randn(2, 5, 7, 9, dtype=torch.float64).requires_grad_()
    weight = torch.randn(9, dtype=torch.float64, requires_grad=True)

    def apart() -> tuple[torch.Tensor, torch.Tensor]:
        return rms_norm(x + residual, weight), x + residual

    results = []
    for normed, total in (apart(), add_rms_norm(x, residual, weight)):
        grads = torch.autograd.grad((normed.sin() + total.cos()).sum(), (x, residual, weight))
        results.append((normed, total, *grads))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        assert torch.equal(add_rms_norm(x, residual, weight)[0], results[1][0])


def test_a_half_precision_branch_joins_an_fp32_stream() -> None:
    torch.manual_seed(4)
    x, residual, weight = torch.randn(6, 9).bfloat16(), torch.randn(6, 9), torch.ones(9)
    with torch.autocast("cpu", torch.bfloat16):
        normed, total = add_rms_norm(x, residual, weight)
    assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(total, x.float() + residual)


@pytest.mark.parametrize(
    ("x", "weight", "residual", "named"),
    [
        (torch.zeros(2, 4), torch.ones(1, 4), None, "weight"),
        (torch.tensor(1.0), torch.ones(()), None, "x must have"),
        (torch.zeros(2, 0), torch.ones(0), None, "x must have"),
        (torch.zeros(2, 4, dtype=torch.int64), torch.ones(4), None, "x must be floating"),
        (torch.zeros(2, 4), torch.ones(4, device="meta"), None, "weight is on meta"),
        (torch.zeros(2, 4), torch.ones(4), torch.zeros(4), "residual must be"),
        (torch.zeros(2, 4), torch.ones(4), torch.zeros(2, 4, device="meta"), "residual"),
        (torch.zeros(2, 4), torch.ones(4), torch.zeros(2, 4, dtype=torch.bool), "residual"),
    ],
)
def test_bad_input_is_named(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        rms_norm(x, weight) if residual is None else add_rms_norm(x, residual, weight)


def test_no_rows_give_no_rows() -> None:
    x = torch.zeros(0, 5, requires_grad=True)
    weight = torch.ones(5, requires_grad=True)
    rms_norm(x, weight).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 5)
    assert weight.grad is not None and not weight.grad.any()


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones() -> None:
    pytest.importorskip("triton")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from polyglyph.kernels.rms_norm_triton import add_rms_norm_triton, rms_norm_triton

    for example in examples("test", torch.float16, "cpu", 0):
        real = example.call(**example.inputs)
        with FakeTensorMode() as mode:
            inputs = {name: mode.from_tensor(t) for name, t in example.inputs.items()}
            for tensor in inputs.values():
                tensor.requires_grad_()
            together = "residual" in inputs
            form = add_rms_norm_triton if together else rms_norm_triton
            fake = form(**inputs, eps=1e-6, dtype=torch.float16)
            outs, reals = (fake, real) if together else ((fake,), (real,))
            grads = torch.autograd.grad([o.sum() for o in outs], list(inputs.values()))
        assert [(o.shape, o.dtype) for o in outs] == [(o.shape, o.dtype) for o in reals]
        assert [(g.shape, g.dtype) for g in grads] == [
            (t.shape, t.dtype) for t in example.inputs.values()
        ]
