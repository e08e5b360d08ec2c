"""A device that is missing, too old or badly driven leads to a fallback and one note."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch

from polyglyph import device
from polyglyph.errors import InputError


@pytest.fixture(autouse=True)
def fresh_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_given", set())


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, available: bool, said: str = "") -> None:
    def is_available() -> bool:
        import warnings

        if said:
            warnings.warn(said, stacklevel=1)
        return available

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(available))


def test_row_60_without_a_gpu_auto_is_the_cpu_without_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_cuda(monkeypatch, False)
    monkeypatch.setattr(device, "_has_nvidia_gpu", lambda: False)
    assert device.pick_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_row_60_a_driver_that_does_not_match_falls_back_with_one_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_cuda(monkeypatch, False, "The NVIDIA driver on your system is too old (found 1).\nMore")
    monkeypatch.setattr(device, "_has_nvidia_gpu", lambda: True)
    assert [device.pick_device("auto").type for _ in range(3)] == ["cpu"] * 3
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and said.count("\n") == 1
    assert "driver on your system is too old" in said and "running on the CPU" in said


def test_row_60_a_gpu_that_can_not_compute_falls_back_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available for execution on the device\nCUDA ...")

    pretend_cuda(monkeypatch, True)
    monkeypatch.setattr(device, "_has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch, "ones", refuse)
    assert device.pick_device("auto") == torch.device("cpu")
    assert "no kernel image is available" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_row_60_a_named_gpu_that_is_absent_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pretend_cuda(monkeypatch, False)
    with pytest.raises(InputError, match=f"device '{name}' is not available.*pass --device cpu"):
        device.pick_device(name)


def test_row_60_mps_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="device 'mps' is not available here"):
        device.pick_device("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "auto:1", "cpu0", ""])
def test_an_unknown_device_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(InputError, match="unknown device"):
        device.pick_device(name)


def test_row_60_an_old_gpu_without_bf16_runs_in_fp32_with_one_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    old = torch.device("cuda")
    assert device.pick_dtype(old, "auto") == device.pick_dtype(old, "bf16") == torch.float32
    assert capsys.readouterr().err.count("note:") == 1
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert device.pick_dtype(old, "auto") == torch.bfloat16


def test_row_60_a_cpu_without_bf16_takes_fp32_by_itself_and_obeys_when_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "_has_bf16", lambda device: False)
    assert device.pick_dtype(cpu, "auto") == torch.float32
    assert device.pick_dtype(cpu, "bf16") == torch.bfloat16
    assert device.pick_dtype(torch.device("mps"), "auto") == torch.float32
    assert "'mps' has no bf16" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"unknown dtype 'fp16'; did you mean 'bf16'\?"):
        device.pick_dtype(cpu, "fp16")


def test_autocast_computes_in_bf16_and_leaves_fp32_alone() -> None:
    x = torch.ones(3, 3)
    with device.autocast(torch.device("cpu"), torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    with device.autocast(torch.device("cpu"), torch.float32):
        assert (x @ x).dtype == torch.float32


def test_a_note_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        device.note_once("something")
    assert capsys.readouterr().err == "note: something\n"


def test_a_torchvision_that_does_not_load_is_hidden_with_the_way_to_be_rid_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('nms does not exist')")
    (tmp_path / "torchvision/_C.so").write_bytes(b"not a library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    try:
        assert "torchvision" in device.check_broken_torchvision()
        with pytest.raises(ImportError):
            import torchvision  # noqa: F401
    finally:
        with contextlib.suppress(KeyError):
            del sys.modules["torchvision"]
    assert "pip uninstall torchvision" in capsys.readouterr().err
