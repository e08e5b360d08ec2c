"""The switch between torch and Triton: what is chosen, what can't be, and what was counted."""

from __future__ import annotations

import pytest
import torch

from polyglyph.errors import InputError
from polyglyph.kernels import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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
