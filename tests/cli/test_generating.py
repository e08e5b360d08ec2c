from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from polyglyph.cli.generating import read_parts
from polyglyph.errors import InputError
from polyglyph.media import Audio, Image, Video

FEW = ("--max-new", "40")
MANY = ("--prompts", "prompts.jsonl", "--to", "image", "-o", "out")


# ---------------------------------------------------------------- parts


def test_a_part_is_a_text_a_file_or_a_literal_at(here: Path) -> None:
    Path("a.txt").write_text("a ring")
    prompt, inputs = read_parts(["left of", "@photo.jpg", "@@home", "@a.txt", "a@b"])
    assert [p for p in prompt if isinstance(p, str)] == ["left of", "@home", "a ring", "a@b"]
    assert prompt[1].width == 34 and list(inputs) == ["photo.jpg", "a.txt"]
    with pytest.raises(InputError, match="@ alone"):
        read_parts(["@"])


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["--image", "photo.jpg", "ring", "--audio=speech.wav"], ["image", "text", "audio"]),
        (["ring", "--video", "clip.mp4", "--text", "-5"], ["text", "video", "text"]),
        (["--text", "@photo.jpg", "--image", "@photo.jpg"], ["text", "image"]),
        (["--audio", "clip.mp4"], ["audio"]),
        (["--", "--image"], ["text"]),
    ],
)
def test_shorthand_keeps_the_order_of_the_command_line(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], order: list[str]
) -> None:
    from polyglyph.cli import generating
    from polyglyph.media import modality_of

    seen: list[str] = []

    def one(self: Any, parts: list[str], *rest: Any) -> None:
        seen.extend(modality_of(part) for part in read_parts(parts)[0])

    monkeypatch.setattr(generating._Generating, "one", one)
    done = run("generate", "--to", "image", *words, checkpoint=False)
    assert done.status == 0, done.err
    assert seen == order


# ---------------------------------------------------------------- one answer


@pytest.mark.parametrize(
    ("to", "name", "reads"),
    [("image", "a.png", Image), ("video", "a.mp4", Video), ("audio", "a.flac", Audio)],
)
def test_the_answer_is_a_file_of_the_target(
    here: Path, run: Any, to: str, name: str, reads: Any
) -> None:
    done = run("generate", "a ring", "--to", to, "-o", name, "--json", *FEW)
    assert done.status == 0 and done.json["results"][0]["modality"] == to
    reads(name)


def test_a_text_without_o_goes_to_stdout_and_nothing_else_does(here: Path, run: Any) -> None:
    done = run("generate", "@photo.jpg", "what?", "--to", "text", *FEW)
    again = run("generate", "@photo.jpg", "what?", "--to", "text", "-o", "a.txt", *FEW)
    assert done.status == again.status == 0 and not again.out
    assert done.out == Path("a.txt").read_text("utf-8") + "\n"
    assert "brought to" in done.err or not done.err  # said once per process


def test_a_seed_decides_the_answer(here: Path, run: Any) -> None:
    for seed, name in ((1, "a.wav"), (1, "b.wav"), (2, "c.wav")):
        assert run("generate", "ring", "--to", "audio", "-o", name, "--seed", str(seed)).status == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes() != Path("c.wav").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["ring", "--to", "imgae", "-o", "a.png"],
            "unknown modality 'imgae'; did you mean 'image'",
        ),
        (["ring", "--to", "image", "-o", "a.wav"], "can't hold image"),
        (["ring", "--to", "image", "-o", "a"], "its suffix is missing"),
        (["ring", "--to", "image"], "expected -o FILE"),
        (["ring", "-o", "a.png"], "expected --to MODALITY"),
        (["--to", "image", "-o", "a.png"], "expected a PART"),
        (["ring", "--to", "image", "-o", "photo.jpg"], "exists"),
        (["@photo.jpg", "--to", "image", "-o", "photo.jpg", "-f"], "is the input"),
        (["ring", "--to", "image", "-o", "clip.mp4/a.png"], "is a file"),
        (["@gone.png", "--to", "image", "-o", "a.png"], "no such file"),
        (["ring " * 200, "--to", "image", "-o", "a.png"], "context of 200"),
        (["ring", "--to", "image", "-o", "a.png", "--temperature", "-1"], "temperature"),
        (["ring", "--to", "image", "-o", "a.png", "--device", "gpu"], "unknown device 'gpu'"),
        (["ring", "--to", "image", "-o", "a.png", "--seed", "-1"], "a seed lies in"),
    ],
)
def test_wrong_input_is_one_line_status_2_and_no_file(
    here: Path, run: Any, words: list[str], said: str
) -> None:
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    done = run("generate", *words)
    assert done.status == 2 and not done.out
    assert done.err.count("\n") == 1 and said in done.err
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_codecs_alone_say_that_they_can_t_generate(here: Path, run: Any, made: Path) -> None:
    words = (
        "generate",
        "ring",
        "--to",
        "image",
        "-o",
        "a.png",
        "-c",
        str(made / "codecs" / "image"),
    )
    done = run(*words, checkpoint=False)
    assert done.status == 2 and "holds codecs only" in done.err and done.err.count("\n") == 1


def test_a_flipped_byte_of_the_model_is_named(here: Path, run: Any, made: Path) -> None:
    shutil.copytree(made / "model", "broken")
    data = bytearray(Path("broken/model.safetensors").read_bytes())
    data[-9] ^= 16
    Path("broken/model.safetensors").write_bytes(data)
    words = ("generate", "ring", "--to", "image", "-o", "a.png", "-c", "broken")
    done = run(*words, checkpoint=False)
    assert done.status == 2 and "model.safetensors doesn't match its sha256" in done.err


# ---------------------------------------------------------------- many


def write_prompts(*lines: Any) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path("prompts.jsonl").write_text(text + "\n", "utf-8")


def test_a_file_of_prompts_gives_a_folder_of_answers(here: Path, run: Any) -> None:
    write_prompts(
        "a red ring",
        "",
        '"quoted"',
        ["@photo.jpg", "what?"],
        {"prompt": "ring", "to": "audio", "seed": 7, "name": "sound"},
        {"prompt": ["ring"], "name": "sound"},
    )
    done = run(
        "generate", "--prompts", "prompts.jsonl", "--to", "image", "-o", "out", "--json", *FEW
    )
    assert done.status == 0, done.err
    names = [entry["file"] for entry in done.json["results"]]
    assert names[:4] == ["000001.png", "000003.png", "000004.png", "sound.wav"]
    assert names[4].startswith("sound-") and set(os.listdir("out")) == {*names, "index.jsonl"}
    alone = run("generate", "ring", "--to", "audio", "--seed", "7", "-o", "b.wav", *FEW)
    assert alone.status == 0
    assert Path("b.wav").read_bytes() == Path("out/sound.wav").read_bytes()


def test_wrong_lines_are_recorded_and_the_others_answered(here: Path, run: Any) -> None:
    write_prompts(
        "a red ring",
        "ring " * 200,
        ["@gone.png"],
        {"prompt": "x", "too": "image"},
        {"prompt": "x", "to": "vidoe"},
        {"prompt": "x", "name": "../x"},
        {"seed": 4},
        {"prompt": "x", "seed": -4},
        "a blue ring",
        {"promt": "x"},
        {"prompt": "x", "to": ["image"]},
        {"prompt": "x", "seed": "7"},
        {"prompt": "x", "seed": 1e30},
        [],
    )
    done = run(
        "generate", "--prompts", "prompts.jsonl", "--to", "image", "-o", "out", "--json", *FEW
    )
    assert done.status == 2
    assert [entry["line"] for entry in done.json["results"]] == [1, 9]
    lines = Path("out/errors.jsonl").read_text().splitlines()
    errors = {e["source"]: e["message"] for e in map(json.loads, lines)}
    wrong = [*range(2, 9), *range(10, 15)]
    assert set(errors) == {f"line {n}" for n in wrong}
    assert all(f"line {n}" in done.err for n in wrong) and "internal" not in done.err
    assert "context of 200" in errors["line 2"] and "did you mean 'to'" in errors["line 4"]
    assert "did you mean 'video'" in errors["line 5"] and "plain name" in errors["line 6"]
    assert "did you mean 'prompt'" in errors["line 10"] and "whole number" in errors["line 12"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "gone.jsonl", "-o", "out"], "can't be read"),
        (["--prompts", "empty.jsonl", "-o", "out"], "is empty"),
        (["--prompts", "empty.jsonl"], "needs -o DIR"),
        (["--prompts", "empty.jsonl", "ring", "-o", "out"], "takes no PART"),
        (["--prompts", "empty.jsonl", "-o", "photo.jpg"], "is a file"),
        (["--prompts", "empty.jsonl", "-o", "."], "is not empty"),
    ],
)
def test_a_wrong_call_with_prompts_writes_nothing(
    here: Path, run: Any, words: list[str], said: str
) -> None:
    Path("empty.jsonl").write_text("\n")
    before = set(os.listdir())
    done = run("generate", "--to", "image", *words)
    assert done.status == 2 and said in done.err and set(os.listdir()) == before
