"""The run folder: what is visible is complete, whoever was killed in the middle of writing it."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyglyph.errors import FormatError, InputError
from polyglyph.train import runlog as module
from polyglyph.train.runlog import Interrupted, RunFolder, StopSignals


def new(path: Path) -> RunFolder:
    return RunFolder.create(path, "[run]\n", {"kind": "codec"})


def write(step: int) -> Callable[[Path], None]:
    def write_model(folder: Path) -> None:
        (folder / "weights").write_text(f"weights of {step}")

    return write_model


def save(run: RunFolder, step: int, keep: int = 2) -> Path:
    tensors = {"a": torch.full((3, 5), float(step)), "flag": torch.tensor(True)}
    return run.save_checkpoint(step, write(step), tensors, {"low_use": step + 1}, keep)


def assert_whole(run: RunFolder, *steps: int) -> int:
    """The newest checkpoint is complete and of one of these steps."""
    tensors, numbers, folder = run.load_state()
    step = numbers["step"]
    assert step in steps and folder.name == f"step-{step:08d}"
    assert torch.equal(tensors["a"], torch.full((3, 5), float(step)))
    assert (folder / "model" / "weights").read_text() == f"weights of {step}"
    return step


def leftovers(run: RunFolder) -> list[str]:
    return sorted(p.name for p in run.path.rglob(".tmp-*"))


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a fork; returns its exit status, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Folder and log ---------------------------------------------------------------------------------


def test_a_new_run_has_its_rooms_and_says_what_it_is(tmp_path: Path) -> None:
    run = new(tmp_path / "deep" / "r")
    names = sorted(p.name for p in run.path.iterdir())
    assert names == ["checkpoints", "config.toml", "run.json", "samples"]
    assert json.loads((run.path / "run.json").read_text()) == {"format": 1, "kind": "codec"}
    assert RunFolder.open(run.path).path == run.path


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    new(tmp_path / "empty")
    with pytest.raises(InputError, match=r"already exists and is not empty; .* --resume"):
        new(tmp_path / "empty")
    with pytest.raises(InputError, match="holds no run to resume; start one without --resume"):
        RunFolder.open(tmp_path / "nowhere")


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "r"):
        with pytest.raises(InputError, match="a part of its path is a file"):
            new(path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_resumed_log_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    assert run.lines() == []
    for step in (10, 20, 30):
        run.log({"step": step, "loss": 1 / step})
    with open(run.log_path, "a") as file:
        file.write('{"step": 40, "lo')  # cut by a crash
    assert [line["step"] for line in run.lines()] == [10, 20, 30]
    run.cut_log(20)
    assert [json.loads(text) for text in run.log_path.read_text().splitlines()] == [
        {"step": 10, "loss": 0.1},
        {"step": 20, "loss": 0.05},
    ]
    run.log({"step": 21})
    assert [line["step"] for line in run.lines()] == [10, 20, 21]


# Lock -------------------------------------------------------------------------------------------


def test_a_folder_in_use_refuses_a_second_run_and_is_free_again_after_it(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    with run:
        said = json.loads((run.path / "lock.json").read_text())
        assert (said["pid"], said["host"]) == (os.getpid(), socket.gethostname())
        with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on"):
            RunFolder.open(run.path).__enter__()
        assert (run.path / "lock.json").exists(), "the refused one takes nothing away"
    assert not (run.path / "lock.json").exists()
    with pytest.raises(ZeroDivisionError), run:
        raise ZeroDivisionError
    with run:
        pass


def test_a_dead_process_leaves_its_lock_to_the_next(tmp_path: Path) -> None:
    run = new(tmp_path / "r")

    def killed() -> None:
        with run:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    assert (run.path / "lock.json").exists()
    with RunFolder.open(run.path):
        assert json.loads((run.path / "lock.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", '{"host": "here"}', '{"pid": null}'])
def test_a_lock_that_was_cut_off_binds_nobody(tmp_path: Path, text: str) -> None:
    run = new(tmp_path / "r")
    (run.path / "lock.json").write_text(text)
    with run:
        assert json.loads((run.path / "lock.json").read_text())["pid"] == os.getpid()


def test_a_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    (run.path / "lock.json").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(InputError, match=r"process 1 on elsewhere; .* delete lock.json"), run:
        raise AssertionError("entered")


# Checkpoints ------------------------------------------------------------------------------------


def test_a_checkpoint_holds_tensors_numbers_and_the_model(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    with pytest.raises(FormatError, match="no complete checkpoint"):
        run.load_state()
    folder = save(run, 7)
    assert folder == run.latest() == tmp_path / "r" / "checkpoints" / "step-00000007"
    tensors, numbers, _ = run.load_state()
    assert numbers == {"format": 1, "step": 7, "low_use": 8}
    assert tensors["flag"].dtype == torch.bool and assert_whole(run, 7) == 7


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    for step in (5, 10, 15, 20):
        save(run, step, keep=3)
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (10, 15, 20)]
    save(run, 25, keep=1)
    assert len(list((run.path / "checkpoints").iterdir())) == 1


def test_latest_falls_back_where_its_folder_is_not_complete(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    for step in (5, 10):
        save(run, step)
    (run.path / "latest").write_text("step-00000099\n")
    assert assert_whole(run, 10)
    (run.path / "latest").unlink()
    assert assert_whole(run, 10)
    (run.path / "checkpoints" / "step-00000010" / "train_state" / "state.json").unlink()
    assert assert_whole(run, 5)


def test_a_checkpoint_that_could_not_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    save(run, 1)

    def fails(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run.save_checkpoint(2, fails, {"a": torch.zeros(1)}, {}, 2)
    assert assert_whole(run, 1) and leftovers(run) == []
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-00000001"]


def test_row_32_kill_9_anywhere_in_a_checkpoint_leaves_a_complete_one(tmp_path: Path) -> None:
    """Killed before the n-th call that changes the disk for good, for every n there is."""
    found: list[int] = []
    for n in range(1, 60):
        run = new(tmp_path / f"r{n}")
        save(run, 1, keep=1)
        calls: list[str] = []

        def before(name: str, real: Any, calls: list[str] = calls, n: int = n) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                calls.append(name)
                if len(calls) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return call

        def work(run: RunFolder = run, before: Any = before) -> None:
            with run:
                for owner, name in ((os, "fsync"), (os, "replace"), (module.shutil, "rmtree")):
                    setattr(owner, name, before(name, getattr(owner, name)))
                save(run, 2, keep=1)

        status = in_child(work)
        with RunFolder.open(run.path) as again:
            found.append(assert_whole(again, 1, 2))
            assert leftovers(again) == [], "what was half written is swept away"
            save(again, 3, keep=1)
            assert assert_whole(again, 3)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and len(found) > 10
    assert found == sorted(found) and found[0] == 1 and found[-1] == 2


def test_a_step_saved_again_replaces_itself(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    save(run, 3)
    other = run.save_checkpoint(3, write(9), {"a": torch.zeros(1)}, {}, 2)
    assert (other / "model" / "weights").read_text() == "weights of 9"
    assert run.load_state()[1] == {"format": 1, "step": 3}


# Signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_row_37_the_first_signal_asks_and_handlers_are_put_back(
    signum: signal.Signals, status: int
) -> None:
    before = signal.getsignal(signum)
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum
    assert signal.getsignal(signum) is before
    error = Interrupted(signum, 12, Path("runs/a"))
    assert error.exit_status == status
    assert str(error) == (
        f"stopped by {signum.name} after step 12; continue with: --resume -o runs/a"
    )


def test_row_37_a_second_signal_ends_the_process_at_once() -> None:
    def work() -> None:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.received == signal.SIGINT
            os.kill(os.getpid(), signal.SIGTERM)

    assert in_child(work) == -signal.SIGTERM


def test_memory_is_told_in_bytes() -> None:
    assert 1 << 26 < module.peak_bytes() < 1 << 40
