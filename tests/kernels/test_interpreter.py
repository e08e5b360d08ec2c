"""Triton kernels in triton's interpreter, against fp64 and against torch in the same dtype.

The variable must stand before kernels are decorated, so every run is a process of its own
(tests/kernel_examples.py): outputs poisoned, and bf16, which the interpreter adds and multiplies
as integers without a word, is refused wherever it reaches arithmetic."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kernel_examples
import pytest

from polyglyph.kernels import TABLE

pytest.importorskip("triton")

KERNELS = [
    name
    for name, target in TABLE.items()
    if importlib.util.find_spec(target.partition(":")[0] + "_triton") is not None
]
SOURCES = sorted((Path(__file__).parents[2] / "polyglyph" / "kernels").glob("*_triton.py"))


def run(kernel: str, *dtypes: str, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a kernel's examples, from a process of their own."""
    command = [sys.executable, kernel_examples.__file__, "--kernel", kernel, "--seed", str(seed)]
    for dtype in dtypes:
        command += ["--dtype", dtype]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    *rows, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert last["calls"][f"{kernel}/triton"] > 0, f"nothing ran as triton: {last}"
    assert rows
    return rows


def explain(rows: list[dict[str, Any]]) -> str:
    wrong = [str(kernel_examples.Row(**row)) for row in rows if not row["ok"]]
    return f"{len(wrong)} of {len(rows)} tensors are wrong\n" + "\n".join(wrong)


@pytest.mark.parametrize("kernel", KERNELS)
def test_outputs_and_gradients_are_those_of_fp64(kernel: str) -> None:
    rows = run(kernel, "fp32", "fp16", "bf16")
    assert all(row["ok"] for row in rows), explain(rows)
    assert {row["dtype"] for row in rows} == {"fp32", "fp16", "bf16"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_other_values_give_the_same(kernel: str, seed: int) -> None:
    rows = run(kernel, "fp32", "fp16", "bf16", seed=seed)
    assert all(row["ok"] for row in rows), explain(rows)


# What triton 3.6 or 3.9 lacks, what the interpreter or a bare compiler cannot do, what would tune
# at import, and sums whose order the hardware chooses.
BANNED = {
    r"\bmake_block_ptr\b": "block pointers are gone from triton 3.9",
    r"\blibdevice\b": "the interpreter has none",
    r"\binline_asm_elementwise\b": "the interpreter has none",
    r"warp_specialize\s*=\s*True": "dropped or crashing, depending on the configuration",
    r"triton\.autotune": "configurations are a table per architecture",
    r"\batomic_add\b": "the order of the sum is not fixed",
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_sources_keep_to_the_language_of_both_tritons(source: Path) -> None:
    text = re.sub(r"#.*", "", source.read_text("utf-8"))
    found = [f"{pattern}: {why}" for pattern, why in BANNED.items() if re.search(pattern, text)]
    assert not found
    for call in re.finditer(r"tl\.dot\(", text):
        arguments = text[call.end() : call.end() + 300]
        assert "input_precision" in arguments, "a dot without input_precision is tf32 on a GPU"
    if "COMPILATIONS" in text:  # it launches
        assert "enable_fp_fusion" in text, "the default changes with triton 3.10"
