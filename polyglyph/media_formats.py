"""What a media file is, judged by its first bytes, and the limits checked before decoding.

Knows the supported formats by magic number and the well-known unsupported ones with a hint each.
Decodes nothing."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from polyglyph.checkpoint import shown
from polyglyph.errors import MediaError

Source = str | os.PathLike | bytes | bytearray | memoryview

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What an input may be at most; checked on its header, before decoding.

    `max_pixels` and `max_aspect` (longer side over shorter) hold for a picture and for one frame.
    `max_bytes` holds for what a clip or a sound takes once decoded. No image is padded here: a
    codec pads to its own stride; a side under `min_side` is an error."""

    max_pixels: int = 50_000_000
    min_side: int = 1
    max_aspect: float = 10_000.0
    max_duration_s: float = 4 * 3600.0
    max_frames: int = 100_000
    max_bytes: int = 4 << 30

    def check_size(self, width: int, height: int, label: str) -> None:
        """Raises MediaError for a picture or a frame (pixels) outside the limits."""
        if width * height > self.max_pixels:
            raise MediaError(
                f"{label} is {width}x{height}, {width * height / 1e6:.0f} million pixels; "
                f"the limit is {self.max_pixels / 1e6:g} million; scale it down or raise max_pixels"
            )
        if min(width, height) < self.min_side:
            raise MediaError(
                f"{label} is {width}x{height}; expected at least {self.min_side} pixels a side; "
                f"scale it up"
            )
        if max(width, height) > self.max_aspect * max(1, min(width, height)):
            raise MediaError(
                f"{label} is {width}x{height}; one side may be at most {self.max_aspect:g} times "
                f"the other; crop it or raise max_aspect"
            )

    def check_duration(self, duration_s: float, n_bytes: float, label: str) -> None:
        """Raises MediaError for a clip or a sound that is too long or too big once decoded."""
        if duration_s > self.max_duration_s:
            raise MediaError(
                f"{label} lasts {duration_s:.0f} s; the limit is {self.max_duration_s:g} s; "
                f"cut it or raise max_duration_s"
            )
        if n_bytes > self.max_bytes:
            raise MediaError(
                f"{label} would take {n_bytes / 2**30:.1f} GiB once decoded; the limit is "
                f"{self.max_bytes / 2**30:g} GiB; cut it, scale it down or raise max_bytes"
            )

    def check_frames(self, n_frames: int, label: str) -> None:
        """Raises MediaError for a clip of too many frames."""
        if n_frames > self.max_frames:
            raise MediaError(
                f"{label} has {n_frames} frames; the limit is {self.max_frames}; "
                f"cut it or raise max_frames"
            )


@dataclass(frozen=True)
class Format:
    """A supported format: its name, and what it can be loaded as, the usual one first."""

    name: str
    modalities: tuple[str, ...]


PNG = Format("PNG", ("image", "video"))
JPEG = Format("JPEG", ("image",))
WEBP = Format("WebP", ("image", "video"))
GIF = Format("GIF", ("image", "video"))
BMP = Format("BMP", ("image",))
WAV = Format("WAV", ("audio",))
FLAC = Format("FLAC", ("audio",))
OGG = Format("OGG", ("audio",))
MP3 = Format("MP3", ("audio",))
AAC = Format("AAC", ("audio",))
MP4 = Format("MP4", ("video", "audio"))
M4A = Format("M4A", ("audio", "video"))
WEBM = Format("WebM/MKV", ("video", "audio"))
JSON = Format("JSON", ("region", "action"))

BY_SUFFIX = {
    ".png": PNG, ".apng": PNG, ".jpg": JPEG, ".jpeg": JPEG, ".webp": WEBP, ".gif": GIF, ".bmp": BMP,
    ".wav": WAV, ".flac": FLAC, ".ogg": OGG, ".oga": OGG, ".opus": OGG, ".mp3": MP3, ".aac": AAC,
    ".mp4": MP4, ".m4v": MP4, ".mov": MP4, ".m4a": M4A, ".webm": WEBM, ".mkv": WEBM, ".json": JSON,
}  # fmt: skip
SUPPORTED = "PNG JPEG WebP GIF BMP; WAV FLAC OGG Opus MP3 M4A; MP4 WebM MKV"

_PREFIXES = (
    (b"\x89PNG\r\n\x1a\n", PNG), (b"\xff\xd8\xff", JPEG), (b"GIF87a", GIF), (b"GIF89a", GIF),
    (b"fLaC", FLAC), (b"OggS", OGG), (b"ID3", MP3), (b"\x1aE\xdf\xa3", WEBM), (b"BM", BMP),
)  # fmt: skip
_UNSUPPORTED = (
    (b"%PDF", "PDF", "export its pages as PNG"),
    (b"II*\0", "TIFF", "convert it to PNG"),
    (b"MM\0*", "TIFF", "convert it to PNG"),
    (b"8BPS", "Photoshop", "export it as PNG"),
    (b"\0\0\1\0", "ICO", "convert it to PNG"),
    (b"\xff\x0a", "JPEG XL", "convert it to PNG"),
    (b"\0\0\0\x0cJXL ", "JPEG XL", "convert it to PNG"),
    (b"FORM", "AIFF", "convert it to WAV"),
    (b"PK\x03\x04", "ZIP", "unpack it first"),
    (b"\x1f\x8b", "gzip", "unpack it first"),
)


def sniff(head: bytes) -> Format | None:
    """The supported format that the first bytes of a file show, or None."""
    for magic, found in _PREFIXES:
        if head.startswith(magic):
            return found
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return WAV
    if head[4:8] == b"ftyp" and head[8:12] not in (b"heic", b"heix", b"mif1", b"msf1", b"avif"):
        return M4A if head[8:11] in (b"M4A", b"M4B") else MP4
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return MP4
    # An MPEG frame: 11 bits of sync; the two layer bits are zero in AAC (ADTS) and 01 in MP3.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        layer = head[1] & 0x06
        return AAC if layer == 0 and head[1] & 0xF0 == 0xF0 else MP3 if layer == 2 else None
    if head.lstrip()[:1] == b"{":
        return JSON
    return None


def unsupported_hint(head: bytes) -> str | None:
    """`SVG is not supported; ...` for a well-known format that isn't, or None."""
    for magic, name, hint in _UNSUPPORTED:
        if head.startswith(magic):
            return f"{name} is not supported; {hint}"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return "HEIC is not supported; convert it to JPEG"
    if head[4:12] == b"ftypavif":
        return "AVIF is not supported; convert it to PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI is not supported; convert it to MP4"
    if b"<svg" in head[:2048].lower():
        return "SVG is not supported; render it to PNG first"
    return None


@contextlib.contextmanager
def open_source(source: Source) -> Iterator[tuple[BinaryIO, str, str]]:
    """Yields (seekable binary file, name for messages, suffix in lower case) of a path or bytes.

    Raises MediaError for what isn't a readable file; never passes a name on to a library, so any
    name that the file system allows works."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(bytes(source)), f"the {len(source)} bytes given", ""
        return
    label = shown(source)
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            kind = "folder" if os.path.isdir(source) else "device or pipe"
            raise MediaError(f"{label} is a {kind}; expected a media file")
        file = open(source, "rb")  # noqa: SIM115  closed by the with below
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MediaError(f"{label}: {reason}; expected the path of a media file") from error
    except ValueError as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{label} is not a valid path: {error}") from error
    with file:
        yield file, label, Path(os.fsdecode(source)).suffix.lower()


def identify(file: BinaryIO, label: str, suffix: str) -> Format:
    """The format of an open file, by content and then by suffix; rewinds the file.

    Raises MediaError that names the first bytes found and the supported formats."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise MediaError(f"{label} is empty (0 bytes); expected a media file: {SUPPORTED}")
    hint = unsupported_hint(head)
    if hint is not None:
        raise MediaError(f"{label}: {hint} (supported: {SUPPORTED})")
    found = sniff(head)
    if found is None and BY_SUFFIX.get(suffix) in (MP3, AAC):
        return BY_SUFFIX[suffix]  # these two may begin with anything
    if found is None:
        raise MediaError(
            f"{label} is no media file that can be read: it begins with the bytes "
            f"{head[:8].hex(' ')}; supported: {SUPPORTED}"
        )
    return found
