"""The examples of every kernel on a GPU, as on the interpreter, and what only a GPU can show."""

from __future__ import annotations

import kernel_examples
import pytest
import torch

from polyglyph.kernels import TABLE, backend

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", list(kernel_examples.DTYPES))
@pytest.mark.parametrize("kernel", list(TABLE))
def test_outputs_and_gradients_are_those_of_fp64(kernel: str, dtype: str) -> None:
    rows = []
    for example in kernel_examples.list_examples(kernel, dtype, "test", "cuda", 0):
        rows += kernel_examples.check(kernel, dtype, example, "triton")
    wrong = [str(row) for row in rows if not row.ok]
    assert rows and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kernel", list(TABLE))
def test_a_call_repeated_gives_the_same_bits(kernel: str) -> None:
    for example in kernel_examples.list_examples(kernel, "bf16", "test", "cuda", 1):
        with backend.using("triton"):
            first = kernel_examples.run_example(example)
            for _ in range(5):
                again = kernel_examples.run_example(example)
                for name, tensor in first.items():
                    same = torch.equal(tensor.nan_to_num(), again[name].nan_to_num())
                    assert same, f"{example.name}: {name}"
