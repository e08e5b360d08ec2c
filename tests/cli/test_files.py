from __future__ import annotations

import os
from pathlib import Path

import pytest

from polyglyph.cli import files
from polyglyph.errors import InputError, MediaError


def test_a_text_file_is_a_text_and_any_other_a_medium(here: Path) -> None:
    Path("a.txt").write_text("ein Würfel 🎲\n", "utf-8")
    assert files.read("a.txt") == "ein Würfel 🎲\n"
    assert files.read("photo.jpg").width == 34


def test_a_file_is_read_as_what_is_asked(here: Path) -> None:
    assert files.read("clip.mp4", "audio").sample_rate == 8000
    with pytest.raises(MediaError, match="expected video"):
        files.read("speech.wav", "video")
    with pytest.raises(InputError, match="unknown modality 'vidoe'; did you mean 'video'"):
        files.read("clip.mp4", "vidoe")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"caf\xe9", "byte 3 is not UTF-8"),
        ("a.png", b"", "is empty"),
        ("a.png", b"what", "begins with the bytes"),
    ],
)
def test_a_file_that_can_t_be_read_is_one_sentence(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match=said):
        files.read(tmp_path / name)


def test_a_folder_stands_for_the_media_in_it(here: Path) -> None:
    (here / "sub").mkdir()
    for name in ("notes.md", "photo.txt", "index.json", ".tmp-1.png", "sub/A.PNG"):
        (here / name).write_text("x")
    found = files.expand([".", "photo.jpg"])
    assert found == ["./clip.mp4", "./photo.jpg", "./speech.wav", "./sub/A.PNG", "photo.jpg"]
    (here / "empty").mkdir()
    with pytest.raises(InputError, match="holds no media files"):
        files.expand(["empty"])


def test_names_come_from_sources_and_never_twice() -> None:
    names = files.Names(["d.png"])
    first = [names.of(s, ".png") for s in ("a/x.jpg", "b/x.jpg", "b/x.jpg", "", "..", "d.gif")]
    assert first[0] == "x.png" and first[3] == "unnamed.png" and len(set(first)) == 6
    assert "d.png" not in first and not any("/" in name for name in first)
    again = files.Names(["d.png"])
    assert [again.of(s, ".png") for s in ("a/x.jpg", "b/x.jpg")] == first[:2]
    assert len(os.fsencode(files.Names().of("é" * 400 + ".png", ".safetensors"))) < 256
    assert files.Names().of("photo.jpg", ".st", keep_suffix=True) == "photo.jpg.st"


def test_an_output_that_is_the_input_is_refused_under_any_name(here: Path) -> None:
    os.symlink("photo.jpg", "other.jpg")
    os.link("photo.jpg", "third.jpg")
    for name in ("photo.jpg", "./photo.jpg", "other.jpg", "third.jpg"):
        with pytest.raises(InputError, match="is the input"):
            files.refuse_input(name, ["speech.wav", "photo.jpg"])
    files.refuse_input("new.jpg", ["photo.jpg"])


def test_a_target_is_checked_before_the_work(here: Path) -> None:
    files.check_target("new/deep/a.png", "image", False)
    with pytest.raises(InputError, match=r"can't hold image: its suffix is .wav; use one of .png"):
        files.check_target("a.wav", "image", False)
    with pytest.raises(InputError, match="its suffix is missing"):
        files.check_target("a", "image", False)
    with pytest.raises(InputError, match="exists"):
        files.check_target("photo.jpg", "image", False)
    files.check_target("photo.jpg", "image", True)
    with pytest.raises(InputError, match="is a file"):
        files.check_target("photo.jpg/a.png", "image", False)
    assert not (here / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="no permission"):
        files.check_writable(str(tmp_path / "a.png"))


def test_a_result_that_is_text_is_written_whole(tmp_path: Path) -> None:
    files.write("ein Ring", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text("utf-8") == "ein Ring"
    with pytest.raises(InputError, match="exists"):
        files.write("x", tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["a.txt"]
