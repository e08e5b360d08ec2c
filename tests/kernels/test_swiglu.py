from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.swiglu import examples, swiglu


def test_equals_the_formula_and_gradcheck_in_fp64() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 14, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(swiglu(x), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (x,))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="even"):
        swiglu(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="even"):
        swiglu(torch.tensor(1.0))
    with pytest.raises(ValueError, match="floating point"):
        swiglu(torch.zeros(2, 4, dtype=torch.int32))


def test_a_strided_input_and_no_rows() -> None:
    torch.manual_seed(1)
    wide = torch.randn(4, 6, 8, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(swiglu(wide[:, 1::2]).sin().sum(), wide)
    (expected,) = torch.autograd.grad(swiglu(wide[:, 1::2].contiguous()).sin().sum(), wide)
    torch.testing.assert_close(got, expected)
    assert swiglu(torch.zeros(0, 6)).shape == (0, 3)


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones() -> None:
    pytest.importorskip("triton")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from polyglyph.kernels.swiglu_triton import swiglu_triton

    for example in examples("test", torch.float16, "cpu", 0):
        real = example.call(**example.inputs)
        with FakeTensorMode() as mode:
            x = mode.from_tensor(example.inputs["x"]).requires_grad_()
            fake = swiglu_triton(x)
            (grad,) = torch.autograd.grad(fake.sum(), x)
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype)
