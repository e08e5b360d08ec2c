from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import picture

from polyglyph.config import read_toml
from polyglyph.media import Image

CODECS = ("text", "image", "video", "audio")
MODEL = """
[run]
kind = "model"
name = "small"
steps = 4
dtype = "fp32"
log_every = 1
[sequence]
checkpoint = "shards/codecs"
[sequence.prompt_size]
image = [72, 72]
[sampling.image]
temperature = 0.5
[model]
d_model = 8
n_layers = 1
n_heads = 2
n_kv_heads = 1
d_ff = 8
context = 800
[data]
shards = "shards"
batch_size = 1
row_length = 800
[checkpoint]
every = 2
"""
TEXT = ("--set", "data.n_documents=60", "--set", "codec.vocabulary_size=300")


def flags(made: Path) -> list[str]:
    return [word for name in CODECS for word in ("--codec", str(made / "codecs" / name))]


@pytest.fixture
def shards(here: Path, run: Any, made: Path) -> Path:
    words = ("prepare", "shapes", "-o", "shards", "-n", "3", *flags(made))
    assert run(*words, checkpoint=False).status == 0
    Path("small.toml").write_text(MODEL)
    return here / "shards"


def test_shards_keep_their_codecs_and_are_made_once(shards: Path, run: Any, made: Path) -> None:
    words = ("prepare", "shapes", "-o", "shards", "-n", "3", *flags(made), "--json")
    done = run(*words, checkpoint=False)
    assert done.status == 0 and done.json["results"][0]["n_made"] == 0
    (entry,) = run("inspect", "shards", "--json").json["results"]
    assert entry["n_documents"] == done.json["results"][0]["n_documents"] >= 3
    (kept,) = run("inspect", "shards/codecs", "--json").json["results"]
    assert kept["vocabulary"] == entry["vocabulary"] and kept["kind"] == "codec"
    rows = run("inspect", "shards", "--document", "0", "--json").json["results"]
    assert rows[0]["name"] == "bos" and rows[-1]["name"] == "eos"
    assert any(row["piece"] for row in rows)
    # the kept codecs do as well as the ones they were copied from
    words = ("prepare", "shapes", "-o", "shards", "-n", "3", "-c", "shards/codecs")
    assert run(*words, checkpoint=False).status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shapes", "-o", "out", "-n", "3", "-c", "MODEL", "--config", "tiny"], "name the codecs"),
        (["shapes", "-o", "out", "-n", "3", "--codec", "gone"], "unknown checkpoint 'gone'"),
        (["shapes", "-o", "out", "-n", "3", "--codec", "a", "-c", "b"], "name the codecs"),
        (["shpes", "-o", "out", "-n", "3", "-c", "MODEL"], "did you mean 'shapes'"),
        (["shapes", "-o", "out", "-c", "MODEL"], "endless"),
        (["shapes", "-o", "photo.jpg", "-n", "3", "-c", "MODEL"], "exists"),
        (["shapes", "-o", "out", "-n", "3", "--config", "tiny-text"], "has no"),
    ],
)
def test_a_wrong_call_of_prepare_is_one_line(
    here: Path, run: Any, made: Path, words: list[str], said: str
) -> None:
    before = set(os.listdir())
    filled = [str(made / "model") if word == "MODEL" else word for word in words]
    done = run("prepare", *filled, checkpoint=False)
    assert done.status == 2 and done.err.count("\n") == 1 and said in done.err
    assert set(os.listdir()) == before


def test_a_folder_of_any_sizes_is_prepared_for_the_built_in_checkpoint(
    here: Path, run: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.makedirs("packaged")
    os.symlink(made / "model", "packaged/tiny")
    monkeypatch.setattr("polyglyph.checkpoint.PACKAGED", here / "packaged")
    os.makedirs("album")
    Image(picture(300, 410)).save("album/wall.png")  # 38 x 52 codes, for 24 sizes
    Path("album/wall.txt").write_text("a wall")
    done = run("prepare", "album", "-o", "out", "--json", checkpoint=False)
    assert done.status == 0 and done.json["results"][0]["n_documents"] == 2
    assert "note: 1 medium was brought to the size of prompts" in done.err
    rows = run("inspect", "out", "--document", "0", "--json").json["results"]
    # prompt_size 16 x 24 at stride 8
    assert [r["name"] for r in rows if r["slot"] == "size"] == ["size 2", "size 3"]
    again = run("prepare", "album", "-o", "out", "--json", checkpoint=False)
    assert again.json["results"][0]["n_made"] == 0


def test_a_folder_of_which_nothing_can_be_used_leaves_nothing(
    here: Path, run: Any, made: Path
) -> None:
    os.makedirs("album")
    Path("album/wall.png").write_bytes(b"no picture")
    done = run("prepare", "album", "-o", "out", "-c", str(made / "model"), checkpoint=False)
    assert done.status == 2 and "not one document" in done.err and not os.path.exists("out")


def test_a_run_is_trained_resumed_and_used(shards: Path, run: Any) -> None:
    words = ("train", "--config", "small.toml", "-o", "runs/a")
    done = run(*words, "--set", "optimizer.lr=0.01", "--json", checkpoint=False)
    assert done.status == 0 and done.json["results"][0]["step"] == 4
    assert read_toml("runs/a/config.toml")["optimizer"]["lr"] == 0.01
    (entry,) = run("inspect", "runs/a", "--json").json["results"]
    assert entry["last log line"]["step"] == 4
    words = ("generate", "a red ring", "--to", "image", "-o", "a.png", "--max-new", "60")
    assert run(*words, "-c", "runs/a", checkpoint=False).status == 0 and Path("a.png").is_file()


def test_ctrl_c_saves_and_ends_with_130_and_resume_finishes(
    shards: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyglyph.train.progress import Progress

    show = Progress.__call__

    def interrupt(self: Progress, line: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        show(self, line)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "__call__", interrupt)
        done = run("train", "--config", "small.toml", "-o", "a", "--json", checkpoint=False)
    assert done.status == 130 and not done.json["ok"]
    how_far, error = done.err.splitlines()
    assert how_far.startswith("small 1/4  loss") and error.startswith("error: stopped by SIGINT")
    assert error.endswith("--resume -o a")
    assert os.listdir("a/checkpoints") == ["step-00000001"]
    done = run("train", "--resume", "-o", "a", checkpoint=False)
    assert done.status == 0
    whole = run("train", "--config", "small.toml", "-o", "b", checkpoint=False)
    assert whole.status == 0
    logs = [Path(name, "log.jsonl").read_text().splitlines() for name in ("a", "b")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_plan_says_what_it_takes_and_writes_nothing(shards: Path, run: Any) -> None:
    before = set(os.listdir())
    done = run("train", "--config", "small.toml", "--plan", "--json", checkpoint=False)
    (plan,) = done.json["results"]
    assert done.status == 0 and plan["steps"] == 4 and plan["n_parameters"] > 0
    assert plan["hours"] == pytest.approx(4 * plan["seconds_per_step"] / 3600)
    assert plan["peak_bytes"] > 0 and set(os.listdir()) == before
    assert "n_parameters" in run("train", "--config", "small.toml", "--plan", checkpoint=False).out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected --config"),
        (["--config", "tiny-txt"], "did you mean 'tiny-text'"),
        (["--config", "gone.toml"], "gone.toml"),
        (["--config", "tiny-text", "--set", "run.stpes=3"], "did you mean 'steps'"),
        (["--config", "tiny-text", "--set", "run.kernels=tritan"], "'auto', 'torch' or 'triton'"),
        (["--config", "tiny-text", "--set", "oops"], "--set expects key=value"),
        (["--config", "tiny-text", "--set", "data.source=shpes"], "did you mean 'shapes'"),
        (["--config", "tiny-text", "--set", "data.source=folder"], "is read from a path"),
        (["--resume", "-o", "gone"], "holds no run to resume"),
        (["--resume", "-o", "gone", "--config", "tiny-text"], "holds no run to resume"),
        (["--config", "tiny-text", "-o", "full", *TEXT], "already exists and is not empty"),
        (["--config", "tiny-text", "-o", "photo.jpg/run", *TEXT], "is a file"),
    ],
)
def test_a_wrong_call_of_train_is_one_line(
    here: Path, run: Any, words: list[str], said: str
) -> None:
    Path("full").mkdir()
    Path("full/letter.txt").write_text("dear")
    before = set(os.listdir())
    done = run("train", *words, checkpoint=False)
    assert done.status == 2 and done.err.count("\n") == 1 and said in done.err
    assert set(os.listdir()) == before and os.listdir("full") == ["letter.txt"]


def test_a_text_codec_learns_the_captions_of_a_folder(here: Path, run: Any) -> None:
    os.makedirs("album")
    for i, name in enumerate(("oak", "elm", "ash")):
        os.symlink(here / "photo.jpg", f"album/{name}.jpg")
        Path(f"album/{name}.txt").write_text(f"an {name} with {i} birds in it " * 40)
    words = ("train", "--config", "tiny-text", "-o", "run", "--set", "data.source=album")
    done = run(*words, "--set", "codec.vocabulary_size=290", "--json", checkpoint=False)
    assert done.status == 0 and done.json["results"][0]["n_texts"] == 3


def test_resuming_with_another_config_names_what_differs(here: Path, run: Any) -> None:
    words = ("train", "--config", "tiny-text", "-o", "run")
    assert run(*words, *TEXT, checkpoint=False).status == 0
    done = run(*words, "--resume", *TEXT, "--set", "data.n_documents=70", checkpoint=False)
    assert done.status == 2 and "data.n_documents differ" in done.err
    assert run(*words, "--resume", *TEXT, checkpoint=False).status == 0
