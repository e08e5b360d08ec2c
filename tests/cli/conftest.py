"""A random checkpoint, a few media, and the command line as a function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import make_checkpoint, picture, sound

from polyglyph.cli.app import run as run_command_line
from polyglyph.media import Audio, Image, Video


@dataclass
class Done:
    """What one command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the checkpoint `model` and its codecs; never written to by a test."""
    folder = tmp_path_factory.mktemp("cli")
    make_checkpoint(folder, context=200)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a picture, a sound and a clip with sound."""
    monkeypatch.chdir(tmp_path)
    Image(picture(21, 34)).save("photo.jpg")
    Audio(sound(1700), 8000).save("speech.wav")
    frames = np.stack([picture(18, 26, i) for i in range(5)])
    Video(frames, 8.0, Audio(sound(5000, 1), 8000)).save("clip.mp4")
    return tmp_path


@pytest.fixture
def run(made: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(verb, *words): the command line; `checkpoint=True` adds -c with the random one."""

    def call(*words: str | os.PathLike, checkpoint: bool = True) -> Done:
        capsys.readouterr()
        more = ["-c", str(made / "model")] if checkpoint else []
        status = run_command_line([*map(os.fspath, words), *more])
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call
