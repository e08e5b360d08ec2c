from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.swiglu import swiglu


def test_equals_the_formula_and_gradcheck_in_fp64() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 14, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(swiglu(x), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (x,))


def test_an_odd_width_is_named() -> None:
    with pytest.raises(ValueError, match="even"):
        swiglu(torch.zeros(2, 3))
