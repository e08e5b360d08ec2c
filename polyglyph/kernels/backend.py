"""Which form of a kernel runs: torch's or Triton's, and how often each ran.

`run.kernels` sets the choice for a process: "torch", "triton", or "auto", which takes Triton for
tensors on a CUDA device where triton can be imported and torch everywhere else. "triton" on CPU
tensors needs the interpreter (TRITON_INTERPRET=1 before triton is imported). Knows no kernel."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar

import torch

from polyglyph.errors import InputError

CHOICES = ("torch", "triton", "auto")
# Row of the tuned tables -> bytes of shared memory that a program of it may take. 80's rows serve
# 86, 89 and 120 too, so they keep within those 99 KiB, though 80 itself has 163 KiB.
SHARED = {90: 232_448, 80: 101_376}
# (kernel, form) -> calls since the process began; the proof that a path is really used.
calls: Counter[tuple[str, str]] = Counter()
_choice = "auto"
_Launcher = TypeVar("_Launcher", bound=Callable[..., Any])
_Row = TypeVar("_Row")
# The compiler of triton 3.6 allots registers differently and spills in tiles that 3.9 keeps whole.
OLD = "3.6"


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(choice: str) -> None:
    """Set the choice of this process; InputError for an unknown one or one that can't run."""
    global _choice
    if choice not in CHOICES:
        raise InputError(f"kernels: expected one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "triton":
        if not has_triton():
            raise InputError(
                "kernels = 'triton', but triton isn't installed: pip install 'polyglyph[kernels]'"
            )
        if not interpreting():
            if not torch.cuda.is_available():
                raise InputError(
                    "kernels = 'triton' needs a CUDA device, or TRITON_INTERPRET=1 in the "
                    "environment"
                )
            misfit = _misfit(torch.device("cuda"))
            if misfit is not None:
                raise InputError(f"kernels = 'triton' can't run here: {misfit}")
    _choice = choice


def chosen() -> str:
    return _choice


@contextmanager
def using(choice: str) -> Iterator[None]:
    """`choose` for the length of a with-block."""
    before = _choice
    choose(choice)
    try:
        yield
    finally:
        choose(before)


@cache
def _row(device: torch.device) -> int | None:
    """Of the tuned tables, for a CUDA device; None: no row fits it."""
    properties = torch.cuda.get_device_properties(device)
    # AMD's cards, which torch calls CUDA devices too, don't say what they have.
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    for row, needed in SHARED.items():
        if 10 * properties.major + properties.minor >= row and shared >= needed:
            return row
    return None


def architecture(device: torch.device) -> int:
    """The row of a kernel's tuned table for `device`: 90 or 80, the first that it is new enough for
    and has the shared memory of: 90 for Hopper and the Blackwell of data centres, 80 for 86, 89
    and 120. ValueError where none fits.

    Off a GPU (the interpreter) it is 90, the configurations that ship for Hopper."""
    if device.type != "cuda":
        return 90
    row = _row(device)
    if row is None:
        raise ValueError(f"device: {_misfit(device)}")
    return row


@cache
def _is_old() -> bool:
    """Whether the installed triton is older than 3.7."""
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)


def tuned(table: Mapping[int | tuple[int, str], _Row], architecture: int) -> _Row:
    """The row of a tuned table: by a triton older than 3.7 that of (architecture, OLD), where there
    is one, else that of the architecture."""
    if _is_old() and (architecture, OLD) in table:
        return table[architecture, OLD]
    return table[architecture]


def _misfit(device: torch.device) -> str | None:
    """Why Triton can't run on a CUDA device; None: it can."""
    if _row(device) is not None:
        return None
    name = torch.cuda.get_device_properties(device).name
    return f"{name} is older than compute capability 8.0 or has less than 99 KiB of shared memory"


def explain(device: torch.device) -> tuple[str, str]:
    """(form, why) for tensors on `device`."""
    if _choice == "torch":
        return "torch", "run.kernels = 'torch'"
    if device.type != "cuda":
        if _choice == "auto":
            return "torch", f"tensors on {device.type}"
        if interpreting():
            return "triton", "run.kernels = 'triton'"
        # A codec on the CPU beside a model on a GPU.
        return "torch", f"tensors on {device.type}, though run.kernels = 'triton'"
    if not has_triton():
        return "torch", "triton isn't installed"
    misfit = _misfit(device)
    if misfit is not None:
        return "torch", misfit
    if _choice == "triton":
        return "triton", "run.kernels = 'triton'"
    return "triton", "CUDA tensors and triton is installed"


def pick(kernel: str, tensor: torch.Tensor) -> str:
    """ "torch" or "triton" for a call of `kernel` on `tensor`; counts the call."""
    form = explain(tensor.device)[0]
    calls[kernel, form] += 1
    return form


def on_its_device(launcher: _Launcher) -> _Launcher:
    """`launcher` with the GPU of its first tensor as the current one, where Triton's launches go;
    a model on cuda:1 would else be read from cuda:0."""

    @wraps(launcher)
    def launched(*arguments: Any) -> Any:
        device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
        if device.type != "cuda":
            return launcher(*arguments)
        with torch.cuda.device(device):
            return launcher(*arguments)

    # Annotations are strings, which torch.library would look up in this module.
    launched.__signature__ = inspect.signature(launcher, eval_str=True)  # type: ignore[attr-defined]
    return launched  # type: ignore[return-value]
