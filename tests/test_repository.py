"""The laws of the code base (CONTRIBUTING.md), each as a small test, so that taste does not
depend on vigilance."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyglyph.tokenizers import MODALITIES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "polyglyph"
DRAWERS = {"utils", "util", "misc", "common", "helpers", "helper", "tools", "stuff", "shared"}
PARTS = ("tokenizers", "model", "kernels", "train", "eval")

# Where a modality may be compared by its name: where it is defined, laid out, read from files,
# and scored.
MAY_NAME_MODALITIES = ("tokenizers/", "sequence/", "media.py", "eval/tasks/")

# Modules whose claim is tested elsewhere, and where. The list only shrinks.
# Families that one file tests together: media of the world through their checkers, evaluation
# tasks through the runner that runs all of them.
_FAMILIES = {
    "bench/test_benches.py": "bench/cli_start.py bench/runner.py bench/training.py",
    "bench/test_kernels.py": "bench/kernel_cases/cpu.py bench/kernel_cases/gpu.py "
    "bench/kernel_cases/measuring.py",
    "data/shapes/test_check.py": "data/shapes/check_sound.py data/shapes/clip.py "
    "data/shapes/picture.py data/shapes/sound.py",
    "data/shapes/test_captions.py": "data/shapes/claims.py",
    "data/shapes/test_edits.py": "data/shapes/pusher.py",
    "data/shapes/test_questions.py": "data/shapes/regions.py",
    "kernels/test_interpreter.py": "kernels/contract.py",
    "test_demo.py": "eval/demo_page.py",
    "eval/test_runner.py": "eval/files.py eval/machine.py eval/page.py eval/pairs.py "
    "eval/reconstruction.py eval/report.py eval/scoring.py",
}
TESTED_ELSEWHERE: dict[str, str] = (
    {module: test for test, modules in _FAMILIES.items() for module in modules.split()}
    | {
        path.relative_to(PACKAGE).as_posix(): "eval/test_runner.py"
        for path in PACKAGE.glob("eval/tasks/*.py")
        if path.stem != "__init__"
    }
    | {  # the Triton form of a kernel has its kernel's test file
        path.relative_to(
            PACKAGE
        ).as_posix(): f"kernels/test_{re.sub('(_tiles)?_triton$', '', path.stem)}.py"
        for path in PACKAGE.glob("kernels/*_triton.py")
    }
)


def built(name: str) -> bool:
    """True when the module is there: the laws hold for what is built."""
    return importlib.util.find_spec("polyglyph") is not None and (
        (PACKAGE / f"{name}.py").exists() or (PACKAGE / name / "__init__.py").exists()
    )


def modules() -> list[str]:
    """All modules of the package as paths below it, e.g. "model/sampling.py"."""
    return sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"), filename=module)


# ---------------------------------------------------------------- law 1: imports only go down


def floors() -> list[list[str]]:
    """The floors of pyproject.toml, top first; each a list of room names."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c for c in contracts["contracts"] if c["id"] == "floors")["layers"]
    return [re.findall(r"\w+", layer) for layer in layers]


def own_imports(module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name below polyglyph) of every import, inside functions too."""
    package = ["polyglyph", *Path(module).parent.parts]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("polyglyph."):
                yield node.lineno, name.removeprefix("polyglyph.")


def test_imports_only_go_down() -> None:
    level = {room: -i for i, layer in enumerate(floors()) for room in layer}
    wrong = []
    for module in modules():
        room = Path(module).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for line, name in own_imports(module):
            target = name.split(".")[0]
            if target not in level:  # an attribute of the lazy package: the facade
                target = "pipeline"
            files_of_one_folder = all((PACKAGE / f"{r}.py").exists() for r in (room, target))
            same = target == room or (level[target] == level[room] and files_of_one_folder)
            if not same and level[target] >= level[room]:
                wrong.append(f"{module}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "may_see"),
    [
        ("sequence", ("tokenizers.base",)),  # the grammar knows codes, not codecs
        ("model", ("kernels",)),  # ids, slots and a vocabulary size
        ("serve", ("pipeline",)),
    ],
)
def test_room_sees_only_what_the_architecture_says(room: str, may_see: tuple[str, ...]) -> None:
    allowed = (*may_see, room, *floors()[-1])
    wrong = [
        f"{module}:{line} imports {name}"
        for module in modules()
        if Path(module).parts[0] == room
        for line, name in own_imports(module)
        if not any(name == a or name.startswith(a + ".") for a in allowed)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["sequence", "errors", "config", "lookup", "media"])
def test_room_does_without_torch(room: str) -> None:
    wrong = [
        module
        for module in modules()
        if Path(module).parts[0].removesuffix(".py") == room
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        )
        if name and name.split(".")[0] == "torch"
    ]
    assert not wrong, f"{wrong} import torch"


# ---------------------------------------------------------------- law 2: one word, one place


def test_every_module_has_its_test_under_the_same_name() -> None:
    missing = []
    for module in modules():
        path = Path(module)
        if path.stem in ("__init__", "__main__"):
            continue
        if not (ROOT / "tests" / path.parent / f"test_{path.name}").exists():
            missing.append(module)
    unlisted = sorted(set(missing) - set(TESTED_ELSEWHERE))
    assert not unlisted, f"no test file for {unlisted}"
    done = sorted(set(TESTED_ELSEWHERE) - set(missing))
    assert not done, f"strike {done} from TESTED_ELSEWHERE"
    gone = [test for test in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / test).exists()]
    assert not gone, f"TESTED_ELSEWHERE names missing files {gone}"


def test_architecture_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {Path(m).parts[0] for m in modules()} - {"__init__.py", "__main__.py"}
    missing = sorted(r for r in rooms if r.removesuffix(".py") not in page)
    assert not missing, f"docs/architecture.md does not name {missing}"


# ---------------------------------------------------------------- law 3: no branch on a modality


def named_modalities(node: ast.expr | ast.pattern) -> bool:
    """True for a literal that is, or a literal collection that holds, a modality's name."""
    if isinstance(node, ast.MatchValue):
        return named_modalities(node.value)
    if isinstance(node, ast.MatchOr):
        return any(map(named_modalities, node.patterns))
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(named_modalities, node.elts))
    return isinstance(node, ast.Constant) and node.value in MODALITIES


def branches_on_modalities(source: ast.AST) -> Iterator[int]:
    for node in ast.walk(source):
        if isinstance(node, ast.match_case) and named_modalities(node.pattern):
            yield node.pattern.lineno
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
                equal = isinstance(op, ast.Eq | ast.NotEq) and (
                    named_modalities(left) or named_modalities(right)
                )
                # `"image" in table` asks a table; `m in ("image", "video")` is a branch
                member = isinstance(op, ast.In | ast.NotIn) and named_modalities(right)
                if equal or member:
                    yield node.lineno


def test_law_three_sees_a_branch_and_spares_a_lookup() -> None:
    seen = "m == 'image'\nm in ('text', 'x')\nmatch m:\n  case 'audio' | 'b': pass\n"
    spared = "'image' in table\ntable['image']\nm == 'picture'\nm == other\n"
    assert sorted(branches_on_modalities(ast.parse(seen))) == [1, 2, 4]
    assert not list(branches_on_modalities(ast.parse(spared)))


def test_no_branch_on_a_modality_outside_its_own_files() -> None:
    wrong = [
        f"{module}:{line}"
        for module in modules()
        if not module.startswith(MAY_NAME_MODALITIES)
        for line in branches_on_modalities(tree(module))
    ]
    assert not wrong, f"compared with a modality's name: {wrong}"


# ---------------------------------------------------------------- law 4: one grammar


def test_control_names_stand_in_the_grammar_only() -> None:
    names = {"row_end", "frame_end"} | {f"{w}_{m}" for w in ("begin", "end") for m in MODALITIES}
    wrong = [
        f"{module}:{node.lineno} {node.value!r}"
        for module in modules()
        if not module.startswith("sequence/")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not wrong, f"a layout outside sequence/: {wrong}"


# ---------------------------------------------------------------- law 5: no drawers


def test_no_drawer_files() -> None:
    paths = [p for top in ("polyglyph", "tests", "examples") for p in (ROOT / top).rglob("*")]
    words = {p: re.split(r"[_\W]+", p.stem.removeprefix("test_")) for p in paths}
    wrong = [p for p, w in words.items() if p.suffix in ("", ".py") and DRAWERS & set(w)]
    assert not wrong, f"name the concept instead: {[p.relative_to(ROOT).as_posix() for p in wrong]}"


# ---------------------------------------------------------------- the package as installed


def fresh_python(code: str) -> str:
    """Run code in a new interpreter and return what it printed last."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("part", PARTS)
def test_the_five_parts_are_sub_packages(part: str) -> None:
    if not built(part):
        pytest.skip(f"polyglyph.{part} is not built")
    module = importlib.import_module(f"polyglyph.{part}")
    assert Path(module.__file__ or "").parent == PACKAGE / part


def test_what_is_shipped_is_small_and_in_bf16() -> None:
    shipped = PACKAGE / "checkpoints"
    files = [path for path in shipped.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    counts = {True: 0, False: 0}  # parameters of tiny: of its codecs, of its model
    for path in files:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            assert {entry["dtype"] for entry in tensors} == {"BF16"}, path
            if "tiny" in path.parts:
                is_codec = "tokenizers" in path.relative_to(shipped).parts
                counts[is_codec] += sum(math.prod(entry["shape"]) for entry in tensors)
    assert 0 < counts[True] <= 5_000_000 and 0 < counts[False] <= 7_000_000


def test_help_imports_no_heavy_library() -> None:
    if not built("cli"):
        pytest.skip("polyglyph.cli is not built")
    heavy = (
        "torch transformers datasets accelerate vector_quantize_pytorch scipy skimage pandas "
        "fastapi uvicorn ray peft torchao triton encodec espeakng_loader"
    )
    found = fresh_python(
        "import sys\n"
        "sys.argv = ['polyglyph', '--help']\n"
        "from polyglyph.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"print('loaded:', sorted(set({heavy.split()}) & set(sys.modules)))"
    )
    assert found == "loaded: []"


def test_importing_the_package_is_lazy() -> None:
    found = fresh_python(
        "import sys, polyglyph; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    assert found == "[]"


@pytest.mark.parametrize("name", ["torchvision", "torchaudio"])
def test_wheels_that_break_a_cpu_machine_are_absent(name: str) -> None:
    installed = {(d.metadata["Name"] or "").lower() for d in importlib.metadata.distributions()}
    assert name not in installed, f"pip uninstall {name}: it breaks beside a CPU torch"


def test_installed_core_meets_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert pins["torch"] == "2.13.0"
    assert not any("+" in v or "@" in k for k, v in pins.items()), "a local version or path"
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    normal = {re.sub(r"[-_.]+", "-", k).lower() for k in pins}
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", d)[0]).lower() for d in core}
    assert names <= normal, f"not pinned: {sorted(names - normal)}"


# ---------------------------------------------------------------- the docs run

BLOCK = re.compile(r"^```(python|sh) run( slow)?\n(.*?)^```", re.M | re.S)


def pages() -> list[str]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(p.relative_to(ROOT).as_posix() for p in found)


def run_blocks(page: str, folder: Path, *, slow: bool) -> int:
    """Run the blocks of a page in order, in one folder, and return how many there were.

    A block may use files that an earlier block of its page wrote."""
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [b for b in BLOCK.findall(text) if slow or not b[1]]
    for language, _, body in blocks:
        command = (
            [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        )
        done = subprocess.run(
            [*command, body],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3600 if slow else 120,
        )
        assert done.returncode == 0, f"{page}:\n{body}\n{done.stdout}\n{done.stderr}"
    return len(blocks)


def has_blocks(page: str, slow: str) -> bool:
    return any(b[1] == slow for b in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))


def need_tiny() -> None:
    if not (built("cli") and (PACKAGE / "checkpoints" / "tiny" / "checkpoint.json").exists()):
        pytest.skip("the built-in checkpoint is not built")


@pytest.mark.parametrize("page", [p for p in pages() if has_blocks(p, "")])
def test_docs_run(page: str, tmp_path: Path) -> None:
    if not built("cli"):
        pytest.skip("polyglyph.cli is not built")
    assert run_blocks(page, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in pages() if has_blocks(p, " slow")])
def test_docs_run_to_the_end(page: str, tmp_path: Path) -> None:
    need_tiny()
    assert run_blocks(page, tmp_path, slow=True)


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("*.py")))
def test_example_runs(example: str, tmp_path: Path) -> None:
    need_tiny()
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()), "an example leaves a file to look at"


def test_links_between_pages_lead_somewhere() -> None:
    wrong = []
    for page in pages():
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
            if "://" not in target and not ((ROOT / page).parent / target).exists():
                wrong.append(f"{page}: {target}")
    assert not wrong, "\n".join(wrong)
