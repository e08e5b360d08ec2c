"""A folder of media with captions as a source: x.jpg beside x.txt, or captions.jsonl.

An item is one medium with its caption and gives two documents: the medium from the text and the
text from the medium. Files are taken in the order of their names. What can't be read is an
InputError of that item alone. Knows nothing of ids.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath

from polyglyph.errors import InputError
from polyglyph.media import SUFFIXES, load, modality_of
from polyglyph.sequence.document import Document, Segment

CAPTIONS = "captions.jsonl"
MEDIA_SUFFIXES = tuple(
    sorted({s for suffixes in SUFFIXES.values() for s in suffixes if s != ".json"})
)


class Source:
    """Items of a folder and of the folders in it.

    With a captions.jsonl (lines {"path", "text"}, paths relative to the folder) the items are its
    lines; otherwise the media files, each with the text of the same name and suffix .txt.
    """

    name = "folder"

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        root = Path(path)
        if not root.is_dir():
            raise InputError(f"source '{path}' is no folder; expected media with captions")
        self.folder = root.resolve().name
        self._root = root
        self._lines: list[str] = []
        self._files: list[Path] = []
        if (root / CAPTIONS).is_file():
            self._lines = _read_text(root / CAPTIONS).splitlines()
        else:
            self._files = [
                file
                for file in sorted(root.rglob("*"))
                if file.suffix.lower() in MEDIA_SUFFIXES and _is_shown(file.relative_to(root))
            ]
        self.length: int | None = len(self._lines) or len(self._files)
        if not self.length:
            raise InputError(
                f"source '{path}' holds no media; expected files such as x.jpg, x.wav or x.mp4, "
                f"each beside its x.txt, or a {CAPTIONS}"
            )
        self.sha256 = self._digest()

    def _digest(self) -> str:
        """Of names, sizes and captions.jsonl: a changed folder is another source."""
        digest = hashlib.sha256("\n".join(self._lines).encode())
        files = [part for file in self._files for part in (file, file.with_suffix(".txt"))]
        for line in self._lines:
            try:
                files.append(self._from_line(line)[0])
            except InputError:
                continue  # `get` says what is wrong with it
        for file in files:
            size = file.stat().st_size if file.is_file() else -1
            name = str(file.relative_to(self._root)).encode(errors="surrogateescape")
            digest.update(name + f" {size}\n".encode())
        return digest.hexdigest()

    def where(self, index: int) -> str:
        """Names an item in a message."""
        if self._lines:
            return f"{CAPTIONS}:{index + 1}"
        return str(self._files[index].relative_to(self._root))

    def get(self, index: int) -> list[Document]:
        """[text → medium, medium → text]; both hold the same objects. InputError, MediaError."""
        file, text = self._pair(index)
        medium = load(file)
        modality = modality_of(medium)
        pairs = [(modality, medium), ("text", text)]
        return [_document(given, target) for given, target in (pairs[::-1], pairs)]

    def captions(self, index: int) -> list[str]:
        """The item's text, for training a text codec."""
        return [self._pair(index)[1]]

    def _pair(self, index: int) -> tuple[Path, str]:
        if self._lines:
            return self._from_line(self._lines[index])
        file = self._files[index]
        caption = file.with_suffix(".txt")
        if not caption.is_file():
            raise InputError(f"{file.name} has no caption; expected {caption.name} beside it")
        return file, _caption(_read_text(caption), caption.name)

    def _from_line(self, line: str) -> tuple[Path, str]:
        try:
            entry = json.loads(line)
            path, text = entry["path"], entry["text"]
            if not isinstance(path, str) or not isinstance(text, str):
                raise TypeError("path and text are strings")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'expected {{"path": "x.jpg", "text": "..."}}, got {line[:60]!r} ({error!r})'
            ) from error
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).is_absolute() or ".." in parts:
            raise InputError(f"path {path!r} leaves the folder; expected a path inside it")
        return self._root / path, _caption(text, path)


def _document(given: tuple[str, object], target: tuple[str, object]) -> Document:
    return Document(
        [
            Segment(given[0], given[1], role="prompt", loss_weight=0.0),
            Segment(target[0], target[1], role="target", loss_weight=1.0),
        ]
    )


def _caption(text: str, name: str) -> str:
    caption = text.strip()
    if not caption:
        raise InputError(f"the caption of {name} is empty; write what the medium shows")
    return caption


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path.name}: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path.name} can't be read: {reason}") from error


def _is_shown(relative: Path) -> bool:
    return not any(part.startswith(".") for part in relative.parts)
