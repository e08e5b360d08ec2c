"""Kernels over their own `examples`, held against fp64: what the interpreter's tests (in a process
of their own: this file is their script) and the GPU's share. With --device cuda the script only
launches them, for compute-sanitizer.

One row per tensor: its relative L2 error, and whether |ours - fp64| is within twice the error of
torch in the same dtype plus a small probe of rounding (FlashAttention's rule)."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from polyglyph.kernels import TABLE, backend
from polyglyph.kernels.contract import Example

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Relative L2 errors. bf16: the interpreter's cast truncates, which costs up to one ulp, 2^-7.
TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 2e-2}


@dataclass(frozen=True)
class Row:
    """One tensor of one example."""

    kernel: str
    dtype: str
    example: str
    tensor: str  # "output 0", "gradient of q"
    ok: bool
    error: float  # relative L2 against fp64
    largest: float  # of |ours - fp64|
    allowed: float  # for `largest`
    seconds: float  # of the CPU, for the example in this form
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.kernel} {self.dtype} {self.example}, {self.tensor}: error {self.error:.1e}, "
            f"largest {self.largest:.1e} of {self.allowed:.1e} {self.note}"
        )


def list_examples(kernel: str, dtype: str, size: str, device: str, seed: int) -> list[Example]:
    module = importlib.import_module(TABLE[kernel].partition(":")[0])
    return module.examples(size, DTYPES[dtype], torch.device(device), seed)


def check(kernel: str, dtype: str, example: Example, form: str) -> list[Row]:
    """The rows of one example, run in `form`, outputs and gradients."""
    began = time.process_time()
    with backend.using(form), poisoned():
        ours = run_example(example)
    seconds = time.process_time() - began
    with backend.using("torch"):
        same = _run(example, example.inputs, ours)
    wide = {name: _widened(value) for name, value in example.inputs.items()}
    due = _run(example, wide, ours, reference=True)
    rows = []
    for name, tensor in ours.items():
        judged = _judge(tensor, same.get(name), due[name], dtype, example.exact)
        rows.append(Row(kernel, dtype, example.name, name, *judged, round(seconds, 3)))
    return rows


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory from torch.empty and its kin holds NaN, integers their largest value."""
    before = torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run_example(example: Example) -> dict[str, torch.Tensor]:
    """Outputs and gradients by name, in whatever form the backend picks."""
    return _run(example, example.inputs, None)


def _run(
    example: Example,
    inputs: Mapping[str, Any],
    ours: Mapping[str, torch.Tensor] | None,
    reference: bool = False,
) -> dict[str, torch.Tensor]:
    """Outputs and gradients by name. Outputs that `ours` can't differentiate are no path to a
    gradient on the other sides either."""
    inputs = dict(inputs)
    for name in example.gradients:
        inputs[name] = inputs[name].detach().clone().requires_grad_()
    made = (example.reference if reference else example.call)(**inputs)
    outputs = [made] if isinstance(made, torch.Tensor) else list(made)
    named = {f"output {i}": output for i, output in enumerate(outputs)}
    if ours is None:
        paths = [name for name, output in named.items() if output.requires_grad]
    else:
        paths = [name for name in named if name in ours and ours[name].requires_grad]
    if example.gradients:
        assert paths, f"{example.name}: no output carries a gradient"
        generator = torch.Generator().manual_seed(7)
        weights = []
        for name in paths:  # what the dtype under test can hold, the same on every side
            drawn = torch.randn(named[name].shape, generator=generator)
            drawn = drawn.to((named if ours is None else ours)[name].dtype)
            weights.append(drawn.to(named[name]))
        # An output that is constant on one side (lse over one key) has gradients of zero there.
        given = [(named[n], w) for n, w in zip(paths, weights) if named[n].requires_grad]
        outs, weights = [out for out, _ in given], [weight for _, weight in given]
        wanted = [inputs[name] for name in example.gradients]
        found = torch.autograd.grad(outs, wanted, weights, allow_unused=True)
        for name, tensor, gradient in zip(example.gradients, wanted, found, strict=True):
            known = torch.zeros_like(tensor) if gradient is None else gradient
            named[f"gradient of {name}"] = known
    return named


def _widened(value: Any) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if is_float else value


def _judge(
    ours: torch.Tensor, same: torch.Tensor | None, due: torch.Tensor, dtype: str, exact: bool
) -> tuple[bool, float, float, float]:
    """(ok, relative L2 error, largest error, allowed error). Integers are equal when `exact`, and
    written in any case."""
    assert ours.shape == due.shape, (ours.shape, due.shape)
    if not ours.is_floating_point():
        other = due.long() if exact else ours.long().clamp_max(torch.iinfo(torch.int32).max - 1)
        wrong = float((ours.long() != other).sum())
        return wrong == 0, wrong / max(1, ours.numel()), wrong, 0.0
    due = due.detach().double()
    ours = ours.detach()
    # Infinities (an lse of a row without keys) must be the same, and are then left out.
    finite = due.isfinite()
    if not torch.equal(ours.double()[~finite].nan_to_num(), due[~finite].nan_to_num()):
        return False, float("inf"), float("inf"), 0.0
    left, right = ours.double()[finite], due[finite]
    if left.numel() == 0:
        return True, 0.0, 0.0, 0.0
    rounded = right.to(ours.dtype)
    probe = 2 * ((rounded + 0.3 - 0.3).double() - right).abs().max()
    if dtype == "bf16" and backend.interpreting():  # its cast truncates: up to one ulp
        probe = probe + 2**-7 * right.abs().max()
    # One ulp of the largest: a scalar's torch error is now and then 0. Four in fp32, where a sum of
    # 129 rows in another order went past one by a fifth (relative L2 error 4e-7).
    n_ulps = 4 if dtype == "fp32" else 1
    allowed = probe + n_ulps * torch.finfo(ours.dtype).eps * right.abs().max()
    floor = torch.tensor(TOLERANCE[dtype])
    if same is not None:
        torch_error = same.detach().double()[finite] - right
        allowed = allowed + 2 * torch_error.abs().max()
        floor = torch.maximum(floor, 2 * _relative(torch_error, right))
    largest = (left - right).abs().max()
    error = _relative(left - right, right)
    # Comparisons with NaN are False: an unwritten output is never right.
    ok = bool(error <= floor) and bool(largest <= allowed)
    return ok, float(error), float(largest), float(allowed)


def _relative(difference: torch.Tensor, due: torch.Tensor) -> torch.Tensor:
    norm = due.norm()
    return difference.norm() / norm if norm > 0 else difference.norm()


# --- the interpreter's process ------------------------------------------------------------------


class RawBf16(AssertionError):
    """A bf16 value in arithmetic, which the interpreter does on its bits as integers."""


# Builder methods that may see bf16: what moves values or changes their dtype.
MOVES = (
    "load", "store", "masked_load", "masked_store", "fp_ext", "fp_trunc", "fp_to_fp", "bitcast",
    "splat", "unsplat", "broadcast", "expand_dims", "reshape", "trans", "join", "split", "cat",
    "select", "addptr", "make_tensor_descriptor", "descriptor_load", "descriptor_store", "gather",
    "descriptor_gather", "descriptor_scatter", "print",
)  # fmt: skip


def trip_on_raw_bf16() -> None:
    """From now on the interpreter raises RawBf16 where a bf16 value reaches arithmetic, a
    comparison, a reduction or a dot."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    allowed = {f"create_{name}" for name in MOVES}
    for name in dir(builder):
        if name.startswith("create_") and name not in allowed:
            setattr(builder, name, _tripping(getattr(builder, name), name.removeprefix("create_")))
    for kind in (interpreter.ReduceOps, interpreter.ScanOps):
        kind.apply = _tripping(kind.apply, kind.__name__)


def _tripping(method: Any, name: str) -> Any:
    def checked(self: Any, *arguments: Any, **named: Any) -> Any:
        for value in [*arguments, *named.values()]:
            for part in value if isinstance(value, tuple | list) else [value]:
                handle = getattr(part, "handle", part)
                dtype = getattr(handle, "dtype", None)
                is_value = dtype is not None and getattr(handle, "data", None) is not None
                if is_value and str(getattr(dtype, "scalar", dtype)) == "bf16":
                    raise RawBf16(f"{name} on a raw bf16 value; upcast it first")
        return method(self, *arguments, **named)

    return checked


def check_that_it_trips() -> None:
    """A kernel that adds bf16 values is refused, one that upcasts them is not."""
    import triton
    import triton.language as tl
    from triton.runtime.errors import InterpreterError

    @triton.jit
    def twice(x, upcast: tl.constexpr):  # type: ignore[no-untyped-def]
        value = tl.load(x)
        if upcast:
            value = value.to(tl.float32)
        tl.store(x, (value + value).to(tl.bfloat16))

    x = torch.ones(1, dtype=torch.bfloat16)
    twice[(1,)](x, True)
    assert float(x) == 2.0
    try:
        twice[(1,)](x, False)
    except (RawBf16, InterpreterError) as error:
        assert "raw bf16" in f"{error!r} {error.__cause__!r}", repr(error)
    else:
        raise AssertionError("raw bf16 arithmetic went unseen")


def run(kernel: str, dtype: str, size: str, seed: int, first: int | None = None) -> Iterator[Row]:
    """Rows of every example; one that raises is a row that isn't ok."""
    for example in list_examples(kernel, dtype, size, "cpu", seed)[:first]:
        try:
            yield from check(kernel, dtype, example, "triton")
        except Exception as error:
            last = "".join(traceback.format_exception(error))[-1500:]
            nothing = float("nan")
            yield Row(kernel, dtype, example.name, "all", False, nothing, nothing, 0, 0, last)


def launch(kernel: str, dtype: str, size: str, seed: int, first: int | None = None) -> None:
    """Every example on a GPU, outputs and gradients, for a tool that watches what they touch."""
    for example in list_examples(kernel, dtype, size, "cuda", seed)[:first]:
        with backend.using("triton"):
            run_example(example)
        torch.cuda.synchronize()
        print(f"{kernel} {dtype} {example.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernel", action="append", choices=list(TABLE), default=[])
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), required=True)
    parser.add_argument("--size", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=None, help="this many examples of a kernel")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    work = [
        (kernel, dtype, options.size, options.seed, options.first)
        for kernel in options.kernel or TABLE
        for dtype in options.dtype
    ]
    if options.device == "cuda":
        for arguments in work:
            launch(*arguments)
        return
    assert backend.interpreting(), "set TRITON_INTERPRET=1"
    torch.set_num_threads(1)
    trip_on_raw_bf16()
    check_that_it_trips()
    for arguments in work:
        for row in run(*arguments):
            print(json.dumps(asdict(row)), flush=True)
    print(json.dumps({"calls": {f"{k}/{f}": n for (k, f), n in backend.calls.items()}}))


if __name__ == "__main__":
    sys.exit(main())
