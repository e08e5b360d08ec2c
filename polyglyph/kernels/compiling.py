"""Every shipped configuration, compiled without a GPU, and what the machine code says of it.

A kernel's `COMPILATIONS` go through `triton.compile` for a named architecture; registers, stack,
spilled bytes, shared memory and opcodes are read from the cubin with the tools in triton's own
wheel. The gate: no spilled byte on sm_90 (by triton 3.6 and 3.9), shared memory within the
architecture's limit, promised opcodes present. The report is a JSON file that is compared with the
one in the repository.

    python -m polyglyph.kernels.compiling                compile all, compare with the report
    python -m polyglyph.kernels.compiling --write        ... and write the report anew
    python -m polyglyph.kernels.compiling -k attention -a 90

Needs triton and neither a driver nor a GPU; TRITON_INTERPRET must not be set. Knows no kernel."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from polyglyph.kernels import TABLE, backend
from polyglyph.kernels.contract import Compilation

FOLDER = Path("docs/benchmarks")
# Bytes of shared memory that one program may ask for. An A100 has 166,912, but what ships for 80
# serves 86, 89 and 120 too.
SHARED_LIMITS = dict.fromkeys((80, 86, 89, 120), backend.SHARED[80])
SHARED_LIMITS |= dict.fromkeys((90, 100), backend.SHARED[90])
NO_SPILLS = (90,)
# The tritons by whose reports the tiles were chosen. Others may allot registers differently: their
# spills are what their own report says, not none.
CHOSEN_WITH = ("3.6", "3.9")
COUNTED = (
    "HGMMA", "HMMA", "IMMA", "UTCHMMA", "UTMALDG", "UTMASTG", "LDGSTS", "LDL", "STL", "RED",
    "ATOMG", "USETMAXREG", "FFMA", "MUFU",
)  # fmt: skip
# Registers may move by this many between two builds of one triton version (none were seen to).
REGISTER_TOLERANCE = 8
# Opcodes whose presence is compared exactly; the counts of others are for the reader.
PRESENT = ("HGMMA", "HMMA", "UTMALDG", "LDGSTS", "LDL", "STL", "RED", "ATOMG")


@dataclass(frozen=True)
class Facts:
    """What one cubin uses."""

    registers: int
    stack_bytes: int
    spill_bytes: int  # stores and loads together, by ptxas
    shared_bytes: int
    opcodes: dict[str, int] = field(default_factory=dict)  # those of COUNTED that occur


def list_compilations(kernels: Iterable[str] = ()) -> dict[str, list[Compilation]]:
    """Kernel name -> its compilations; kernels without a Triton form are left out."""
    found: dict[str, list[Compilation]] = {}
    for name in kernels or TABLE:
        module = TABLE[name].partition(":")[0] + "_triton"
        if importlib.util.find_spec(module) is not None:
            found[name] = list(importlib.import_module(module).COMPILATIONS)
    return found


def describe(device: torch.device) -> list[dict[str, Any]]:
    """What each kernel runs as for tensors on `device`, why, and the shipped configurations (of the
    device's architecture, off a GPU of all)."""
    version = None
    listed: dict[str, list[Compilation]] = {}
    if backend.has_triton():
        import triton

        version, listed = triton.__version__, list_compilations()
    form, why = backend.explain(device)
    architecture = backend.architecture(device) if device.type == "cuda" else None
    rows = []
    for name, target in TABLE.items():
        has_form = importlib.util.find_spec(target.partition(":")[0] + "_triton") is not None
        configurations: dict[str, list[str]] = {}
        for compilation in listed.get(name, ()):
            for each in compilation.architectures:
                if architecture in (None, each):
                    configurations.setdefault(f"sm_{each}", []).append(compilation.name)
        rows.append({
            "kernel": name,
            "runs": form if has_form else "torch",
            "why": why if has_form else "it has no Triton form",
            "triton": version,
            "configurations": configurations,
        })  # fmt: skip
    return rows


def few(compilations: Iterable[Compilation], architecture: int) -> list[Compilation]:
    """The first compilation of each jitted function: what the quick tests compile."""
    first: dict[str, Compilation] = {}
    for compilation in compilations:
        if architecture in compilation.architectures:
            first.setdefault(compilation.kernel.__name__, compilation)
    return list(first.values())


def compile_one(compilation: Compilation, architecture: int) -> Facts:
    """Compile for sm_`architecture` and read the cubin; triton's own errors pass through."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = compilation.kernel.arg_names
    missing = set(names) ^ set(compilation.signature)
    assert not missing, f"{compilation.name}: signature and arguments differ in {sorted(missing)}"
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in compilation.divisible}
    source = ASTSource(
        compilation.kernel, dict(compilation.signature), dict(compilation.constants), attributes
    )
    options = {
        "num_warps": compilation.num_warps,
        "num_stages": compilation.num_stages,
        "enable_fp_fusion": compilation.enable_fp_fusion,
    }
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, stack = _resources(made.asm["cubin"])
    return Facts(
        registers=registers,
        stack_bytes=stack,
        # Spilled registers live on the stack, so without one there are none.
        spill_bytes=_spills(made.asm["ptx"], architecture, compilation) if stack else 0,
        shared_bytes=made.metadata.shared,
        opcodes=_opcodes(made.asm["cubin"]),
    )


def problems(
    compilation: Compilation, architecture: int, facts: Facts, triton_version: str = CHOSEN_WITH[-1]
) -> list[str]:
    """What the gate refuses of one compilation, a line each."""
    name = f"{compilation.name} sm_{architecture}"
    found = []
    limit = SHARED_LIMITS[architecture]
    if facts.shared_bytes > limit:
        found.append(f"{name}: {facts.shared_bytes:,} bytes of shared memory, limit {limit:,}")
    version = ".".join(triton_version.split(".")[:2])
    strict = architecture in NO_SPILLS and version in CHOSEN_WITH
    if strict and (facts.spill_bytes or facts.opcodes.get("STL")):
        found.append(f"{name}: {facts.spill_bytes:,} bytes spilled (stack {facts.stack_bytes:,})")
    for opcode in compilation.opcodes.get(architecture, ()):
        if not facts.opcodes.get(opcode):
            found.append(f"{name}: no {opcode} in the machine code, which is promised")
    return found


# --- what the tools say -------------------------------------------------------------------------


def _tool(name: str) -> str:
    """A tool of triton's wheel."""
    from triton import knobs

    return getattr(knobs.nvidia, name).path


def _run(arguments: list[str], data: bytes, suffix: str) -> str:
    """The output of a tool on a file that holds `data`; its path goes behind the arguments."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        done = subprocess.run(
            [*arguments, file.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise RuntimeError(f"{Path(arguments[0]).name}: {output.strip()[:500]}")
    return output


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes)"""
    text = _run([_tool("cuobjdump"), "--dump-resource-usage"], cubin, ".cubin")
    match = re.search(r"REG:(\d+)\s+STACK:(\d+)", text)
    assert match is not None, text
    return int(match[1]), int(match[2])


def _opcodes(cubin: bytes) -> dict[str, int]:
    text = _run([_tool("nvdisasm"), "-c"], cubin, ".cubin")
    # "/*0f30*/  @P0 HGMMA.64x128x16.F32 ..." -> HGMMA
    names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", text, re.M)
    counts = Counter(names)
    return {name: counts[name] for name in COUNTED if counts[name]}


def _spills(ptx: str, architecture: int, compilation: Compilation) -> int:
    """Bytes of spill stores and loads, as ptxas counts them."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(architecture).path
    match = re.search(r"^\.target\s+(sm_\w+)", ptx, re.M)
    assert match is not None
    arguments = [tool, "-v", f"--gpu-name={match[1]}", "-o", "/dev/null"]
    if not compilation.enable_fp_fusion:
        arguments.append("--fmad=false")
    text = _run(arguments, ptx.encode(), ".ptx")
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert found is not None, text
    return int(found[1]) + int(found[2])


# --- the report ---------------------------------------------------------------------------------


def report_path(folder: str | Path = FOLDER) -> Path:
    """Where the report of the installed triton lies in a checkout."""
    import triton

    return Path(folder) / f"compilations-{triton.__version__}.json"


def compile_all(
    compilations: Iterable[Compilation],
    architectures: Iterable[int] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(report, problems): name -> "sm_90" -> facts, for each compilation's own architectures or
    those of them that are asked for. What doesn't compile is a problem, not an exception."""
    version = importlib.metadata.version("triton")
    wanted = None if architectures is None else set(architectures)
    report: dict[str, dict[str, Any]] = {}
    found: list[str] = []
    for compilation in compilations:
        assert compilation.name not in report, f"two compilations are named {compilation.name!r}"
        for architecture in compilation.architectures:
            if wanted is not None and architecture not in wanted:
                continue
            try:
                facts = compile_one(compilation, architecture)
            except (RuntimeError, ValueError, TypeError, subprocess.SubprocessError) as error:
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                found.append(f"{compilation.name} sm_{architecture}: doesn't compile: {reason[0]}")
                continue
            report.setdefault(compilation.name, {})[f"sm_{architecture}"] = asdict(facts)
            found += problems(compilation, architecture, facts, version)
            say(f"{compilation.name} sm_{architecture}: {shown(facts)}")
    return report, found


def shown(facts: Facts) -> str:
    """A line."""
    codes = ", ".join(f"{count} {name}" for name, count in facts.opcodes.items())
    return (
        f"{facts.registers} registers, stack {facts.stack_bytes}, spills {facts.spill_bytes}, "
        f"shared {facts.shared_bytes:,}; {codes}"
    )


def differences(report: dict[str, dict[str, Any]], known: dict[str, dict[str, Any]]) -> list[str]:
    """Where `report` leaves the one in the repository: spills, stack, shared memory and the
    presence of opcodes exactly, registers within REGISTER_TOLERANCE."""
    found = []
    for name, entries in report.items():
        for target, facts in entries.items():
            due = known.get(name, {}).get(target)
            if due is None:
                found.append(f"{name} {target}: not in the report")
                continue
            for key in ("spill_bytes", "stack_bytes", "shared_bytes"):
                if facts[key] != due[key]:
                    found.append(f"{name} {target}: {key} is {facts[key]}, was {due[key]}")
            if abs(facts["registers"] - due["registers"]) > REGISTER_TOLERANCE:
                was = due["registers"]
                found.append(f"{name} {target}: {facts['registers']} registers, were {was}")
            for opcode in PRESENT:
                if (opcode in facts["opcodes"]) != (opcode in due["opcodes"]):
                    state = "appeared" if opcode in facts["opcodes"] else "is gone"
                    found.append(f"{name} {target}: {opcode} {state}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """0: the gate holds and the report is the known one; 1: not, with a line for each reason."""
    parser = argparse.ArgumentParser(prog="python -m polyglyph.kernels.compiling")
    parser.add_argument("-k", "--kernel", action="append", choices=list(TABLE), default=[])
    parser.add_argument("-a", "--architecture", action="append", type=int, default=None)
    parser.add_argument("--write", action="store_true", help="write the report of what was made")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where reports lie")
    options = parser.parse_args(arguments)
    chosen = list_compilations(options.kernel)
    every = [compilation for listed in chosen.values() for compilation in listed]
    report, found = compile_all(every, options.architecture, lambda line: print(line, flush=True))
    path = report_path(options.folder)
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if options.write:
        whole = not options.kernel and options.architecture is None
        _write(path, report if whole else _merged(known, report))
    else:
        found += differences(report, known)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


def _merged(known: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return known | {name: known.get(name, {}) | entries for name, entries in new.items()}


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(report[name])}" for name in sorted(report))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
