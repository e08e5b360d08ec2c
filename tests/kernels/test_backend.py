"""The switch between torch and Triton: what is chosen, what can't be, and what was counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from polyglyph.errors import InputError
from polyglyph.kernels import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HOPPER = SimpleNamespace(name="H100", major=9, minor=0, shared_memory_per_block_optin=232_448)


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[SimpleNamespace], None]]:
    """Puts a card into the machine; an H100 is there."""

    def put(properties: SimpleNamespace) -> None:
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
        backend._row.cache_clear()

    put(HOPPER)
    yield put
    backend._row.cache_clear()


def test_auto_takes_triton_on_a_gpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.chosen() == "auto" and backend.explain(CPU) == ("torch", "tensors on cpu")
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    assert backend.explain(CUDA)[0] == "triton"
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    assert backend.explain(CUDA) == ("torch", "triton isn't installed")


def test_a_choice_that_cannot_run_is_refused_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    with pytest.raises(InputError, match="needs a CUDA device, or TRITON_INTERPRET=1"):
        backend.choose("triton")
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    with pytest.raises(InputError, match="isn't installed: pip install"):
        backend.choose("triton")
    with pytest.raises(InputError, match="expected one of torch, triton, auto, got 'cuda'"):
        backend.choose("cuda")
    assert backend.chosen() == "auto"


def test_tensors_that_triton_cannot_reach_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with backend.using("triton"):
        assert backend.explain(CUDA)[0] == "triton"
        form, why = backend.explain(CPU)
        assert form == "torch" and "tensors on cpu" in why
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert backend.explain(CPU)[0] == "triton"
    assert backend.chosen() == "auto"


def test_calls_are_counted_by_kernel_and_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "calls", type(backend.calls)())
    assert backend.pick("a", torch.zeros(1)) == "torch"
    with backend.using("torch"):
        backend.pick("a", torch.zeros(1))
        backend.pick("b", torch.zeros(1))
    assert backend.calls == {("a", "torch"): 2, ("b", "torch"): 1}


@pytest.mark.parametrize(
    ("capability", "shared", "row"),
    [
        ((8, 0), 166_912, 80),
        ((8, 6), 101_376, 80),
        ((8, 9), 101_376, 80),
        ((9, 0), 232_448, 90),
        ((10, 0), 232_448, 90),
        ((12, 0), 101_376, 80),  # newer than Hopper, with less than half of its shared memory
        ((12, 1), 101_376, 80),
    ],
)
def test_a_card_gets_the_tiles_that_fit_its_shared_memory(
    capability: tuple[int, int], shared: int, row: int, card: Callable[[SimpleNamespace], None]
) -> None:
    major, minor = capability
    card(SimpleNamespace(major=major, minor=minor, shared_memory_per_block_optin=shared))
    assert backend.architecture(CUDA) == row
    assert backend.SHARED[row] <= shared


@pytest.mark.parametrize(
    "properties",
    [
        SimpleNamespace(name="T4", major=7, minor=5, shared_memory_per_block_optin=65_536),
        SimpleNamespace(name="MI300X", major=9, minor=4),  # calls itself CUDA, says no memory
        SimpleNamespace(name="Small", major=9, minor=0, shared_memory_per_block_optin=49_152),
    ],
    ids=lambda properties: properties.name,
)
def test_a_card_that_no_tiles_fit_stays_with_torch(
    properties: SimpleNamespace,
    card: Callable[[SimpleNamespace], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with backend.using("triton"):
        card(properties)  # a second card beside the H100
        assert backend.explain(CUDA)[0] == "torch"
    form, why = backend.explain(CUDA)
    assert form == "torch" and why.startswith(f"{properties.name} is older than")
    with pytest.raises(InputError, match=f"can't run here: {properties.name} is older"):
        backend.choose("triton")
    with pytest.raises(ValueError, match=f"^device: {properties.name}"):
        backend.architecture(CUDA)


def test_launches_go_to_the_tensors_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    @contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    @backend.on_its_device
    def launch(factor: float, x: Tensor, y: Tensor | None) -> float:
        return factor

    monkeypatch.setattr("torch.cuda.device", enter)
    with FakeTensorMode():
        second = torch.empty(3, device="cuda:1")
    assert launch(2.0, second, None) == 2.0 and entered == [torch.device("cuda", 1)]
    assert launch(3.0, torch.empty(3), None) == 3.0 and len(entered) == 1
    schema = torch.library.infer_schema(launch, mutates_args=())
    assert schema == "(float factor, Tensor x, Tensor? y) -> float"


@pytest.mark.parametrize("version", ["3.6.0", "3.6.1+git0", "3.7.0", "3.9.0", "3.10.0"])
def test_an_old_triton_takes_its_own_row_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("triton.__version__", version)
    table = {80: "small", 90: "large", (90, backend.OLD): "large, for 3.6"}
    backend._is_old.cache_clear()
    try:
        old = version.startswith("3.6.")
        assert backend.tuned(table, 90) == ("large, for 3.6" if old else "large")
        assert backend.tuned(table, 80) == "small"
    finally:
        backend._is_old.cache_clear()
