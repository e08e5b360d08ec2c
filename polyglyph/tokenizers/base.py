"""What every tokenizer shares: the grid of codes, what inversion needs, the codes file.

Knows no network, no id and no modality's algorithm; numpy only. The formats are version 1 of the
design: tensors `000000.image` ... in one safetensors file with a JSON list of items beside them.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from polyglyph.errors import FormatError, InputError, unknown

if TYPE_CHECKING:
    from polyglyph.config import Config

FORMAT = 1
C = TypeVar("C", bound="Config")


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
    """The fields of `meta` as plain JSON values (tuples become lists)."""
    pairs = dataclasses.asdict(meta).items()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in pairs}


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
    """Media to codes and back. Subclasses set the attributes below before any method is called."""

    span: str
    modality: str
    spec: SpanSpec
    fingerprint: str
    config: Config
    stride: tuple[int, ...] = ()  # pixels, frames or samples per code along each axis of the grid
    # The grid of an answer where neither caller nor checkpoint names one; None: the model's choice.
    target_grid: tuple[int, ...] | None = None

    @abstractmethod
    def encode(self, media: Any) -> CodeGrid:
        """Codes (Q, *grid) of one medium, with the meta that `decode` needs."""

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

    def encode_batch(self, media: Sequence[Any]) -> list[CodeGrid]:
        """One grid per medium; equals `encode` one by one."""
        return [self.encode(item) for item in media]

    def check_fingerprint(self, grid: CodeGrid) -> None:
        """FormatError unless `grid` is of this codec: fingerprint, modality, shape, code range.

        An empty fingerprint (codes made by hand) is let through to the other checks.
        """
        if grid.fingerprint and grid.fingerprint != self.fingerprint:
            raise FormatError(
                f"codes were made by codec {grid.fingerprint[:12]}, this {self.modality} codec is "
                f"{self.fingerprint[:12]}; decode them with the codec that made them"
            )
        check_grid(grid, self.spec)


def check_grid(grid: CodeGrid, spec: SpanSpec) -> None:
    """FormatError unless modality, codebooks, rank and code range of `grid` are those of `spec`."""
    if grid.modality != spec.modality:
        raise FormatError(f"expected {spec.modality} codes, got {grid.modality} codes")
    if grid.n_codebooks != spec.n_codebooks or len(grid.shape) != spec.grid_rank:
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
    header = json.dumps({"format": FORMAT, "items": entries}, ensure_ascii=False)
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
        raise FormatError(f"{path} cannot be read as a codes file: {error}") from error
    if header is None:
        raise FormatError(f"{path} is safetensors without codes; expected a file of `tokenize`")
    entries = _entries(header, path)
    if sorted(tensors) != sorted(entry["key"] for entry in entries):
        raise FormatError(f"{path}: its list of items and its tensors disagree; it is damaged")
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
