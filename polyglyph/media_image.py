"""Pictures through Pillow: any mode to upright 8-bit sRGB, and back to files.

Knows PNG, JPEG, WebP, GIF and BMP, still or animated. Sizes are checked on the header, before
decoding; pixels are always loaded, so a file that ends early is an error here and not later.
A PNG with 16 bits per colour channel comes from Pillow with the upper 8; 16-bit grey is
rescaled here."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from polyglyph.errors import MediaError
from polyglyph.media_formats import Limits

if TYPE_CHECKING:
    import PIL.Image

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_PIL_FORMAT = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP",
               ".gif": "GIF"}  # fmt: skip
# JPEG: no chroma subsampling, which smears small coloured things. WebP: lossless.
_OPTIONS: dict[str, dict] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


def from_array(pixels: np.ndarray) -> PIL.Image.Image:
    """An RGB picture from uint8 (H, W, 3)."""
    import PIL.Image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise MediaError(
            f"an image array is uint8 (height, width, 3); got {pixels.dtype} {pixels.shape}"
        )
    return PIL.Image.fromarray(np.ascontiguousarray(pixels))


def decode(
    file: BinaryIO, label: str, limits: Limits, background: tuple[int, int, int], notes: list[str]
) -> PIL.Image.Image:
    """The picture in a file, or the first frame of an animation, as upright RGB."""
    image = _open(file, label, limits)
    n_frames = _count_frames(image, label)
    if n_frames > 1:
        notes.append(f"animated: this is the first of {n_frames} frames; load it as video for all")
    return normalise(image, label, background, notes)


def decode_frames(
    file: BinaryIO, label: str, limits: Limits, background: tuple[int, int, int], notes: list[str]
) -> tuple[list[np.ndarray], list[float], float]:
    """All frames of an animation: (uint8 (H, W, 3) each, their start times in s, duration in s).

    A frame without a duration, or one of 10 ms or less, is shown for 100 ms, as browsers do."""
    image = _open(file, label, limits)
    n_frames = _count_frames(image, label)
    limits.check_frames(n_frames, label)
    limits.check_duration(0.0, n_frames * image.width * image.height * 3, label)
    frames, times, now_s = [], [], 0.0
    for index in range(n_frames):
        with _as_media_error(label):
            image.seek(index)
            image.load()
        duration_ms = float(image.info.get("duration") or 0)
        frames.append(np.array(normalise(image.copy(), label, background, notes)))
        times.append(now_s)
        now_s += (duration_ms if duration_ms > 10 else 100.0) / 1000
        limits.check_duration(now_s, 0, label)
    return frames, times, now_s


def _open(file: BinaryIO, label: str, limits: Limits) -> PIL.Image.Image:
    import PIL.Image

    with _as_media_error(label), warnings.catch_warnings():
        # Our own limit, below, is the one that counts; Pillow's hard one stays on.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        image = PIL.Image.open(file, formats=_FORMATS)
    limits.check_size(*image.size, label)
    return image


def _count_frames(image: PIL.Image.Image, label: str) -> int:
    with _as_media_error(label):
        return int(getattr(image, "n_frames", 1))


class _as_media_error:
    """Turns whatever Pillow raises while reading into a MediaError of one line."""

    def __init__(self, label: str) -> None:
        self.label = label

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        import PIL
        import PIL.Image

        if not isinstance(error, Exception) or isinstance(error, MediaError):
            return
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, PIL.Image.DecompressionBombError):
            message = "has too many pixels to be decoded safely; scale it down"
        elif "truncated" in reason or "cut off" in reason or isinstance(error, EOFError):
            message = f"ends early: the image is cut off ({reason}); fetch it again"
        elif isinstance(error, PIL.UnidentifiedImageError):
            message = "can't be read as an image: its header is damaged; fetch it again"
        else:
            message = f"can't be read as an image: {reason or type(error).__name__}; fetch it again"
        raise MediaError(f"{self.label} {message}") from error


def normalise(
    image: PIL.Image.Image, label: str, background: tuple[int, int, int], notes: list[str]
) -> PIL.Image.Image:
    """Any PIL image as a new RGB image: loaded, upright, 8 bits, sRGB, on `background`."""
    with _as_media_error(label):
        image.load()
    icc = image.info.get("icc_profile")
    image = _upright(image, notes)
    image = _to_8_bits(image, label, notes)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    if icc:
        image = _to_srgb(image, icc, notes)
    elif image.mode == "CMYK":
        _note(notes, "CMYK without a colour profile: converted plainly, colours are approximate")
    image = image.convert("RGB")
    if alpha is not None:
        image = _composite(image, alpha, background)
    image.info = {}  # a profile or orientation left here would be written again by a save
    return image


def _upright(image: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    import PIL.ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # "Corrupt EXIF data"
            return PIL.ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises whatever the damaged bytes lead to
        _note(notes, "EXIF data is damaged: the orientation is taken as normal")
        return image


def _to_8_bits(image: PIL.Image.Image, label: str, notes: list[str]) -> PIL.Image.Image:
    import PIL.Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise MediaError(f"{label} holds pixels that are not finite; remove them")
    if image.mode == "F":
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    else:
        # 65535 / 255 = 257 exactly. Pillow's own conversion clips at 255 instead.
        is_8_bits = image.mode == "I" and values.max(initial=0.0) <= 255
        scale = 1.0 if is_8_bits else 1 / 257
    _note(notes, f"pixels of mode {image.mode} were rescaled to 8 bits")
    return PIL.Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _to_srgb(image: PIL.Image.Image, icc: bytes, notes: list[str]) -> PIL.Image.Image:
    from PIL import ImageCms

    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(profile).casefold():
            return image
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert converted is not None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        _note(notes, f"its colour profile can't be used ({reason}): colours converted plainly")
        return image
    _note(notes, "colours were converted from its profile to sRGB")
    return converted


def _composite(
    image: PIL.Image.Image, alpha: PIL.Image.Image, background: tuple[int, int, int]
) -> PIL.Image.Image:
    import PIL.Image

    return PIL.Image.composite(image, PIL.Image.new("RGB", image.size, background), alpha)


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def encode(image: PIL.Image.Image, suffix: str) -> bytes:
    """The file of an RGB picture. JPEG at quality 95 without chroma subsampling, WebP lossless."""
    kind = _PIL_FORMAT[suffix]
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **_OPTIONS.get(kind, {}))
    except (OSError, ValueError) as error:
        raise MediaError(
            f"an image of {image.width}x{image.height} can't be written as {kind}: {error}"
        ) from error
    return buffer.getvalue()


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """An endless GIF of uint8 (F, H, W, 3); its clock ticks at 10 ms, errors don't add up.

    A run of equal frames becomes one longer frame, as Pillow writes it."""
    import PIL.Image

    ticks = np.rint(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    durations_ms = [int(d) * 10 for d in np.maximum(np.diff(ticks), 2)]
    # One palette of 256 per frame, without dither, which would shimmer.
    pictures = [PIL.Image.fromarray(f).quantize(256, dither=PIL.Image.Dither.NONE) for f in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0
    )
    return buffer.getvalue()
