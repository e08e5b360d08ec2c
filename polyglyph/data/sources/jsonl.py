"""Documents from a JSONL file: one document in its JSON form (format 1) on each line.

Paths of media are relative to the file's folder. A line that is no document is an InputError of
that item alone. Knows nothing of ids.
"""

from __future__ import annotations

import json
from pathlib import Path

from polyglyph.checkpoint import sha256_file
from polyglyph.errors import FormatError, InputError
from polyglyph.sequence.document import Document


class Source:
    """Item i is line i; lines are read when asked for, so the file may be large."""

    name = "jsonl"

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise InputError(f"source '{path}' is no file; expected documents, one JSON a line")
        self._offsets = [0]
        with open(self._path, "rb") as file:
            for line in file:
                self._offsets.append(self._offsets[-1] + len(line))
        self.length: int | None = len(self._offsets) - 1
        if not self.length:
            raise InputError(f"source '{path}' is empty; expected documents, one JSON a line")
        self.file, self.sha256 = self._path.name, sha256_file(self._path)

    def where(self, index: int) -> str:
        """Names an item in a message."""
        return f"{self._path.name}:{index + 1}"

    def get(self, index: int) -> list[Document]:
        """The document of a line, its media still paths. FormatError says what is wrong."""
        with open(self._path, "rb") as file:
            file.seek(self._offsets[index])
            line = file.read(self._offsets[index + 1] - self._offsets[index])
        try:
            data = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise FormatError(f"the line is no JSON document: {error}") from error
        return [Document.from_json(data, root=self._path.parent)]

    def captions(self, index: int) -> list[str]:
        """The item's texts, for training a text codec."""
        return [segment.text for document in self.get(index) for segment in document.of("text")]
