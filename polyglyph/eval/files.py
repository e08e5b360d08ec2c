"""A medium as its user gets it: written as a file and read back, without touching the disk.

PNG and JSON lose nothing, WAV rounds to 16 bits, MP4 loses what H.264 loses. Scores are of these
values. Knows nothing of tasks, codes or models.
"""

from __future__ import annotations

from typing import Any

from polyglyph.media import MODALITY_OF, SUFFIXES, load, to_bytes


def file_bytes(medium: Any) -> bytes:
    """The bytes of the file that a result is saved as."""
    return medium.encode() if isinstance(medium, str) else to_bytes(medium, suffix_of(medium))


def suffix_of(medium: Any) -> str:
    """ ".png" of an Image, ".txt" of a str ..."""
    return ".txt" if isinstance(medium, str) else SUFFIXES[MODALITY_OF(medium)][0]


def as_filed(medium: Any) -> Any:
    """The medium as it comes back from its file."""
    data = file_bytes(medium)
    return data.decode() if isinstance(medium, str) else load(data, MODALITY_OF(medium))
