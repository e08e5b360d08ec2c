"""Training, encoding and decoding really run the kernels: proven by counting calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import kernels_in_use
import pytest

pytest.importorskip("triton")


def test_tiny_trains_a_step_and_answers_on_triton_as_on_torch() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, kernels_in_use.__file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    torch, triton = found["torch"], found["triton"]
    for kernel in ("attention", "decode_attention", "cross_entropy", "nearest_code"):
        assert triton["calls"].get(f"{kernel}/triton", 0) > 0, triton["calls"]
    assert not [name for name in triton["calls"] if name.endswith("/torch")], triton["calls"]
    assert not [name for name in torch["calls"] if name.endswith("/triton")], torch["calls"]
    for kernel in ("attention", "cross_entropy"):
        assert triton["step_calls"][f"{kernel}/triton"] > 0, "the step itself went another way"
    assert triton["ids"] == torch["ids"], "the codecs found other codes"
    assert found["distances"]["logits"] < 1e-4
    assert found["distances"]["decoded"] < 1e-4
    assert triton["loss"] == pytest.approx(torch["loss"], rel=1e-5)
    assert triton["grad_norm"] == pytest.approx(torch["grad_norm"], rel=1e-4)
    assert len(triton["codes"]) == 16 and triton["codes"] == torch["codes"]
