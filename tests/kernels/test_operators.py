"""Each Triton form is an operator that torch.compile and fake tensors see whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import kernel_operators
import pytest

pytest.importorskip("triton")


def test_every_operator_tells_torch_the_truth() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, kernel_operators.__file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    checked = {row["operator"]: row["checks"] for row in map(json.loads, done.stdout.splitlines())}
    names = {name.removeprefix("polyglyph::") for name in checked}
    assert names == {
        "attention", "attention_backward", "cross_entropy", "cross_entropy_backward",
        "decode_attention", "heads", "heads_backward", "nearest_code", "nearest_code_residual",
        "nearest_code_sums", "rms_norm", "add_rms_norm", "rms_norm_backward", "rope",
        "sampling_head", "swiglu", "swiglu_backward",
    }  # fmt: skip
    differentiable = {name for name in names if f"{name}_backward" in names}
    for name in differentiable | {"add_rms_norm", "rope"}:
        assert "test_autograd_registration" in checked[f"polyglyph::{name}"], name
