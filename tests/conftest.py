"""What every test stands on: one thread per process, no network, fixed seeds."""

from __future__ import annotations

import os

# Before torch is imported: `-n 2` runs two processes, and more threads than cores make it crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
import shutil
import socket
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "dev")

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; torch is imported only if a gpu test was selected."""
    marked = {name: [i for i in items if i.get_closest_marker(name)] for name in ("gpu", "browser")}
    if marked["gpu"] and not _has_gpu():
        for item in marked["gpu"]:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if marked["browser"] and not any(map(shutil.which, CHROMIUM)):
        for item in marked["browser"]:
            item.add_marker(pytest.mark.skip(reason="no chromium"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The global generators start every test alike (our own code takes its seeds as arguments)."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that leaves the machine fails at the call, not after a timeout."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = self.family == socket.AF_UNIX or (
            isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")
        )
        assert local, f"a test tried to reach {address}"
        return connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
