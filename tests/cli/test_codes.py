from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import make_codecs, picture, sound

from polyglyph.cli import files
from polyglyph.media import SUFFIXES, Audio, Image, Video
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
    media = {"photo.png", "speech.wav", "clip.mp4", "text.txt"}
    assert set(os.listdir("out")) == media | {"index.jsonl"}
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
    (made,) = set(os.listdir("out")) - {"index.jsonl"}
    assert done.status == 0 and Image(Path("out") / made).width == 34
    assert run("tokenize", path, "-o", "many/").status == 0
    assert run("detokenize", "many", "-o", "out2").status == 0 and len(os.listdir("out2")) == 2


def test_a_gif_is_read_as_asked(here: Path, run: Any) -> None:
    Video("clip.mp4").save("clip.gif")
    assert run("tokenize", "clip.gif", "-o", "a.safetensors", "--as", "video").status == 0
    assert run("tokenize", "clip.gif", "-o", "b.safetensors").status == 0
    found = [load_codes(name)[0][2][0].modality for name in ("a.safetensors", "b.safetensors")]
    assert found == ["video", "image"]
    for words in (("tokenize", "-o", "c/"), ("reconstruct", "-o", "c")):
        done = run(*words, "clip.gif", "photo.jpg", "--as", "vido")
        assert "did you mean 'video'" in done.err and done.err.count("\n") == 1
        assert done.status == 2 and not Path("c").exists()


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
    assert "wrote 1 codes file" in run("tokenize", "photo.jpg", "-o", "codes/").err
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


def fifty_files(folder: Path) -> list[str]:
    """50 media of every container in `folder`, two of them broken; the names of those two."""
    suffixes = [".png", ".jpg", ".webp", ".gif", ".bmp", ".wav", ".flac", ".ogg", ".mp3", ".opus"]
    suffixes += [".mp4", ".webm", ".mkv"]
    for i in range(50):
        suffix = suffixes[i % len(suffixes)]
        path = folder / ("deep" if i % 7 == 3 else ".") / f"{i:02d}{suffix}"
        if suffix in SUFFIXES["image"]:
            Image(picture(11 + i, 20 + i % 9, i)).save(path)
        elif suffix in SUFFIXES["audio"]:
            Audio(sound(900 + 40 * i, i), 8000).save(path)
        else:
            frames = np.stack([picture(16, 20, i + n) for n in range(3)])
            Video(frames, 8.0, Audio(sound(3000, i), 8000) if i % 2 else None).save(path)
    broken = ["05.wav", "26.png"]
    (folder / broken[0]).write_bytes((folder / broken[0]).read_bytes()[:30])
    (folder / broken[1]).write_bytes((folder / broken[1]).read_bytes()[:-200])
    return broken


def test_fifty_files_of_which_two_are_broken_give_48_results(here: Path, run: Any) -> None:
    (here / "media" / "deep").mkdir(parents=True)
    broken = fifty_files(here / "media")
    Path("media/notes.md").write_text("not a medium")
    done = run("tokenize", "media", "-o", "codes/", "--json")
    assert done.status == 2 and len(done.json["results"]) == 48 == len(index("codes"))
    assert len(list(Path("codes").glob("*.safetensors"))) == 48
    errors = [json.loads(line) for line in Path("codes/errors.jsonl").read_text().splitlines()]
    assert [Path(error["source"]).name for error in errors] == broken
    assert all(error["type"] == "MediaError" for error in errors) and errors == done.json["errors"]
    # Repaired: only these two are made, and nothing is on record any more.
    Audio(sound(900), 8000).save("media/05.wav", force=True)
    Image(picture(12, 20)).save("media/26.png", force=True)
    done = run("tokenize", "media", "-o", "codes/", "--json")
    assert done.status == 0 and len(done.json["results"]) == 50
    assert "wrote 2 codes files" in done.err and not Path("codes/errors.jsonl").exists()


def test_a_run_that_is_killed_leaves_whole_files_and_the_next_goes_on(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyglyph.tokenizers import base

    save, calls = base.save_codes, []

    def killed(path: Path, items: Any, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).with_name(".tmp-012345.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        save(path, items, **options)

    monkeypatch.setattr(base, "save_codes", killed)
    done = run("tokenize", *MEDIA, "-o", "codes/")
    assert done.status == 130 and set(index("codes")) == {"photo.jpg"}
    done = run("detokenize", "codes", "-o", "out", "--json")  # the half file is not one of them
    assert done.status == 0 and len(done.json["results"]) == 1
    done = run("tokenize", *MEDIA, "-o", "codes/")
    assert done.status == 0 and "wrote 2 codes files" in done.err and len(calls) == 4
    assert {p.name for p in Path("codes").iterdir()} == {
        *(f"{name}.safetensors" for name in MEDIA), "index.jsonl",
    }  # fmt: skip


def test_strict_stops_at_the_first_broken_file(here: Path, run: Any) -> None:
    Path("a.png").write_bytes(b"junk")
    done = run("tokenize", "photo.jpg", "a.png", "speech.wav", "-o", "codes/", "--strict", "--json")
    assert done.status == 2 and [r["source"] for r in done.json["results"]] == ["photo.jpg"]
    assert len(Path("codes/errors.jsonl").read_text().splitlines()) == 1
    assert "stopped at the first error (--strict): 1 input is left" in done.err


def test_an_error_of_ours_on_one_file_spares_the_others(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyglyph.tokenizers.image import ImageTokenizer

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(ImageTokenizer, "encode", broken)
    done = run("tokenize", "photo.jpg", "speech.wav", "-o", "codes/", "--json")
    assert done.status == 1 and [r["source"] for r in done.json["results"]] == ["speech.wav"]
    assert "internal error: ZeroDivisionError" in done.json["errors"][0]["message"]


def test_a_quoted_pattern_is_what_the_shell_would_make_of_it(here: Path, run: Any) -> None:
    shutil.copy("photo.jpg", "photo[1].jpg")
    assert run("tokenize", "photo*.jpg", "speech.*", "-o", "a/").status == 0
    assert set(index("a")) == {"photo.jpg", "photo[1].jpg", "speech.wav"}
    assert run("tokenize", "photo[1].jpg", "-o", "b/").status == 0  # a file of that very name
    assert set(index("b")) == {"photo[1].jpg"}
    done = run("tokenize", "*.flac", "-o", "c/")
    assert done.status == 2 and "no file matches '*.flac'" in done.err and not Path("c").exists()
    done = run("detokenize", "a/photo*", "-o", "out", "--json")
    assert done.status == 0 and len(done.json["results"]) == 2


def test_what_is_asked_for_otherwise_is_made_again(here: Path, run: Any) -> None:
    Video("clip.mp4").save("clip.gif")
    for words, modality, n_codebooks in (
        (["clip.gif"], "image", 1),
        (["clip.gif", "--as", "video"], "video", 1),
        (["speech.wav"], "audio", 3),
        (["speech.wav", "--codebooks", "2"], "audio", 2),
    ):
        done = run("tokenize", *words, "-o", "codes/", "--json")
        (grid,) = done.json["results"][0]["grids"]
        assert (grid["modality"], grid["shape"][0]) == (modality, n_codebooks)
        assert "wrote 0 codes files" in run("tokenize", *words, "-o", "codes/").err


def test_fewer_codebooks_take_fewer_codes_and_come_back(here: Path, run: Any) -> None:
    for n in (1, 3):
        words = ("tokenize", "speech.wav", "photo.jpg", "-o", f"{n}.safetensors")
        assert run(*words, "--codebooks", str(n)).status == 0
    few, all_ = (load_codes(f"{n}.safetensors") for n in (1, 3))
    np.testing.assert_array_equal(few[0][2][0].codes, all_[0][2][0].codes[:1])
    assert few[1][2][0] == all_[1][2][0]  # a picture's one codebook is what it is
    assert run("detokenize", "1.safetensors", "-o", "out").status == 0
    assert Audio("out/speech.wav").n_samples == 850
    for n in ("0", "4"):
        done = run("tokenize", "speech.wav", "-o", "x.safetensors", "--codebooks", n)
        assert done.status == 2 and "goes from 1 to 3" in done.err


def test_a_named_codec_stands_in_for_the_checkpoints(here: Path, run: Any, made: Path) -> None:
    other = make_codecs(here / "others", seed=1)
    image = next(folder for folder in other if folder.name == "image")
    for codec in (image, image / "tokenizers" / "image"):  # a checkpoint, a codec's own folder
        words = ("tokenize", "photo.jpg", "speech.wav", "-o", "x.safetensors", "-f")
        assert run(*words, "--codec", str(codec)).status == 0
        marks = [grids[0].fingerprint for _, _, grids in load_codes("x.safetensors")]
        assert run(*words).status == 0
        ours = [grids[0].fingerprint for _, _, grids in load_codes("x.safetensors")]
        assert marks[0] != ours[0] and marks[1] == ours[1]
    # A checkpoint that isn't there is missed only by media that no named codec takes.
    words = ("tokenize", "photo.jpg", "speech.wav", "-o", "c/", "--json", "-c", "gone")
    done = run(*words, "--codec", str(image), checkpoint=False)
    assert done.status == 2 and [r["source"] for r in done.json["results"]] == ["photo.jpg"]
    words = ("detokenize", "c", "-o", "out", "-c", "gone", "--codec", str(image))
    assert run(*words, checkpoint=False).status == 0 and Image("out/photo.png").width == 34
    done = run("tokenize", "photo.jpg", "-o", "d/", "--codec", "imagge")
    assert done.status == 2 and "unknown codec 'imagge'; did you mean 'image'" in done.err
    done = run("tokenize", "photo.jpg", "-o", "d/", "--codec", "image", "--codebooks", "1")
    assert done.status == 2 and "leave --codebooks out" in done.err  # the span of the checkpoint
    done = run("tokenize", "photo.jpg", "-o", "d/", "--codec", str(image), "--codec", "image")
    assert done.status == 2 and "second codec of image" in done.err


def test_row_18_a_long_sound_is_encoded_in_chunks_to_the_codes_of_the_whole(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Audio(np.concatenate([sound(30_000), sound(30_000, 1)]), 8000).save("long.wav")
    assert run("tokenize", "long.wav", "-o", "whole.safetensors").status == 0
    from polyglyph import media

    stream = media.stream_sound
    sizes: list[int] = []

    def counted(*words: Any, **options: Any) -> Any:
        for chunk in stream(*words, **options, chunk_samples=7000):
            sizes.append(chunk.n_samples)
            yield chunk

    monkeypatch.setattr(files, "LONG_S", 1.0)
    monkeypatch.setattr(media, "stream_sound", counted)
    assert run("tokenize", "long.wav", "-o", "chunks.safetensors").status == 0
    assert len(sizes) == 4 and max(sizes) < 9000 and sum(sizes) == 30_000
    whole, chunked = (load_codes(f"{n}.safetensors")[0][2][0] for n in ("whole", "chunks"))
    assert chunked.meta == whole.meta
    assert (chunked.codes != whole.codes).mean() <= 0.001  # but for declared ties
    data = Path("long.wav").read_bytes()
    Path("long.wav").write_bytes(data[: len(data) // 2])
    done = run("tokenize", "long.wav", "-o", "cut.safetensors")
    assert done.status == 0 and "note: long.wav: ends early" in done.err
    assert run("tokenize", "long.wav", "-o", "cut/", "--strict").status == 2


def test_row_19_silence_an_offset_and_clipping_go_through_with_finite_figures(
    here: Path, run: Any
) -> None:
    t = np.arange(9000)
    for name, samples in {
        "silent": np.zeros(9000), "offset": np.full(9000, 0.7), "clipped": np.sign(np.sin(t / 9)),
    }.items():  # fmt: skip
        Audio(samples, 8000).save(f"{name}.wav")
    done = run("reconstruct", "silent.wav", "offset.wav", "clipped.wav", "-o", "out", "--json")
    assert done.status == 0 and "NaN" not in done.out and "Infinity" not in done.out
    assert len(done.json["results"]) == 3


# ---------------------------------------------------------------- back


def test_row_29_codes_of_another_codec_are_refused_naming_both(here: Path, run: Any) -> None:
    other = next(f for f in make_codecs(here / "others", seed=1) if f.name == "image")
    assert run("tokenize", "photo.jpg", "-o", "a.safetensors").status == 0
    mark = load_codes("a.safetensors")[0][2][0].fingerprint
    words = ("detokenize", "a.safetensors", "-o", "out", "-f", "--codec", str(other), "--json")
    done = run(*words)
    assert done.status == 2 and not done.json["results"]
    ours = json.loads((other / "checkpoint.json").read_text())["tokenizers"]["image"]["fingerprint"]
    message = done.json["errors"][0]["message"]
    assert mark[:12] in message and ours[:12] in message and mark != ours


def test_going_back_goes_on_where_it_was_interrupted(here: Path, run: Any) -> None:
    assert run("tokenize", *MEDIA, "-o", "codes/").status == 0
    assert run("detokenize", "codes", "-o", "out").status == 0
    before = {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()}
    Path("out/photo.png").unlink()
    done = run("detokenize", "codes", "-o", "out", "--json")
    assert done.status == 0 and len(done.json["results"]) == 3
    assert "wrote 1 file to out/, 2 stood there already" in done.err
    for name in ("speech.wav", "clip.mp4"):
        assert Path("out", name).stat().st_mtime_ns == before[name]
    # A newer codes file is decoded again; a result that somebody has changed since is kept.
    assert run("tokenize", "speech.wav", "-o", "codes/", "-f", "--codebooks", "1").status == 0
    assert "wrote 1 file" in run("detokenize", "codes", "-o", "out").err
    assert run("tokenize", "speech.wav", "-o", "codes/", "-f").status == 0
    Path("out/speech.wav").write_bytes(b"mine")
    done = run("detokenize", "codes", "-o", "out")
    assert done.status == 2 and "exists" in done.err
    assert Path("out/speech.wav").read_bytes() == b"mine"


def test_a_broken_codes_file_is_recorded_and_the_rest_comes_back(here: Path, run: Any) -> None:
    assert run("tokenize", *MEDIA, "-o", "codes/").status == 0
    path = Path("codes/clip.mp4.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    done = run("detokenize", "codes/*.safetensors", "-o", "out", "--json")
    assert done.status == 2 and len(done.json["results"]) == 2
    (error,) = map(json.loads, Path("out/errors.jsonl").read_text().splitlines())
    assert error["type"] == "FormatError" and error["source"].endswith("clip.mp4.safetensors")
    done = run("detokenize", "codes", "-o", "strict", "--strict")
    assert done.status == 2 and not Path("strict").exists()


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
    assert set(os.listdir("out")) == {"speech.wav", "errors.jsonl", "index.jsonl"}


@pytest.mark.parametrize("kind", ["text", "cut", "tensors", "missing", "folder"])
def test_what_is_no_codes_file_is_refused(here: Path, run: Any, kind: str) -> None:
    path = Path("a.safetensors")
    if kind == "text":
        path.write_text("hello")
    elif kind == "cut":
        run("tokenize", "photo.jpg", "-o", path)
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "tensors":
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
