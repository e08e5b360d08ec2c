"""The first bytes tell the format; the limits are checked on numbers, before any decoding."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from polyglyph import media_formats as formats
from polyglyph.errors import MediaError
from polyglyph.media_formats import Limits, identify, open_source, sniff, unsupported_hint


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n", formats.PNG),
        (b"\xff\xd8\xff\xe0", formats.JPEG),
        (b"GIF89a", formats.GIF),
        (b"BM\0\0", formats.BMP),
        (b"RIFF\0\0\0\0WEBPVP8 ", formats.WEBP),
        (b"RIFF\0\0\0\0WAVEfmt ", formats.WAV),
        (b"RF64\xff\xff\xff\xffWAVEds64", formats.WAV),
        (b"fLaC", formats.FLAC),
        (b"OggS", formats.OGG),
        (b"ID3\x04", formats.MP3),
        (b"\xff\xfb\x90\x00", formats.MP3),
        (b"\xff\xf1\x50\x80", formats.AAC),
        (b"\0\0\0\x20ftypisom", formats.MP4),
        (b"\0\0\0\x14ftypqt  ", formats.MP4),
        (b"\0\0\0\x20ftypM4A ", formats.M4A),
        (b"\x1aE\xdf\xa3", formats.WEBM),
        (b' \n{"modality"', formats.JSON),
        (b"\xff\xe8\0\0", None),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"\0\0\0\x18ftypheic", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_the_first_bytes_tell_the_format(head: bytes, expected: formats.Format | None) -> None:
    assert sniff(head) is expected


def test_row_10_no_supported_format_is_called_unsupported() -> None:
    for head in (b"\x89PNG\r\n\x1a\n", b"\0\0\0\x20ftypisom", b"RIFF\0\0\0\0WAVE", b"{}"):
        assert unsupported_hint(head) is None


def test_identify_rewinds_and_trusts_the_name_only_where_content_can_not_tell() -> None:
    file = io.BytesIO(b"OggS and more")
    assert identify(file, "'a'", ".png") is formats.OGG and file.tell() == 0
    assert identify(io.BytesIO(b"\0\0 padding"), "'a'", ".mp3") is formats.MP3
    with pytest.raises(MediaError, match="begins with the bytes 00 00 20"):
        identify(io.BytesIO(b"\0\0 padding"), "'a'", ".wav")


def test_a_source_is_a_path_or_bytes(tmp_path: Path) -> None:
    (tmp_path / "A.PNG").write_bytes(b"data")
    with open_source(tmp_path / "A.PNG") as (file, label, suffix):
        assert (file.read(), suffix) == (b"data", ".png") and "A.PNG" in label
    assert file.closed
    with open_source(memoryview(b"data")) as (file, label, suffix):
        assert (file.read(), label, suffix) == (b"data", "the 4 bytes given", "")


def test_limits_stand_exactly_at_their_numbers() -> None:
    limits = Limits(max_pixels=100, min_side=4, max_aspect=5, max_duration_s=2, max_frames=3)
    limits.check_size(20, 5, "x")
    limits.check_size(4, 20, "x")
    limits.check_frames(3, "x")
    limits.check_duration(2.0, limits.max_bytes, "x")
    for width, height, said in (
        (101, 1, "million"),
        (25, 3, "at least 4 pixels a side"),
        (4, 21, "at most 5 times"),
    ):
        with pytest.raises(MediaError, match=said):
            limits.check_size(width, height, "x")
    with pytest.raises(MediaError, match="the limit is 3"):
        limits.check_frames(4, "x")
    with pytest.raises(MediaError, match="the limit is 2 s"):
        limits.check_duration(2.1, 0, "x")
    with pytest.raises(MediaError, match="GiB"):
        limits.check_duration(0, limits.max_bytes + 1, "x")
