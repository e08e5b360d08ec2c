"""The run folder: lock, log, checkpoints, samples, and how a run stops.

    config.toml run.json lock.json log.jsonl checkpoints/step-00000100/{model/, train_state/}
    latest samples/ errors.jsonl

A visible checkpoint is a complete one: it is written aside, synced and renamed, then `latest`
moves, then old ones go. A resumed run cuts log lines beyond the checkpoint's step. Knows nothing
of what is trained.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import Field
from torch import Tensor

from polyglyph.checkpoint import (
    atomic_file,
    atomic_folder,
    load_tensors,
    output_error,
    save_tensors,
)
from polyglyph.config import Config
from polyglyph.errors import FormatError, InputError, PolyglyphError
from polyglyph.eval.machine import peak_bytes as peak_bytes

FORMAT = 1


class CheckpointConfig(Config):
    """`[checkpoint]`: every: steps between checkpoints; keep: how many stay."""

    every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)


class Interrupted(PolyglyphError):
    """A signal ended the run after its checkpoint was written."""

    def __init__(self, signum: int, step: int, path: Path) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after step {step}; continue with: --resume -o {path}")
        self.exit_status = 128 + signum


class StopSignals(AbstractContextManager["StopSignals"]):
    """SIGINT and SIGTERM set a flag, so that the loop finishes its step and saves first.

    The second signal ends the process at once, as the shell expects.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signum


class RunFolder:
    """One run on disk. Use as a context manager: it holds the lock."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.log_path = self.path / "log.jsonl"
        self.samples = self.path / "samples"

    @classmethod
    def create(cls, path: str | Path, config_toml: str, describe: Mapping[str, Any]) -> RunFolder:
        """A new run; refuses a folder that already holds one."""
        run = cls(path)
        try:
            if run.path.exists() and any(run.path.iterdir()):
                raise InputError(
                    f"{path} already exists and is not empty; continue it with --resume, "
                    "or choose another -o"
                )
            run.samples.mkdir(parents=True, exist_ok=True)
            (run.path / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise output_error(path, error) from error
        with atomic_file(run.path / "config.toml", force=True) as tmp:
            tmp.write_text(config_toml, "utf-8")
        with atomic_file(run.path / "run.json", force=True) as tmp:
            tmp.write_text(json.dumps({"format": FORMAT, **describe}, indent=2) + "\n", "utf-8")
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        run = cls(path)
        if not (run.path / "run.json").is_file():
            raise InputError(f"{path} holds no run to resume; start one without --resume")
        return run

    # Lock -----------------------------------------------------------------------------------

    def __enter__(self) -> RunFolder:
        lock = self.path / "lock.json"
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "time_s": time.time()}
        try:
            with open(lock, "x", encoding="utf-8") as file:
                json.dump(mine, file)
        except FileExistsError:
            self._refuse_or_take(lock, mine)
        # What a killed process was writing: nobody else writes here while we hold the lock.
        for left in [*self.path.glob(".tmp-*"), *self.path.glob("checkpoints/.tmp-*")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self

    def _refuse_or_take(self, lock: Path, mine: dict[str, Any]) -> None:
        try:
            theirs = json.loads(lock.read_text("utf-8"))
            here, pid = theirs["host"] == mine["host"], int(theirs["pid"])
        except (ValueError, TypeError, KeyError):  # cut off while it was written
            here, pid = True, 0
        if not here or _is_alive(pid):
            raise InputError(
                f"{self.path} is in use by process {pid} on {theirs['host']}; "
                "wait for it, or delete lock.json if that process is gone"
            )
        lock.write_text(json.dumps(mine), "utf-8")  # left by a process that was killed

    def __exit__(self, *exc: object) -> None:
        (self.path / "lock.json").unlink(missing_ok=True)

    # Log ------------------------------------------------------------------------------------

    def log(self, line: Mapping[str, Any]) -> None:
        with open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line of the log; a line cut by a crash is left out."""
        if not self.log_path.exists():
            return []
        result = []
        for text in self.log_path.read_text("utf-8").splitlines():
            try:
                result.append(json.loads(text))
            except ValueError:
                continue
        return result

    def cut_log(self, step: int) -> None:
        """Drops lines beyond `step`: they belong to work that the checkpoint doesn't hold."""
        kept = [line for line in self.lines() if line["step"] <= step]
        with atomic_file(self.log_path, force=True) as tmp:
            tmp.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    # Checkpoints ----------------------------------------------------------------------------

    def save_checkpoint(
        self,
        step: int,
        write_model: Callable[[Path], None],
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        keep: int,
    ) -> Path:
        """Writes checkpoints/step-…/{model, train_state}, moves `latest`, prunes to `keep`."""
        final = self.path / "checkpoints" / f"step-{step:08d}"
        with atomic_folder(final, force=True) as tmp:
            (tmp / "model").mkdir()
            write_model(tmp / "model")
            (tmp / "train_state").mkdir()
            save_tensors(tmp / "train_state" / "state.safetensors", dict(tensors))
            state = {"format": FORMAT, "step": step, **numbers}
            (tmp / "train_state" / "state.json").write_text(json.dumps(state) + "\n", "utf-8")
        with atomic_file(self.path / "latest", force=True) as tmp:
            tmp.write_text(final.name + "\n", "utf-8")
        for old in sorted((self.path / "checkpoints").glob("step-*"))[:-keep]:
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None before the first."""
        pointer = self.path / "latest"
        if pointer.is_file():
            folder = self.path / "checkpoints" / pointer.read_text("utf-8").strip()
            if (folder / "train_state" / "state.json").is_file():
                return folder
        complete = [
            p
            for p in sorted((self.path / "checkpoints").glob("step-*"))
            if (p / "train_state" / "state.json").is_file() and not p.name.endswith(".tmp")
        ]
        return complete[-1] if complete else None

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
        """Tensors and numbers of the newest checkpoint; FormatError when there is none."""
        folder = self.latest()
        if folder is None:
            raise FormatError(f"{self.path} has no complete checkpoint; start the run afresh")
        numbers = json.loads((folder / "train_state" / "state.json").read_text("utf-8"))
        return load_tensors(folder / "train_state" / "state.safetensors"), numbers, folder


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
