"""A document: segments of text and media in order, and its JSON form (format 1).

Knows what a segment holds, not how it is tokenized or laid out as ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.base import CodeGrid, check_format

FORMAT = 1
_KEYS = {"modality", "role", "text", "path", "codes_key", "loss_weight", "meta", "span"}
_SOURCES = ("text", "path", "codes_key")


@dataclass
class Segment:
    """One modality's stretch of a document.

    `content` is a text (str), a medium of `polyglyph.media`, a Path to one that is loaded when an
    accessor asks for it, a CodeGrid, or None where only `codes` are known.
    """

    modality: str
    content: Any = None
    role: str = "user"  # user | assistant | prompt | target ...
    loss_weight: float = 1.0
    codes: CodeGrid | None = None
    span: str | None = None  # the codec; None means the one named like the modality
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.content, CodeGrid):
            self.codes = self.codes or self.content
        if self.codes is not None and self.codes.modality != self.modality:
            raise InputError(
                f"a segment of modality {self.modality} got {self.codes.modality} codes"
            )

    @property
    def codec(self) -> str:
        """The span that the segment's codes belong to."""
        return self.span or self.modality

    @property
    def text(self) -> str:
        return self._medium("text")

    @property
    def image(self) -> Any:
        """The picture as a PIL image."""
        return self._medium("image").pil

    @property
    def audio(self) -> Any:
        return self._medium("audio")

    @property
    def video(self) -> Any:
        return self._medium("video")

    @property
    def region(self) -> Any:
        return self._medium("region")

    @property
    def action(self) -> Any:
        return self._medium("action")

    def same_codes(self, other: Segment) -> bool:
        """True when both hold the same codes of the same codec; ids carry no more than that."""
        if self.codes is None or other.codes is None or self.codec != other.codec:
            return False
        return self.codes.same_codes(other.codes)

    def _medium(self, modality: str) -> Any:
        if self.modality != modality:
            raise InputError(f"this segment is {self.modality}; read it with .{self.modality}")
        if isinstance(self.content, Path):
            from polyglyph.media import load

            self.content = load(self.content, modality=modality)
        if self.content is None or isinstance(self.content, CodeGrid):
            raise InputError(f"this {modality} segment holds codes only; decode them first")
        return self.content

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """One entry of the document's JSON; `path` is where the medium was saved, if it was.

        InputError for a medium that has neither a path nor a `codes_key` in its meta.
        """
        entry: dict[str, Any] = {"modality": self.modality, "role": self.role}
        meta = dict(self.meta)
        codes_key = meta.pop("codes_key", None)
        if isinstance(self.content, str):
            entry["text"] = self.content
        elif path is not None or isinstance(self.content, Path):
            entry["path"] = str(path if path is not None else self.content)
        elif codes_key is not None:
            entry["codes_key"] = codes_key
        else:
            raise InputError(
                f"a {self.modality} segment has no path; save its medium and pass the path, or "
                "put the key of its codes into meta['codes_key']"
            )
        entry["loss_weight"] = self.loss_weight
        entry["meta"] = meta
        if self.span is not None:
            entry["span"] = self.span
        return entry


class Document(list[Segment]):
    """A list of segments. Equal when its segments are; `same_codes` compares codes only."""

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        super().__init__(segments)

    @property
    def segments(self) -> list[Segment]:
        return self

    def of(self, modality: str) -> Iterator[Segment]:
        """The segments of one modality, in order."""
        return (segment for segment in self if segment.modality == modality)

    def same_codes(self, other: Document) -> bool:
        return len(self) == len(other) and all(a.same_codes(b) for a, b in zip(self, other))

    def __repr__(self) -> str:
        return f"Document({', '.join(segment.modality for segment in self)})"

    def to_json(self, paths: Mapping[int, str | Path] | None = None) -> dict[str, Any]:
        """{format, segments}; `paths` says where the medium of segment i was saved."""
        paths = paths or {}
        entries = [segment.to_json(paths.get(i)) for i, segment in enumerate(self)]
        return {"format": FORMAT, "segments": entries}

    @classmethod
    def from_json(
        cls,
        data: Any,
        *,
        root: str | Path = ".",
        codes: Mapping[str, CodeGrid] | None = None,
    ) -> Document:
        """Inverse of `to_json`. Paths are taken relative to `root`, codes from `codes` by key.

        FormatError names the segment and the field that is wrong.
        """
        if not isinstance(data, dict) or not isinstance(data.get("segments"), list):
            raise FormatError('a document is {"format": 1, "segments": [...]}; got something else')
        check_format(data.get("format"), "the document")
        entries = enumerate(data["segments"])
        return cls(_segment_from_json(i, entry, Path(root), codes or {}) for i, entry in entries)


def _segment_from_json(
    index: int, entry: Any, root: Path, codes: Mapping[str, CodeGrid]
) -> Segment:
    where = f"segment {index} of the document"
    if not isinstance(entry, dict) or not isinstance(entry.get("modality"), str):
        raise FormatError(f"{where} names no modality; expected an object with one")
    strange = sorted(set(entry) - _KEYS)
    if strange:
        raise FormatError(f"{where} has unknown field {strange[0]!r}; known: {sorted(_KEYS)}")
    given = [name for name in _SOURCES if name in entry]
    if len(given) != 1 or not isinstance(entry[given[0]], str):
        raise FormatError(f"{where} needs exactly one of text, path, codes_key, as a string")
    weight = entry.get("loss_weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise FormatError(f"{where} has loss_weight {weight!r}; expected a number from 0")
    role, meta, span = entry.get("role", "user"), entry.get("meta", {}), entry.get("span")
    if not isinstance(role, str) or not isinstance(meta, dict):
        raise FormatError(f"{where}: role is a string and meta an object; got {role!r}, {meta!r}")
    if span is not None and not isinstance(span, str):
        raise FormatError(f"{where} has span {span!r}; expected a string")
    content: Any = None
    grid = None
    meta = dict(meta)
    if given == ["text"]:
        content = entry["text"]
    elif given == ["path"]:
        content = root / entry["path"]
    else:
        key = meta["codes_key"] = entry["codes_key"]
        if key not in codes:
            raise FormatError(f"{where} wants codes {key!r}, which the codes file lacks")
        content = grid = codes[key]
    return Segment(entry["modality"], content, role, float(weight), grid, span, meta)
