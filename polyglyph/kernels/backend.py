"""Which form of a kernel runs: torch's or Triton's, and how often each ran.

`run.kernels` sets the choice for a process: "torch", "triton", or "auto", which takes Triton for
tensors on a CUDA device where triton can be imported and torch everywhere else. "triton" on CPU
tensors needs the interpreter (TRITON_INTERPRET=1 before triton is imported). Knows no kernel."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from polyglyph.errors import InputError

CHOICES = ("torch", "triton", "auto")
# (kernel, form) -> calls since the process began; the proof that a path is really used.
calls: Counter[tuple[str, str]] = Counter()
_choice = "auto"


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
        if not torch.cuda.is_available() and not interpreting():
            raise InputError(
                "kernels = 'triton' needs a CUDA device, or TRITON_INTERPRET=1 in the environment"
            )
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
def architecture(device: torch.device) -> int:
    """The row of a kernel's tuned table for `device`: 80 or 90, the newest that isn't newer.

    Off a GPU (the interpreter) it is 90, the configurations that ship for Hopper."""
    if device.type != "cuda":
        return 90
    return 90 if torch.cuda.get_device_capability(device) >= (9, 0) else 80


def explain(device: torch.device) -> tuple[str, str]:
    """(form, why) for tensors on `device`."""
    unreachable = device.type != "cuda" and not interpreting()
    if _choice == "triton" and unreachable:  # a codec on the CPU beside a model on a GPU
        return "torch", f"tensors on {device.type}, though run.kernels = 'triton'"
    if _choice != "auto":
        return _choice, f"run.kernels = {_choice!r}"
    if device.type != "cuda":
        return "torch", f"tensors on {device.type}"
    if not has_triton():
        return "torch", "triton isn't installed"
    return "triton", "CUDA tensors and triton is installed"


def pick(kernel: str, tensor: torch.Tensor) -> str:
    """ "torch" or "triton" for a call of `kernel` on `tensor`; counts the call."""
    form = explain(tensor.device)[0]
    calls[kernel, form] += 1
    return form
