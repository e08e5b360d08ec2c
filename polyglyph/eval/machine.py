"""One line that says on what a speed was measured. Knows nothing of what was."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def describe_machine() -> str:
    """ "AMD EPYC 7B13, 2 cores, 24 GiB; Linux, Python 3.11.7, torch 2.13.0, 1 thread"."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    parts = [f"{_processor()}, {cores} core{'s' if cores != 1 else ''}, {_memory_gib():.0f} GiB"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    parts.append(
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{threads} thread{'s' if threads != 1 else ''}"
    )
    return "; ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def peak_bytes() -> int:
    """The most memory that this process has held, resident, so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
