"""Every shipped configuration compiles for its architectures without a GPU, and the machine code
keeps the gate: nothing spilled on sm_90, shared memory within limits, promised opcodes there."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from polyglyph.kernels import TABLE, compiling
from polyglyph.kernels.contract import Compilation

triton = pytest.importorskip("triton")

KERNELS = [
    name
    for name, target in TABLE.items()
    if importlib.util.find_spec(target.partition(":")[0] + "_triton") is not None
]
FOLDER = Path(__file__).parents[2] / compiling.FOLDER
# What the report of a version is of: by triton 3.6 of sm_90 alone, where spills are refused.
REPORTED = {"sm_90"} if triton.__version__.startswith("3.6.") else {"sm_80", "sm_90"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled kernels of one test run, shared by its processes; never the user's own cache."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_CACHE_DIR", str(base / "triton-cache"))
    yield
    patch.undo()


def known() -> dict:
    path = compiling.report_path(FOLDER)
    if not path.is_file():
        pytest.skip(f"no report of triton {triton.__version__}: {path.name}")
    return json.loads(path.read_text("utf-8"))


def hold(compilations: list[Compilation], architectures: tuple[int, ...] | None) -> None:
    report, found = compiling.compile_all(compilations, architectures)
    assert report and not found, "\n".join(found)
    reported = {
        name: {target: facts for target, facts in entries.items() if target in REPORTED}
        for name, entries in report.items()
    }
    found = compiling.differences(reported, known())
    assert not found, "\n".join([*found, "python -m polyglyph.kernels.compiling --write"])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_configuration_of_each_function_keeps_the_gate_on_sm_90(kernel: str) -> None:
    (compilations,) = compiling.list_compilations([kernel]).values()
    hold(compiling.few(compilations, 90), (90,))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_all_configurations_keep_the_gate_everywhere(kernel: str) -> None:
    (compilations,) = compiling.list_compilations([kernel]).values()
    hold(compilations, None)


def test_the_report_covers_every_configuration_and_no_other() -> None:
    listed = compiling.list_compilations()
    every = [c for compilations in listed.values() for c in compilations]
    assert len({c.name for c in every}) == len(every)
    due = {c.name: {f"sm_{a}" for a in c.architectures} & REPORTED for c in every}
    due = {name: targets for name, targets in due.items() if targets}
    assert {name: set(entries) for name, entries in known().items()} == due
    for kernel, compilations in listed.items():
        shipped = {a for c in compilations for a in c.architectures}
        assert shipped >= {80, 90}, kernel


def test_the_gate_refuses_spills_shared_memory_and_missing_opcodes() -> None:
    promised = Compilation("k", None, {}, {}, 4, 2, opcodes={90: ("HGMMA",)})
    good = compiling.Facts(128, 0, 0, 1024, {"HGMMA": 4})
    assert compiling.problems(promised, 90, good) == []
    spilled = compiling.Facts(255, 16, 24, 1024, {"HGMMA": 4, "STL": 2, "LDL": 4})
    assert "24 bytes spilled" in compiling.problems(promised, 90, spilled)[0]
    assert compiling.problems(promised, 80, spilled) == []
    assert compiling.problems(promised, 90, spilled, "3.9.1")
    assert compiling.problems(promised, 90, spilled, "3.6.0")
    # What another triton spills stands in its own report, and is held to that.
    assert compiling.problems(promised, 90, spilled, "3.7.0") == []
    large = compiling.Facts(128, 0, 0, 232_449, {"HGMMA": 4})
    assert "232,449 bytes of shared memory" in compiling.problems(promised, 90, large)[0]
    assert compiling.problems(promised, 90, compiling.Facts(128, 0, 0, 0))[0].startswith("k sm_90")


def test_differences_from_the_report_are_named() -> None:
    was = {"k": {"sm_90": {"registers": 100, "stack_bytes": 0, "spill_bytes": 0,
                           "shared_bytes": 8, "opcodes": {"HGMMA": 4}}}}  # fmt: skip
    assert compiling.differences(was, was) == []
    near = {"k": {"sm_90": was["k"]["sm_90"] | {"registers": 108, "opcodes": {"HGMMA": 9}}}}
    assert compiling.differences(near, was) == []
    far = {"k": {"sm_90": was["k"]["sm_90"] | {"registers": 109, "opcodes": {"STL": 1}}}}
    lines = compiling.differences(far, was)
    assert len(lines) == 3 and any("HGMMA is gone" in line for line in lines)
    assert compiling.differences({"n": near["k"]}, was) == ["n sm_90: not in the report"]
