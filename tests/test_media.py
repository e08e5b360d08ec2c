"""What a file is shows in its content; outputs are whole, named by suffix, never overwritten."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polyglyph import checkpoint, media
from polyglyph.errors import InputError, MediaError
from polyglyph.media import Action, Audio, Image, Region, Video, load, save, to_bytes


def picture() -> Image:
    y, x = np.mgrid[:7, :5]
    return Image(np.stack([x * 40, y * 30, x * y], axis=-1).astype(np.uint8))


def tone(n_samples: int = 800, sample_rate: int = 8000) -> Audio:
    return Audio(0.5 * np.sin(np.arange(n_samples) * 0.3), sample_rate)


def clip() -> Video:
    frames = np.repeat(np.arange(3, dtype=np.uint8)[:, None, None, None] * 80, 8, axis=1)
    return Video(np.tile(frames, (1, 1, 8, 3)), 4)


# --- what a file is


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"hello, I am no image", "begins with the bytes 68 65 6c 6c 6f 2c 20 49"),
        (b"\x7fELF" + bytes(60), "begins with the bytes 7f 45 4c 46"),
        (b"\x89PNG\r\n\x1a\n" + b"junk" * 9, "can't be read as an image"),
        (b"GIF89a", "can't be read as an image"),
    ],
)
def test_row_02_what_is_no_image_is_refused_with_its_first_bytes(data: bytes, said: str) -> None:
    with pytest.raises(MediaError) as caught:
        load(data)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    if "begins" in said or "empty" in said:
        assert "PNG JPEG WebP GIF BMP" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "AVIF"),
        (b"%PDF-1.7\n", "PDF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"RIFF\x10\0\0\0AVI LIST", "AVI"),
    ],
)
def test_row_10_a_known_unsupported_format_is_named_with_a_hint(data: bytes, name: str) -> None:
    with pytest.raises(MediaError, match=rf"{name} is not supported; \w+ .*supported: PNG"):
        load(data)


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "sound.png").write_bytes(to_bytes(tone(), ".flac"))
    loaded = load(tmp_path / "sound.png")
    assert isinstance(loaded, Audio) and loaded.n_samples == 800


def test_a_medium_of_another_modality_is_refused() -> None:
    with pytest.raises(
        MediaError, match=r"is a PNG file, which holds image or video; expected aud"
    ):
        load(to_bytes(picture(), ".png"), "audio")
    with pytest.raises(InputError, match=r"unknown modality 'vidoe'; did you mean 'video'\?"):
        load(to_bytes(picture(), ".png"), "vidoe")
    with pytest.raises(MediaError, match="expected image"):
        Image(to_bytes(tone(), ".wav"))


@pytest.mark.parametrize("suffix", sorted({s for kind in media.SUFFIXES.values() for s in kind}))
def test_damaged_bytes_give_a_medium_or_an_error_of_ours_and_nothing_else(suffix: str) -> None:
    rng = np.random.default_rng(0)
    values = (picture(), tone(), clip(), Region(np.zeros(2), "point"))
    value = next(v for v in values if suffix in media.SUFFIXES[media.modality_of(v)])
    data = to_bytes(value, suffix)
    for trial in range(20):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 200 if trial % 2 else len(data)), 4):
            damaged[place] = rng.integers(0, 256)
        cut = len(data) if trial % 3 else int(rng.integers(1, len(data)))
        try:
            load(bytes(damaged[:cut]), limits=media.Limits(max_bytes=100 << 20))
        except InputError as error:
            assert "\n" not in str(error)


# --- names and places


@pytest.mark.parametrize("name", ["sp ace é 🎈", b"caf\xe9", "n" * 248, "-f", "new\nline", "%d"])
@pytest.mark.parametrize("suffix", [".png", ".wav", ".mp4"])
def test_row_58_any_name_that_the_file_system_allows_works(
    tmp_path: Path, name: str | bytes, suffix: str
) -> None:
    path = tmp_path / (os.fsdecode(name) + suffix)
    value = {".png": picture(), ".wav": tone(), ".mp4": clip()}[suffix]
    value.save(path)
    assert type(load(path)) is type(value)
    with pytest.raises(InputError, match="exists") as caught:
        save(value, path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode("utf-8")


def test_row_58_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    cases = {
        tmp_path / "absent.png": "no such file or directory",
        tmp_path: "is a folder",
        Path(os.devnull): "device or pipe",
        tmp_path / ("n" * 300): "file name too long",
    }
    for path, said in cases.items():
        with pytest.raises(MediaError, match=said):
            load(path)
    with pytest.raises(MediaError, match="not a valid path"):
        load("a\0b.png")


def test_row_58_the_output_may_be_the_input_with_force_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    before = path.read_bytes()
    image = Image(path)
    with pytest.raises(InputError, match=r"exists; choose another name or pass -f"):
        image.save(path)
    assert path.read_bytes() == before
    Image(image.array[:, ::-1].copy()).save(path, force=True)
    np.testing.assert_array_equal(Image(path).array, image.array[:, ::-1])
    assert os.listdir(tmp_path) == ["a.png"]


def test_row_58_an_output_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="can't be written"):
        picture().save(tmp_path / "file/a.png")
    picture().save(tmp_path / "new/folders/a.png")
    assert Image(tmp_path / "new/folders/a.png") == picture()


def test_nothing_half_written_is_left_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        assert Path(source).stat().st_size > 0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(checkpoint.MachineError, match="no space left"):
        picture().save(tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "suffix", "supported"),
    [
        (picture(), ".tiff", ".png .jpg .jpeg .webp .bmp .gif"),
        (picture(), ".mp4", ".png"),
        (tone(), ".aac", ".wav .flac .ogg .opus .mp3"),
        (clip(), ".avi", ".mp4 .webm .mkv .gif"),
        (clip(), "", ".mp4"),
    ],
)
def test_a_suffix_that_can_not_hold_the_medium_is_refused_with_those_that_can(
    tmp_path: Path, value: media.Media, suffix: str, supported: str
) -> None:
    with pytest.raises(MediaError, match=r"can't be written as") as caught:
        save(value, tmp_path / f"out{suffix}")
    assert supported in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_row_59_files_are_read_and_written_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for value, name in ((picture(), "a.png"), (tone(), "a.flac"), (clip(), "a.mkv")):
        value.save(tmp_path / name)
        assert type(load(tmp_path / name)) is type(value)
    with pytest.raises(InputError, match="unknown checkpoint"):
        checkpoint.find_checkpoint("some-name-on-a-hub")
    with pytest.raises(MediaError, match="no such file"):
        load("https://example.org/a.png")


def test_row_59_a_playlist_that_names_other_files_is_not_followed() -> None:
    with pytest.raises(MediaError, match="begins with the bytes 23 45 58 54"):
        load(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")


# --- regions, actions, words


def test_regions_and_actions_round_trip_as_json(tmp_path: Path) -> None:
    for index, value in enumerate(
        (
            Region(np.array([0.1, 0.2, 0.5, 1.0]), "box"),
            Region(np.array([0.25, 0.75]), "time"),
            Action(np.array([[0.5, -3.0, 2.0]])),
        )
    ):
        path = tmp_path / f"{index}.json"
        value.save(path)
        assert load(path) == value
    with pytest.raises(MediaError, match="holds 'region'; expected action"):
        load(tmp_path / "0.json", "action")
    with pytest.raises(MediaError, match="is no region or action"):
        load(b'{"modality": "region"}')


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ([0, 0, 1], "box", "a box has 4 values"),
        ([0.5, 0, 0.4, 1], "box", "starts before it ends"),
        ([0.9, 0.1], "time", "starts before it ends"),
        ([0.5, 1.5], "point", "fractions in"),
        ([0.5, float("nan")], "point", "fractions in"),
        ([0.5, 0.5], "pont", "did you mean 'point'"),
    ],
)
def test_a_region_out_of_range_is_refused(values: list[float], kind: str, said: str) -> None:
    with pytest.raises(MediaError, match=said):
        Region(np.array(values), kind)


def test_an_action_of_a_wrong_shape_or_value_is_refused() -> None:
    for wrong in (np.zeros(3), np.zeros((0, 2)), np.array([[np.inf]])):
        with pytest.raises(MediaError, match="action"):
            Action(wrong)


def test_every_medium_knows_its_modality() -> None:
    values = [
        "words",
        picture(),
        tone(),
        clip(),
        Region(np.zeros(2), "point"),
        Action(np.ones((1, 1))),
    ]
    names = ["text", "image", "audio", "video", "region", "action"]
    assert [media.modality_of(value) for value in values] == names
    with pytest.raises(MediaError, match="got ndarray"):
        media.modality_of(np.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.wav", "a.opus"])
def test_a_sound_in_parts_is_saved_as_the_whole_whole_or_not_at_all(
    name: str, tmp_path: Path
) -> None:
    whole = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 9000)).astype(np.float32)
    parts = [Audio(whole[:, :4000], 11_025), Audio(whole[:, 4000:], 11_025)]
    notes = media.save_sound(iter(parts), tmp_path / name)
    due = Audio(whole, 11_025)
    save(due, tmp_path / f"due-{name}")
    assert notes == due.notes and "clamped" in notes[0]
    assert load(tmp_path / name) == load(tmp_path / f"due-{name}")
    with pytest.raises(InputError, match="exists"):
        media.save_sound(iter(parts), tmp_path / name)

    def failing() -> Iterator[Audio]:
        yield parts[0]
        raise MediaError("the codes end here")

    with pytest.raises(MediaError, match="end here"):
        media.save_sound(failing(), tmp_path / "b.wav")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"due-{name}"])
    with pytest.raises(MediaError, match="can't be written as"):
        media.save_sound(iter(parts), tmp_path / "a.png")
