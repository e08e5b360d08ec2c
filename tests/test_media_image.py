"""Pictures of every kind become upright 8-bit sRGB, or are refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ImageCms

from polyglyph.errors import MediaError
from polyglyph.media import Image, Limits, Video, load, to_bytes


def gradient(height: int = 13, width: int = 17) -> np.ndarray:
    """uint8 (H, W, 3) without any symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 9 % 256, y * 15 % 256, (x * y) % 256], axis=-1).astype(np.uint8)


def file_of(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_lossless_formats_give_every_pixel_back(suffix: str) -> None:
    image = Image(gradient())
    assert Image(to_bytes(image, suffix)) == image


@pytest.mark.parametrize("suffix", [".jpg", ".gif"])
def test_lossy_formats_keep_odd_sizes_and_colours(suffix: str) -> None:
    pixels = np.zeros((15, 21, 3), np.uint8)
    pixels[:, :10] = (200, 30, 40)
    loaded = Image(to_bytes(Image(pixels), suffix)).array
    assert loaded.shape == pixels.shape
    assert np.abs(loaded.astype(int) - pixels).mean() < 3


@pytest.mark.parametrize(
    ("kind", "keep"), [("PNG", 0.5), ("JPEG", 0.6), ("BMP", 0.5), ("GIF", 0.4)]
)
def test_row_01_an_image_cut_off_is_refused_when_it_is_loaded(kind: str, keep: float) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = file_of(PIL.Image.fromarray(pixels), kind)
    with pytest.raises(MediaError, match=r"ends early|can't be read as an image") as caught:
        load(data[: int(len(data) * keep)])
    assert "\n" not in str(caught.value)


def test_row_01_says_that_the_image_ends_early(tmp_path: Path) -> None:
    data = file_of(PIL.Image.fromarray(gradient(64, 64)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.jpg' ends early: the image is cut off"):
        load(tmp_path / "cut.jpg")


def test_row_01_an_image_given_unloaded_is_refused_too() -> None:
    data = file_of(PIL.Image.fromarray(gradient(64, 64)), "JPEG")
    with pytest.raises(MediaError, match="ends early"):
        Image(PIL.Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 9_000), (10_000, 5_001)])
def test_row_03_a_huge_image_is_refused_by_its_header(
    size: tuple[int, int], recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(MediaError, match=r"million; scale it down|too many pixels"):
        load(png_that_claims(*size))
    assert not recwarn.list


def test_row_03_the_limit_is_configurable() -> None:
    data = file_of(PIL.Image.fromarray(gradient()))
    with pytest.raises(MediaError, match=r"17x13.*the limit is 0\.0001 million"):
        load(data, limits=Limits(max_pixels=100))
    assert load(data, limits=Limits(max_pixels=17 * 13)) == Image(gradient())


def test_row_04_16_bit_grey_keeps_its_levels() -> None:
    levels = np.linspace(0, 65535, 64).round().astype(np.uint16)
    data = file_of(PIL.Image.fromarray(np.tile(levels, (3, 1))))
    loaded = load(data)
    assert isinstance(loaded, Image)
    expected = np.rint(levels / 65535 * 255)
    np.testing.assert_array_equal(loaded.array[1, :, 0], expected)
    assert len(np.unique(loaded.array)) == 64
    assert any("rescaled to 8 bits" in note for note in loaded.notes)


def test_row_04_float_and_int_images_given_by_hand_are_rescaled() -> None:
    ramp = np.linspace(0, 1, 5, dtype=np.float32)[None]
    assert Image(PIL.Image.fromarray(ramp)).array[0, :, 0].tolist() == [0, 64, 128, 191, 255]
    whole = PIL.Image.fromarray(np.array([[0, 65535]], np.int32))
    assert Image(whole).array[0, :, 0].tolist() == [0, 255]
    with pytest.raises(MediaError, match="not finite"):
        Image(PIL.Image.fromarray(np.array([[np.nan]], np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGB", "L"])
def test_row_05_transparency_is_laid_on_the_background(mode: str) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, 3:] = 255  # left: transparent black; right: opaque white
    image = PIL.Image.fromarray(pixels)
    options = {}
    if mode in ("RGB", "L"):
        image, options = image.convert(mode), {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    elif mode == "P":
        image = PIL.Image.fromarray(pixels[..., 0] // 255)
        image.putpalette([0, 0, 0, 255, 255, 255])
        options = {"transparency": 0}
    else:
        image = image.convert(mode)
    data = file_of(image, **options) if mode != "PA" else file_of(image.convert("RGBA"))
    assert (Image(data).array == 255).all()
    red = load(data, background=(255, 0, 0))
    assert isinstance(red, Image)
    assert (red.array[:, :3] == (255, 0, 0)).all() and (red.array[:, 3:] == 255).all()


def test_row_05_half_transparency_blends() -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[..., 3] = 128
    assert set(np.unique(Image(PIL.Image.fromarray(pixels)).array)) <= {126, 127, 128}


def swapped_profile() -> bytes:
    """A profile that isn't sRGB: its red and green primaries are exchanged."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    icc = icc.replace(b"\0s\0R\0G\0B", b"\0t\0e\0s\0t")
    return icc.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_row_06_colours_go_through_the_profile_to_srgb(mode: str) -> None:
    red = PIL.Image.new("RGB", (3, 2), (255, 0, 0)).convert(mode)
    loaded = Image(file_of(red, icc_profile=swapped_profile()))
    # Red in that profile is a green of the sRGB colour space.
    assert np.abs(loaded.array.astype(int) - (0, 255, 0)).max() <= 3
    assert any("profile to sRGB" in note for note in loaded.notes)
    assert Image(to_bytes(loaded, ".png")) == loaded  # and isn't converted again


def test_row_06_srgb_itself_and_a_damaged_profile_change_nothing() -> None:
    plain = PIL.Image.fromarray(gradient())
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert Image(file_of(plain, icc_profile=icc)) == Image(gradient())
    damaged = Image(file_of(plain, icc_profile=b"not a profile" * 9))
    assert damaged == Image(gradient())
    assert any("profile can't be used" in note for note in damaged.notes)


@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0))]
)
def test_row_06_cmyk_without_a_profile_is_converted_with_a_note(
    ink: tuple[int, ...], colour: tuple[int, ...]
) -> None:
    data = file_of(PIL.Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    loaded = Image(data)
    assert np.abs(loaded.array.astype(int) - colour).max() <= 4
    assert any(note.startswith("CMYK without a colour profile") for note in loaded.notes)


# Where the stored row 0 and column 0 lie in the picture as it is shown (EXIF 2.32, tag 0x0112).
STORED = {
    1: lambda d: d,
    2: lambda d: d[:, ::-1],
    3: lambda d: d[::-1, ::-1],
    4: lambda d: d[::-1],
    5: lambda d: d.transpose(1, 0, 2),
    6: lambda d: np.stack([d[:, -1 - r] for r in range(d.shape[1])]),
    7: lambda d: np.stack([d[::-1, -1 - r] for r in range(d.shape[1])]),
    8: lambda d: np.stack([d[::-1, r] for r in range(d.shape[1])]),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_row_07_every_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    shown = gradient()
    stored = PIL.Image.fromarray(np.ascontiguousarray(STORED[orientation](shown)))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = Image(file_of(stored, kind, exif=exif.tobytes(), **options))
    np.testing.assert_array_equal(loaded.array, shown)
    assert Image(to_bytes(loaded, ".png")) == loaded  # the tag is gone with the turn


def test_row_07_damaged_exif_is_not_fatal() -> None:
    data = file_of(PIL.Image.fromarray(gradient()), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk")
    image = Image(data)
    assert image == Image(gradient())
    assert image.notes == ["EXIF data is damaged: the orientation is taken as normal"]


def animation(kind: str) -> tuple[bytes, list[np.ndarray]]:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [np.full((9, 11, 3), colour, np.uint8) for colour in colours]
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    options: dict = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(
        pictures[0], kind, save_all=True, append_images=pictures[1:], duration=200, **options
    )
    return data, frames


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_row_08_an_animation_is_its_first_frame_as_image_and_all_as_video(kind: str) -> None:
    data, frames = animation(kind)
    image, video = load(data), load(data, "video")
    assert isinstance(image, Image) and isinstance(video, Video)
    np.testing.assert_array_equal(image.array, frames[0])
    assert image.notes == ["animated: this is the first of 3 frames; load it as video for all"]
    np.testing.assert_array_equal(video.frames, np.stack(frames))
    assert video.fps == 5


def test_row_08_a_gif_of_uneven_times_is_sampled_by_time() -> None:
    _, frames = animation("GIF")
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    data = file_of(
        pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=[300, 100, 200]
    )
    video = Video(data)
    assert video.fps == 10
    assert [int(frame[0, 0].argmax()) for frame in video.frames] == [0, 0, 0, 1, 2, 2]
    with pytest.raises(MediaError, match="has 3 frames; the limit is 2"):
        load(data, "video", limits=Limits(max_frames=2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_row_09_extreme_sizes_within_the_limits_load_as_they_are(size: tuple[int, int]) -> None:
    image = Image(file_of(PIL.Image.new("RGB", size, (1, 2, 3))))
    assert (image.width, image.height) == size


def test_row_09_beyond_the_limits_the_error_names_the_rule() -> None:
    thin = file_of(PIL.Image.new("RGB", (1, 12_000)))
    with pytest.raises(MediaError, match=r"1x12000; one side may be at most 10000 times the other"):
        load(thin)
    small = file_of(PIL.Image.new("RGB", (9, 7)))
    with pytest.raises(MediaError, match=r"9x7; expected at least 8 pixels a side"):
        load(small, limits=Limits(min_side=8))


def test_an_array_of_another_kind_is_refused() -> None:
    for wrong in (np.zeros((3, 4)), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(MediaError, match=r"uint8 \(height, width, 3\)"):
            Image(wrong)
