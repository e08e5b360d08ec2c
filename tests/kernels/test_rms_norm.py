from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.rms_norm import rms_norm


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
