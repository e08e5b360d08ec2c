"""What every tokenizer shares: the grid of codes, what inversion needs, the codes file.

Knows no network, no id and no modality's algorithm; numpy only. The formats are version 1 of the
design: tensors `000000.image` ... in one safetensors file with a JSON list of items beside them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from polyglyph.errors import FormatError, InputError, unknown

if TYPE_CHECKING:
    from polyglyph.config import Config

FORMAT = 1
C = TypeVar("C", bound="Config")
M = TypeVar("M")


@dataclass(frozen=True)
class Meta:
    """What decoding needs beside the codes: sizes before padding, rates. Frozen and JSON-able."""


@dataclass(frozen=True)
class TextMeta(Meta):
    """Text needs nothing beside its codes."""


@dataclass(frozen=True)
class ImageMeta(Meta):
    height: int  # pixels, before padding to the stride
    width: int


@dataclass(frozen=True)
class VideoMeta(Meta):
    n_frames: int  # before padding in time
    height: int  # pixels, before padding
    width: int
    fps: float


@dataclass(frozen=True)
class AudioMeta(Meta):
    n_samples: int  # at `sample_rate`, before padding to the hop
    sample_rate: int  # Hz, of the codec
    n_channels: int
    source_rate: int | None = None  # Hz, of the input
    levels: tuple[float, ...] = ()  # of each window, where a codec divides by them (EnCodec 48 kHz)


@dataclass(frozen=True)
class RegionMeta(Meta):
    kind: str = "box"  # box | point | time


@dataclass(frozen=True)
class ActionMeta(Meta):
    low: tuple[float, ...]  # (D,) value of the lowest bin's edge
    high: tuple[float, ...]  # (D,)


META_TYPES: dict[str, type[Meta]] = {
    "text": TextMeta,
    "image": ImageMeta,
    "video": VideoMeta,
    "audio": AudioMeta,
    "region": RegionMeta,
    "action": ActionMeta,
}


def meta_to_json(meta: Meta) -> dict[str, Any]:
    """The fields of `meta` as plain JSON: tuples become lists, empty defaults are left out."""
    unset = {f.name for f in dataclasses.fields(meta) if f.default == ()}
    pairs = dataclasses.asdict(meta).items()
    kept = {key: value for key, value in pairs if value != () or key not in unset}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def meta_from_json(modality: str, data: Mapping[str, Any]) -> Meta:
    """Inverse of `meta_to_json`. FormatError on an unknown modality, key, or a missing field."""
    if modality not in META_TYPES:
        raise unknown("modality", modality, META_TYPES, FormatError)
    kind = META_TYPES[modality]
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise unknown(f"key of {modality} meta", key, fields, FormatError)
    needed = [name for name, f in fields.items() if f.default is dataclasses.MISSING]
    missing = [name for name in needed if name not in data]
    if missing:
        raise FormatError(f"{modality} meta lacks {', '.join(missing)}; expected {list(fields)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return kind(**values)


@dataclass(frozen=True, eq=False)
class CodeGrid:
    """Codes of one medium: what a tokenizer encodes to and decodes from.

    Equal when modality, codes, meta and fingerprint are; `same_codes` leaves out the last two.
    """

    modality: str
    codes: np.ndarray  # (Q, *grid) int32
    meta: Meta = field(default_factory=Meta)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        assert np.issubdtype(codes.dtype, np.integer) and codes.ndim >= 2 and codes.shape[0] >= 1
        if codes.dtype != np.int32:
            object.__setattr__(self, "codes", codes.astype(np.int32))

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid without the codebooks: (H, W) of an image, (F,) of a sound."""
        return self.codes.shape[1:]

    @property
    def n_codebooks(self) -> int:
        return self.codes.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.codes.size

    def same_codes(self, other: CodeGrid) -> bool:
        """True when modality and codes agree, whatever meta and fingerprint say."""
        return self.modality == other.modality and np.array_equal(self.codes, other.codes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CodeGrid):
            return NotImplemented
        same = self.meta == other.meta and self.fingerprint == other.fingerprint
        return same and self.same_codes(other)

    def __repr__(self) -> str:
        return f"CodeGrid({self.modality} {self.n_codebooks}x{self.shape}, {self.meta})"


@dataclass(frozen=True)
class SpanSpec:
    """The shape of one codec's codes: all that a grammar has to know of a tokenizer."""

    span: str  # "image", "audio-speech"
    modality: str
    codebook_size: int
    n_codebooks: int
    grid_rank: int  # text 1, image 2 (H, W), video 3 (F, H, W), audio 1 (F), region 1, action 2

    def __post_init__(self) -> None:
        assert self.codebook_size >= 1 and self.n_codebooks >= 1 and 1 <= self.grid_rank <= 3

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpanSpec:
        return cls(**data)


class Tokenizer(ABC):
    """Media to codes and back. Subclasses set the attributes below before any method is called.

    Streams: `encode_stream` gives grids that `join` makes into the grid of the whole, and
    `decode_stream` media that follow one another. A modality without a time axis comes in one
    piece; one with it holds no more than a bounded stretch of a stream at any time.
    """

    span: str
    modality: str
    spec: SpanSpec
    fingerprint: str
    config: Config
    stride: tuple[int, ...] = ()  # pixels, frames or samples per code along each axis of the grid
    # The grid of an answer where neither caller nor checkpoint names one; None: the model's choice.
    target_grid: tuple[int, ...] | None = None
    is_residual: bool = False  # the first codebooks alone decode too, more coarsely

    @abstractmethod
    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        """Codes (Q, *grid) of one medium, with the meta that `decode` needs.

        n_codebooks: the first so many codebooks only, of a residual codec. InputError for another
        medium and for codebooks that the codec hasn't."""

    @abstractmethod
    def decode(self, grid: CodeGrid) -> Any:
        """The medium of `grid`, cropped to its meta; calls `check_fingerprint` first."""

    @abstractmethod
    def default_meta(self, grid_shape: Sequence[int]) -> Meta:
        """The meta of generated codes: full size, nothing cropped."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes codec.json and weights.safetensors (or text.model) into `folder`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Inverse of `save`."""

    def encode_batch(
        self, media: Sequence[Any], *, n_codebooks: int | None = None
    ) -> list[CodeGrid]:
        """One grid per medium; equals `encode` one by one."""
        return [self.encode(item, n_codebooks=n_codebooks) for item in media]

    def encode_stream(
        self, chunks: Iterable[Any], *, n_codebooks: int | None = None
    ) -> Iterator[CodeGrid]:
        """The grids of a medium that comes in chunks, as soon as they are sure; `join` of them is
        what `encode` of the whole gives."""
        yield self.encode(self.gather(chunks), n_codebooks=n_codebooks)

    def decode_stream(self, pieces: Iterable[CodeGrid]) -> Iterator[Any]:
        """The media of `pieces`, in order; together what `decode` of their `join` gives."""
        yield self.decode(self.join(list(pieces)))

    def gather(self, chunks: Iterable[Any]) -> Any:
        """The medium that `chunks` make up, where it has to be there as a whole."""
        items = list(chunks)
        if len(items) != 1:
            raise InputError(f"{self.modality} comes in one chunk; got {len(items)}")
        return items[0]

    def join(self, pieces: Sequence[CodeGrid]) -> CodeGrid:
        """The grid of a whole from the pieces of a stream. InputError where they don't fit."""
        if len(pieces) != 1:
            raise InputError(f"{self.modality} codes come in one piece; got {len(pieces)}")
        return pieces[0]

    def chosen_codebooks(self, n_codebooks: int | None) -> int:
        """How many codebooks a call uses: all, unless a residual codec is asked for fewer."""
        most = self.spec.n_codebooks
        n = most if n_codebooks is None else n_codebooks
        least = 1 if self.is_residual else most
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not least <= n <= most:
            range_ = f"{least} to {most}" if least < most else f"{most}, which need one another"
            raise InputError(f"the {self.span} codec has codebooks {range_}; got {n!r}")
        return int(n)

    def asked(self, n_codebooks: int) -> tuple[int, ...]:
        """What a net is told of the codebooks: nothing where it is all of them, since nets that
        aren't residual have no such argument."""
        return () if n_codebooks == self.spec.n_codebooks else (n_codebooks,)

    def check_fingerprint(self, grid: CodeGrid) -> None:
        """FormatError unless `grid` is of this codec: fingerprint, modality, shape, code range.

        An empty fingerprint (codes made by hand) is let through to the other checks.
        """
        if grid.fingerprint and grid.fingerprint != self.fingerprint:
            raise FormatError(
                f"codes were made by codec {grid.fingerprint[:12]}, this {self.modality} codec is "
                f"{self.fingerprint[:12]}; decode them with the codec that made them"
            )
        check_grid(grid, self.spec, fewer_codebooks=self.is_residual)
        expected = META_TYPES[self.modality]
        if dataclasses.fields(expected) and not isinstance(grid.meta, expected):
            raise FormatError(
                f"{self.modality} codes carry {expected.__name__}, got {type(grid.meta).__name__}"
            )


def check_grid(grid: CodeGrid, spec: SpanSpec, *, fewer_codebooks: bool = False) -> None:
    """FormatError unless modality, codebooks, rank and code range of `grid` are those of `spec`.

    fewer_codebooks: of a residual codec, the first ones are enough to decode (not to render)."""
    if grid.modality != spec.modality:
        raise FormatError(f"expected {spec.modality} codes, got {grid.modality} codes")
    least = 1 if fewer_codebooks else spec.n_codebooks
    fits = least <= grid.n_codebooks <= spec.n_codebooks
    if not fits or len(grid.shape) != spec.grid_rank:
        raise FormatError(
            f"{spec.span} codes have {spec.n_codebooks} codebooks and a grid of rank "
            f"{spec.grid_rank}, got shape {grid.codes.shape}"
        )
    if grid.codes.size and not 0 <= grid.codes.min() <= grid.codes.max() < spec.codebook_size:
        at = np.argwhere((grid.codes < 0) | (grid.codes >= spec.codebook_size))[0]
        raise FormatError(
            f"{spec.span} code {grid.codes[tuple(at)]} at {tuple(at.tolist())} is outside "
            f"0..{spec.codebook_size - 1}; the codes are of another codec or damaged"
        )


def join_codes(pieces: Sequence[CodeGrid]) -> np.ndarray:
    """The codes (Q, F, ...) of pieces that follow one another in time.

    InputError for no pieces and for pieces of several codecs or sizes."""
    if not pieces:
        raise InputError("a stream of codes needs at least one piece, got none")
    for piece in pieces:
        check_follows(pieces[0], piece)
    return np.concatenate([piece.codes for piece in pieces], axis=1)


def check_follows(first: CodeGrid, piece: CodeGrid) -> None:
    """InputError unless `piece` is of one stream with `first`: codec, codebooks and size."""
    same = (piece.modality, piece.fingerprint) == (first.modality, first.fingerprint)
    if not same or (piece.n_codebooks, piece.shape[1:]) != (first.n_codebooks, first.shape[1:]):
        raise InputError(
            f"pieces of one stream are of one codec and size; got {first!r}, then {piece!r}"
        )


# What a medium can be read from: the name of a file, or its bytes.
SOURCES = (str, os.PathLike, bytes, bytearray, memoryview)


def as_medium(media: Any, kind: type[M], more: tuple[type, ...] = ()) -> M:
    """`media` as a `kind`: itself, or what `kind` makes of a file's name, bytes or `more`.

    InputError for anything else, such as another medium."""
    if isinstance(media, kind):
        return media
    if isinstance(media, (*SOURCES, *more)):
        return kind(media)  # type: ignore[call-arg]
    raise InputError(f"expected {kind.__name__}, or a file of one; got {type(media).__name__}")


def read_codec_json(folder: str | Path) -> dict[str, Any]:
    """codec.json of a saved tokenizer: at least {"format", "modality"}. FormatError otherwise."""
    path = Path(folder) / "codec.json"
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{folder} holds no codec.json; expected a saved tokenizer") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("modality"), str):
        raise FormatError(f"{path} names no modality; expected the codec.json of a tokenizer")
    check_format(data.get("format", FORMAT), path)
    return data


def write_codec_json(
    folder: str | Path, modality: str, span: str, config: Config, fingerprint: str
) -> None:
    """codec.json of a saved tokenizer; makes `folder`. `fingerprint` is that of what is stored."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    description = {
        "format": FORMAT,
        "kind": "codec",
        "modality": modality,
        "span": span,
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint,
    }
    (Path(folder) / "codec.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def read_config(folder: str | Path, config_class: type[C]) -> C:
    """The config of a saved tokenizer. FormatError without one, ConfigError for a wrong key."""
    from polyglyph.config import build

    config = read_codec_json(folder).get("config")
    if not isinstance(config, dict):
        raise FormatError(f"codec {folder}: codec.json holds no config; get a fresh copy")
    return build(config_class, config, f"codec {folder}")


def check_format(found: Any, path: str | Path) -> None:
    """FormatError, naming both numbers, unless `found` is a format this version reads."""
    if not isinstance(found, int) or found < 1:
        raise FormatError(f"{path} has format {found!r}; expected a whole number from 1")
    if found > FORMAT:
        raise FormatError(
            f"{path} has format {found}, this version reads up to {FORMAT}; update polyglyph"
        )


CodesItem = tuple[str, str, list[CodeGrid]]  # (key such as "000000", source, grids)


def save_codes(path: str | Path, items: Sequence[CodesItem], *, force: bool = False) -> None:
    """Writes a codes file: one tensor `<key>.<modality>` (Q, *grid) int32 per grid.

    A clip with a sound track is one item with two grids. All or nothing; an existing file is an
    InputError without `force`.
    """
    from safetensors.numpy import save

    from polyglyph.checkpoint import atomic_file

    tensors: dict[str, np.ndarray] = {}
    entries: list[dict[str, Any]] = []
    for key, source, grids in items:
        for grid in grids:
            name = f"{key}.{grid.modality}"
            if name in tensors:
                raise InputError(
                    f"two {grid.modality} grids under key {key}; give each its own key"
                )
            tensors[name] = np.ascontiguousarray(grid.codes)
            named = {"key": name, "modality": grid.modality, "source": source}
            more = {"fingerprint": grid.fingerprint, "meta": meta_to_json(grid.meta)}
            entries.append({**named, **more})
    stated = {"format": FORMAT, "items": entries, "sha256": _digest(entries, tensors)}
    header = json.dumps(stated, ensure_ascii=False)
    with atomic_file(Path(path), force=force) as temporary:
        Path(temporary).write_bytes(save(tensors, metadata={"polyglyph": header}))


def load_codes(path: str | Path) -> list[CodesItem]:
    """Inverse of `save_codes`, grids of one key together, in the file's order.

    FormatError if the file is not a codes file, is cut short, is newer, or its tensors and its
    items disagree.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path} is not a file; expected a codes file made by `tokenize`")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = (file.metadata() or {}).get("polyglyph")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path} cannot be read as a codes file: {error}; expected a file of `tokenize`"
        ) from error
    if header is None:
        raise FormatError(f"{path} is safetensors without codes; expected a file of `tokenize`")
    entries = _entries(header, path)
    if sorted(tensors) != sorted(entry["key"] for entry in entries):
        raise FormatError(f"{path}: its list of items and its tensors disagree; it is damaged")
    if json.loads(header).get("sha256", due := _digest(entries, tensors)) != due:
        raise FormatError(f"{path} doesn't match its sha256; it is damaged: make it again")
    items: dict[str, CodesItem] = {}
    for entry in entries:
        key = entry["key"].rsplit(".", 1)[0]
        codes = tensors[entry["key"]]
        if codes.dtype != np.int32 or codes.ndim < 2 or (codes.size and codes.min() < 0):
            raise FormatError(f"{path}: {entry['key']} is not an int32 (Q, *grid) grid of codes")
        meta = meta_from_json(entry["modality"], entry["meta"])
        grid = CodeGrid(entry["modality"], codes, meta, entry["fingerprint"])
        items.setdefault(key, (key, entry["source"], []))[2].append(grid)
    return list(items.values())


def _digest(entries: Sequence[Mapping[str, Any]], tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 over all that a codes file says: a flipped byte is another code, and a legal one."""
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for entry in entries:
        codes = tensors[entry["key"]]
        digest.update(f"{codes.dtype}{codes.shape}".encode())
        digest.update(np.ascontiguousarray(codes).tobytes())
    return digest.hexdigest()


def _entries(header: str, path: str | Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(header)
        check_format(data["format"], path)
        entries = data["items"]
        for entry in entries:
            texts = [entry[name] for name in ("key", "modality", "source", "fingerprint")]
            if not all(isinstance(t, str) for t in texts) or not isinstance(entry["meta"], dict):
                raise TypeError("an item's fields have the wrong types")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: its list of items cannot be read: {error!r}") from error
    return entries
