"""Which device and which dtype to run on, and the one note that explains a fallback.

No state but the notes already given. Imports torch inside the functions that need it, so that a
command line can import this file for nothing. Never imports torchvision or torchaudio."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from polyglyph.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "bf16", "fp32")
_given: set[str] = set()


def note_once(text: str) -> None:
    """Prints `note: text` to stderr, once per process and text."""
    if text not in _given:
        _given.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


def pick_device(name: str = "auto") -> torch.device:
    """The device that `name` means: "auto" (a working CUDA GPU, else the CPU), "cpu", "cuda",
    "cuda:N" or "mps".

    "auto" falls back to the CPU with a note when a GPU is there but can't be used. A device that is
    named and absent is an InputError."""
    import torch

    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (
        index and (kind == "auto" or not index.isdigit())
    ):
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:0", "mps"])
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        raise InputError("device 'mps' is not available here; pass --device cpu")
    problem = _cuda_problem(int(index or 0))
    if problem is None:
        return torch.device("cuda", int(index)) if index else torch.device("cuda")
    if kind == "cuda":
        raise InputError(f"device {name!r} is not available: {problem}; pass --device cpu")
    if _has_nvidia_gpu():
        note_once(f"a GPU is present but not usable ({problem}); running on the CPU")
    return torch.device("cpu")


def _cuda_problem(index: int) -> str | None:
    """Why the CUDA device of that index can't be used, in words, or None when it can."""
    import torch

    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "this torch is a CPU build"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = str(caught[0].message).splitlines()[0].strip() if caught else ""
        return said[:160] or "no CUDA device was found"
    if index >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} CUDA devices, counted from 0"
    try:
        torch.ones(2, device=torch.device("cuda", index)).sum().item()
    except (RuntimeError, AssertionError) as error:
        # Typical: a GPU too old for this build ("no kernel image"), or one that is taken.
        return str(error).splitlines()[0][:160]
    return None


def _has_nvidia_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def pick_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """torch.bfloat16 or torch.float32 for `device`.

    "auto" takes bf16 where the hardware computes in it. An explicit "bf16" falls back to fp32
    with a note on a GPU without it; a CPU without it obeys, slowly."""
    import torch

    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    if name == "fp32":
        return torch.float32
    has_bf16 = _has_bf16(device)
    if has_bf16 or (name == "bf16" and device.type == "cpu"):
        return torch.bfloat16
    if name == "bf16" or device.type != "cpu":
        note_once(f"device {device.type!r} has no bf16 arithmetic; running in fp32")
    return torch.float32


def _has_bf16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        # Not torch.cuda.is_bf16_supported(): by default it counts slow emulation as support.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        try:
            flags = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        except OSError:
            return False
        return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which matrix products run in `dtype`; does nothing for fp32."""
    import torch

    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def check_broken_torchvision() -> list[str]:
    """Finds a torchvision or torchaudio that can't load beside this torch, says so and hides it.

    Their mere presence breaks imports of transformers, so a broken one is made to look absent to
    this process. Neither package is imported; a library of each is loaded to see whether it can be.
    Returns the names of the broken ones. Call before the first import of transformers."""
    broken = []
    for name, library in (("torchvision", "_C.so"), ("torchaudio", "_torchaudio.abi3.so")):
        if name in sys.modules:
            continue
        found = importlib.util.find_spec(name)
        places = list(found.submodule_search_locations or ()) if found else []
        files = [Path(place, *where, library) for place in places for where in ((), ("lib",))]
        if any(file.is_file() and not _loads(file) for file in files):
            broken.append(name)
            sys.modules[name] = None  # type: ignore[assignment]
            note_once(f"the installed {name} doesn't load beside this torch and is ignored; "
                      f"to be rid of this note: pip uninstall {name}")  # fmt: skip
    return broken


def _loads(library: Path) -> bool:
    import torch  # noqa: F401  its libraries have to be there first

    try:
        ctypes.CDLL(os.fspath(library))
    except OSError:
        return False
    return True
