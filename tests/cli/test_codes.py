from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import make_codecs

from polyglyph.media import Audio, Image, Video
from polyglyph.tokenizers.base import load_codes

MEDIA = ("photo.jpg", "speech.wav", "clip.mp4")


def left() -> set[str]:
    """What lies in the working directory beside the media."""
    return set(os.listdir()) - set(MEDIA)


# ---------------------------------------------------------------- one file


def test_three_media_go_into_one_file_and_come_back(here: Path, run: Any) -> None:
    Path("text.txt").write_text("a red ring")
    done = run("tokenize", *MEDIA, "text.txt", "-o", "codes.safetensors", "--json")
    assert done.status == 0 and done.json["ok"] and len(done.json["results"]) == 4
    items = load_codes("codes.safetensors")
    assert [(source, [g.modality for g in grids]) for _, source, grids in items] == [
        ("photo.jpg", ["image"]),
        ("speech.wav", ["audio"]),
        ("clip.mp4", ["video", "audio"]),
        ("text.txt", ["text"]),
    ]
    done = run("detokenize", "codes.safetensors", "-o", "out/")
    assert done.status == 0 and not done.out
    assert set(os.listdir("out")) == {"photo.png", "speech.wav", "clip.mp4", "text.txt"}
    assert Image("out/photo.png").pil.size == (34, 21)
    assert Audio("out/speech.wav").n_samples == 850  # 1700 at 8 kHz, the codec has 4 kHz
    clip = Video("out/clip.mp4")
    assert (clip.n_frames, clip.height, clip.width) == (5, 18, 26) and clip.audio is not None
    assert Path("out/text.txt").read_text() == "a red ring"


def test_one_file_is_all_or_nothing(here: Path, run: Any) -> None:
    Path("empty.png").touch()
    words = ("photo.jpg", "empty.png", "gone.wav", "-o", "codes.safetensors", "--json")
    done = run("tokenize", *words)
    assert done.status == 2 and left() == {"empty.png"}
    errors = {error["source"]: error["message"] for error in done.json["errors"]}
    assert "is empty (0 bytes)" in errors["empty.png"] and "gone.wav" in errors["gone.wav"]
    assert not done.json["ok"] and done.json["results"] == []


@pytest.mark.parametrize("output", ["codes.npz", "photo.jpg", "speech.wav/a.safetensors"])
def test_an_output_of_the_wrong_kind_is_refused(here: Path, run: Any, output: str) -> None:
    done = run("tokenize", "photo.jpg", "-o", output, "-f")
    assert done.status == 2 and done.err.count("\n") == 1 and not left()
    assert Image("photo.jpg").width == 34


def test_row_58_existing_output_is_kept_without_f(here: Path, run: Any) -> None:
    Path("codes.safetensors").write_bytes(b"mine")
    done = run("tokenize", "photo.jpg", "-o", "codes.safetensors")
    assert done.status == 2 and "exists" in done.err
    assert Path("codes.safetensors").read_bytes() == b"mine"
    assert run("tokenize", "photo.jpg", "-o", "codes.safetensors", "-f").status == 0
    assert len(load_codes("codes.safetensors")) == 1


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9.jpg", "ein Würfel 🎲.jpg".encode(), b"  two  spaces .jpg", b"x" * 250 + b".jpg"],
)
def test_row_58_any_name_that_the_system_allows_works(here: Path, run: Any, name: bytes) -> None:
    path = os.fsdecode(name)
    shutil.copy("photo.jpg", path)
    assert run("tokenize", path, "-o", "codes.safetensors").status == 0
    done = run("detokenize", "codes.safetensors", "-o", "out", "--json")
    assert done.status == 0 and len(os.listdir("out")) == 1
    assert Image(Path("out") / os.listdir("out")[0]).width == 34
    assert run("tokenize", path, "-o", "many/").status == 0
    assert run("detokenize", "many", "-o", "out2").status == 0 and len(os.listdir("out2")) == 1


def test_a_gif_is_read_as_asked(here: Path, run: Any) -> None:
    Video("clip.mp4").save("clip.gif")
    assert run("tokenize", "clip.gif", "-o", "a.safetensors", "--as", "video").status == 0
    assert run("tokenize", "clip.gif", "-o", "b.safetensors").status == 0
    found = [load_codes(name)[0][2][0].modality for name in ("a.safetensors", "b.safetensors")]
    assert found == ["video", "image"]
    assert "did you mean 'video'" in run("tokenize", "clip.gif", "-o", "c/", "--as", "vido").err


# ---------------------------------------------------------------- a folder


def index(folder: str) -> dict[str, dict[str, Any]]:
    lines = Path(folder, "index.jsonl").read_text().splitlines()
    return {line["source"]: line for line in map(json.loads, lines)}


def test_a_folder_gets_a_file_each_an_index_and_the_errors(here: Path, run: Any) -> None:
    Path("empty.png").touch()
    done = run("tokenize", *MEDIA, "empty.png", "-o", "codes/", "--json")
    assert done.status == 2 and len(done.json["results"]) == 3
    names = {f"{name}.safetensors" for name in MEDIA}
    assert set(os.listdir("codes")) == {*names, "index.jsonl", "errors.jsonl"}
    assert {entry["file"] for entry in index("codes").values()} == names
    (error,) = map(json.loads, Path("codes/errors.jsonl").read_text().splitlines())
    assert error["source"] == "empty.png" and error["type"] == "MediaError"


def test_the_same_command_again_makes_what_is_missing_only(here: Path, run: Any) -> None:
    assert run("tokenize", "photo.jpg", "speech.wav", "-o", "codes/").status == 0
    before = {p: p.stat().st_mtime_ns for p in Path("codes").glob("*.safetensors")}
    Path("codes/speech.wav.safetensors").unlink()
    with open("codes/index.jsonl", "a") as file:
        file.write('{"source": "clip.mp4", "fi')  # a kill in the middle of a line
    done = run("tokenize", *MEDIA, "-o", "codes/")
    assert done.status == 0 and "wrote 2 codes files" in done.err
    photo = Path("codes/photo.jpg.safetensors")
    assert photo.stat().st_mtime_ns == before[photo]
    assert len(list(Path("codes").glob("*.safetensors"))) == 3


def test_a_changed_input_is_encoded_again(here: Path, run: Any) -> None:
    assert run("tokenize", "photo.jpg", "-o", "codes/").status == 0
    Image("photo.jpg").pil.resize((50, 40)).save("photo.jpg")
    assert "wrote 1 codes files" in run("tokenize", "photo.jpg", "-o", "codes/").err
    (item,) = load_codes("codes/photo.jpg.safetensors")
    assert item[2][0].meta.width == 50 and os.listdir("codes").count("photo.jpg.safetensors") == 1


def test_two_inputs_of_one_name_get_a_file_each(here: Path, run: Any) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
        shutil.copy("photo.jpg", f"{name}/x.jpg")
    for _ in range(2):  # again: the same names
        assert run("tokenize", "a", "b", "-o", "codes/").status == 0
        assert len(list(Path("codes").glob("*.safetensors"))) == 2
    assert {entry["source"] for entry in index("codes").values()} == {"a/x.jpg", "b/x.jpg"}


def test_a_folder_of_something_else_is_left_alone(here: Path, run: Any) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    done = run("tokenize", "photo.jpg", "-o", "mine")
    assert done.status == 2 and "holds other files" in done.err
    assert os.listdir("mine") == ["letter.txt"]


# ---------------------------------------------------------------- back


def test_codes_of_another_codec_are_refused_one_by_one(here: Path, run: Any) -> None:
    other = make_codecs(here / "others", seed=1)[1]
    words = ("tokenize", "photo.jpg", "-o", "codes/", "-c", str(other))
    assert run(*words, checkpoint=False).status == 0
    assert run("tokenize", "speech.wav", "-o", "codes/").status == 0
    done = run("detokenize", "codes", "-o", "out", "--json")
    assert done.status == 2 and [Path(r["file"]).name for r in done.json["results"]] == [
        "speech.wav"
    ]
    (error,) = done.json["errors"]
    assert error["type"] == "FormatError" and "decode them with the codec" in error["message"]
    assert set(os.listdir("out")) == {"speech.wav", "errors.jsonl"}


@pytest.mark.parametrize("kind", ["text", "cut", "tensors", "missing", "folder"])
def test_what_is_no_codes_file_is_refused(here: Path, run: Any, kind: str) -> None:
    path = Path("a.safetensors")
    if kind == "text":
        path.write_text("hello")
    elif kind == "cut":
        run("tokenize", "photo.jpg", "-o", path)
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "tensors":
        import numpy as np
        from safetensors.numpy import save_file

        save_file({"a": np.zeros(3)}, path)
    elif kind == "folder":
        path.mkdir()
    done = run("detokenize", path, "-o", "out")
    assert done.status == 2 and done.err.count("\n") == 1 and not Path("out").exists()


def test_existing_results_are_refused_before_any_is_written(here: Path, run: Any) -> None:
    run("tokenize", "photo.jpg", "speech.wav", "-o", "codes.safetensors")
    done = run("detokenize", "codes.safetensors", "-o", ".")
    assert done.status == 2 and "speech.wav" in done.err and left() == {"codes.safetensors"}


def test_an_unknown_checkpoint_and_a_flipped_byte_are_named(
    here: Path, run: Any, made: Path
) -> None:
    done = run("tokenize", "photo.jpg", "-o", "a.safetensors", "-c", "tinny", checkpoint=False)
    assert done.status == 2 and "unknown checkpoint 'tinny'" in done.err
    shutil.copytree(made / "model", "broken")
    weights = Path("broken/tokenizers/image/weights.safetensors")
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    done = run("tokenize", "photo.jpg", "-o", "a.safetensors", "-c", "broken", checkpoint=False)
    assert done.status == 2 and "tokenizers/image/weights.safetensors" in done.err
    assert "sha256" in done.err and not Path("a.safetensors").exists()


def test_a_codec_alone_tokenizes_what_it_can(here: Path, run: Any, made: Path) -> None:
    words = ("tokenize", "photo.jpg", "speech.wav", "-o", "out/", "--json")
    done = run(*words, "-c", str(made / "codecs" / "image"), checkpoint=False)
    assert done.status == 2 and [r["source"] for r in done.json["results"]] == ["photo.jpg"]
    assert "codecs/image 'audio' (available: image)" in done.json["errors"][0]["message"]
