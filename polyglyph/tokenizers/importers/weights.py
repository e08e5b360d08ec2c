"""Published weights: reading the files, renaming every key, and the account of what went where.

The publishers' packages are never needed. Files are safetensors (one, or shards with an index) or
pickles read with `weights_only=True`; this is the only file of polyglyph that unpickles. Nothing is
loaded loosely: a key that no rule explains, a tensor without a source or a foreign shape is an
error. Knows no architecture: the importers beside it hold the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyglyph.checkpoint import shown
from polyglyph.errors import FormatError, InputError

# Names under which trainers store a state dict, in order of choice: EMA weights first.
NESTED = ("ema", "model", "state_dict", "best_state")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".th")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


# --- reading -----------------------------------------------------------------------------------


@dataclass
class Source:
    """What lies in a checkpoint of someone else's."""

    path: Path
    state: dict[str, Tensor]  # the publisher's keys, `prefix` cut off
    config: dict[str, Any] = field(default_factory=dict)  # config.json beside it, or {}
    extra: dict[str, Any] = field(default_factory=dict)  # plain data stored beside the tensors
    chosen: str = ""  # the nested dict that the tensors are from ("ema"), "" for the top
    left: dict[str, str] = field(default_factory=dict)  # key → why it was not read


def read_state(
    source: str | Path, prefixes: Sequence[str] = (), nested: Sequence[str] = NESTED
) -> dict[str, Tensor]:
    """The tensors of `read_source`, by the publisher's keys."""
    return read_source(source, prefixes, nested).state


def read_source(
    source: str | Path, prefixes: Sequence[str] = (), nested: Sequence[str] = NESTED
) -> Source:
    """The tensors of a file or folder on the CPU, as stored, and what stands beside them.

    prefixes: where a codec may sit in a larger checkpoint ("model.vqmodel."); the first one that
    occurs is cut off, and tensors of other parts are not read. nested: the names of state dicts in
    a pickle, best first. InputError for a missing path, FormatError for anything unreadable.
    """
    path = Path(source)
    if not path.exists():
        raise InputError(f"checkpoint {shown(path)}: no such file or folder")
    files = _weight_files(path) if path.is_dir() else [path]
    folder = path if path.is_dir() else path.parent
    found = Source(path, {}, config=_config(folder))
    for file in files:
        part = _read_file(file, nested)
        twice = sorted(found.state.keys() & part.state.keys())
        if twice:
            raise FormatError(f"{shown(path)}: two of its files hold {twice[0]}; keep one")
        found.state.update(part.state)
        found.extra.update(part.extra)
        found.left.update(part.left)
        found.chosen = part.chosen
    return _cut(found, prefixes)


def _cut(found: Source, prefixes: Sequence[str]) -> Source:
    for prefix in prefixes:
        inside = {k: v for k, v in found.state.items() if k.startswith(prefix)}
        if inside:
            other = found.state.keys() - inside.keys()
            found.left.update(dict.fromkeys(other, f"not below {prefix}: another part"))
            found.state = {k.removeprefix(prefix): v for k, v in inside.items()}
            break
    return found


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{shown(path)} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{shown(path)} is no table of settings; get a fresh copy")
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The files of a folder that together hold one state dict."""
    for name in _INDICES:
        if (folder / name).is_file():
            return _shards(folder / name)
    for suffixes in ((".safetensors",), _PICKLES):
        files = sorted(f for f in folder.iterdir() if f.suffix in suffixes and f.is_file())
        if len(files) > 1:
            names = ", ".join(f.name for f in files[:4])
            raise InputError(f"{shown(folder)} holds several weight files ({names}); name one")
        if files:
            return files
    raise FormatError(
        f"{shown(folder)} holds no weights: expected .safetensors or {', '.join(_PICKLES)}"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{shown(index)} is not an index of shards: {error!r}") from error
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FormatError(f"{shown(index)} names a shard outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise FormatError(f"{shown(index)}: the shard {name} is missing; fetch it")
        files.append(index.parent / name)
    return files


def _read_file(path: Path, nested: Sequence[str]) -> Source:
    if path.suffix == ".safetensors":
        return Source(path, _read_safetensors(path))
    if path.suffix not in _PICKLES:
        raise InputError(
            f"{shown(path)} is no weight file: expected .safetensors or {', '.join(_PICKLES)}"
        )
    data, chosen = _unpickle(path), ""
    extra: dict[str, Any] = {}
    left: dict[str, str] = {}
    while (name := _nested_name(data, nested)) is not None:
        rest = {str(k): v for k, v in data.items() if k != name}
        left.update({k: f"beside {name!r}, which was chosen" for k in rest})
        extra.update(rest)
        chosen, data = name, data[name]
    return _only_tensors(path, data, chosen, extra, left)


def _nested_name(data: Any, nested: Sequence[str]) -> str | None:
    """The first name of `nested` under which `data` holds a dict."""
    if not isinstance(data, Mapping):
        return None
    return next((n for n in nested if isinstance(data.get(n), Mapping)), None)


def _only_tensors(
    path: Path, data: Any, chosen: str, extra: dict[str, Any], left: dict[str, str]
) -> Source:
    if not isinstance(data, Mapping):
        raise FormatError(f"{shown(path)} holds a {type(data).__name__}, not a state dict")
    state: dict[str, Tensor] = {}
    for key, value in data.items():
        if not isinstance(value, Tensor):
            left[str(key)] = f"a {type(value).__name__}, not a tensor"
            extra.setdefault(str(key), value)
        elif not _is_dense(value):
            raise FormatError(f"{shown(path)}: {key} is not a plain dense tensor")
        else:
            state[str(key)] = value
    if not state:
        names = ", ".join(repr(str(key))[:40] for key in list(data)[:4])
        raise FormatError(f"{shown(path)} holds no tensors; it holds {names or 'nothing'}")
    return Source(path, state, extra=extra, chosen=chosen, left=left)


def _is_dense(tensor: Tensor) -> bool:
    """False for sparse, quantized and empty-handed tensors, and for views that repeat memory."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from polyglyph.checkpoint import load_tensors

    return load_tensors(path)


def _unpickle(path: Path) -> Any:
    """A pickle's data; only tensors and plain containers come through."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle fails in the archive, the opcodes or the storages, with whatever is at hand.
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()
        named = re.search(r"Unsupported (?:global|class)[^\w]*(?:GLOBAL )?([\w.]+)", reason)
        if named:
            raise FormatError(
                f"{shown(path)} holds a {named[1]} beside its tensors, which is not loaded from a "
                f"foreign pickle; save its state dict alone, or as safetensors"
            ) from error
        raise FormatError(
            f"{shown(path)} cannot be read as weights: {reason[:160] or type(error).__name__}; "
            f"it is damaged or no checkpoint of torch"
        ) from error


# --- renaming ----------------------------------------------------------------------------------

Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Merge:
    """Several tensors of theirs that are one of ours: keys `name@part` become `name`."""

    parts: tuple[str, ...]
    join: Callable[..., Tensor]  # called with the parts in that order


def concatenated(*parts: Tensor) -> Tensor:
    """q, k and v of three layers as one layer's rows."""
    return torch.cat(parts)


def weight_normed(g: Tensor, v: Tensor) -> Tensor:
    """The weight that torch's weight norm over axis 0 makes of its magnitude and direction."""
    return torch._weight_norm(v.float(), g.float(), 0)


QKV = Merge(("q", "k", "v"), concatenated)
WEIGHT_NORM = Merge(("g", "v"), weight_normed)


@dataclass(frozen=True)
class KeyMap:
    """How a publisher's keys become ours.

    ignored: (pattern, reason) of keys that are left out, matched from the key's start.
    renames: (pattern, replacement) for `re.sub`, all applied in order to every other key.
    converts: (pattern on our key, function of the tensor), after merging.
    """

    renames: Sequence[tuple[str, Replacement]] = ()
    ignored: Sequence[tuple[str, str]] = ()
    merges: Sequence[Merge] = ()
    converts: Sequence[tuple[str, Callable[[Tensor], Tensor]]] = ()

    def rename(self, key: str) -> str:
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key

    def reason_to_ignore(self, key: str) -> str | None:
        return next((why for pattern, why in self.ignored if re.match(pattern, key)), None)


# --- the account -------------------------------------------------------------------------------


@dataclass
class Report:
    """Key by key, what became of a published checkpoint."""

    kind: str
    source: str
    loaded: dict[str, str] = field(default_factory=dict)  # theirs → ours
    ignored: dict[str, str] = field(default_factory=dict)  # theirs → reason
    missing: list[str] = field(default_factory=list)  # ours, without a source
    unexpected: list[str] = field(default_factory=list)  # theirs, unexplained
    shape: list[str] = field(default_factory=list)  # "key: (theirs), expected (ours)"
    notes: list[str] = field(default_factory=list)  # choices that the reader should know of

    @property
    def clean(self) -> bool:
        return not (self.missing or self.unexpected or self.shape)

    def check(self) -> None:
        """FormatError of one line unless every tensor is accounted for."""
        if self.clean:
            return
        counts = [
            f"{len(found)} {word} (first: {sorted(found)[0]})"
            for word, found in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.shape),
            )
            if found
        ]
        raise FormatError(
            f"{self.source} is not the {self.kind} codec that it was taken for: "
            f"tensors {', '.join(counts)}; give the right kind, or an undamaged file"
        )

    def lines(self) -> list[str]:
        """The account as text: a summary, then a line per reason or problem."""
        reasons: dict[str, int] = {}
        for why in self.ignored.values():
            reasons[why] = reasons.get(why, 0) + 1
        return [
            f"{self.kind}: {len(self.loaded)} tensors loaded, {len(self.ignored)} ignored, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.shape)} of another shape",
            *(f"ignored {n}: {why}" for why, n in sorted(reasons.items())),
            *(f"missing {key}" for key in sorted(self.missing)),
            *(f"unexpected {key}" for key in sorted(self.unexpected)),
            *(f"shape {text}" for text in sorted(self.shape)),
            *(f"note: {note}" for note in self.notes),
        ]


def convert_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], keys: KeyMap, report: Report
) -> dict[str, Tensor]:
    """Our tensors (fp32 where floating) for exactly the names in `expected`; fills `report`.

    expected: our names with tensors of the right shapes (they may be on "meta"). FormatError
    of one line where a tensor is missing, unexplained, of another shape or not finite.
    """
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}  # ours → part → (theirs, tensor)
    for theirs, tensor in state.items():
        reason = keys.reason_to_ignore(theirs)
        if reason is not None:
            report.ignored[theirs] = reason
            continue
        name, _, part = keys.rename(theirs).partition("@")
        if name not in expected or part in parts.get(name, {}):
            report.unexpected.append(theirs)
        else:
            parts.setdefault(name, {})[part] = (theirs, tensor)
    ours: dict[str, Tensor] = {}
    for name, found in parts.items():
        joined = _joined(name, found, keys, report)
        if joined is None:
            continue
        if joined.shape != expected[name].shape:
            theirs = next(iter(found.values()))[0]
            shapes = f"{tuple(joined.shape)}, expected {tuple(expected[name].shape)}"
            report.shape.append(f"{theirs}: {shapes}")
            continue
        report.loaded.update({theirs: name for theirs, _ in found.values()})
        ours[name] = (joined.float() if joined.is_floating_point() else joined).contiguous()
    report.missing += sorted(expected.keys() - parts.keys())
    report.check()
    _refuse_non_finite(ours, report)
    return ours


def _joined(
    name: str, found: Mapping[str, tuple[str, Tensor]], keys: KeyMap, report: Report
) -> Tensor | None:
    """The one tensor of `found`, merged and converted; None, with an entry, where parts lack."""
    if set(found) == {""}:
        tensor = found[""][1]
    else:
        merge = _best_merge(found, keys.merges)
        lacking = [] if merge is None else [p for p in merge.parts if p not in found]
        if merge is None or lacking or len(found) != len(merge.parts):
            report.missing += [f"{name} (part {p})" for p in lacking] or [name]
            return None
        tensors = [found[part][1] for part in merge.parts]
        try:
            tensor = merge.join(*tensors)
        except (RuntimeError, TypeError):  # shapes that don't fit together
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            report.shape.append(f"{name}: parts {shapes} don't fit together")
            return None
    for pattern, convert in keys.converts:
        if re.search(pattern, name):
            try:
                tensor = convert(tensor)
            except (RuntimeError, IndexError):
                report.shape.append(f"{name}: {tuple(tensor.shape)} can't be converted")
                return None
    return tensor


def _best_merge(found: Iterable[str], merges: Sequence[Merge]) -> Merge | None:
    """The merge whose parts these are, or most nearly are."""
    parts = set(found)
    near = [m for m in merges if parts & set(m.parts)]
    return min(near, key=lambda m: len(parts ^ set(m.parts)), default=None)


def _refuse_non_finite(tensors: Mapping[str, Tensor], report: Report) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FormatError(
                f"{report.source}: {name} holds a value that is not finite; get a fresh copy"
            )


def without(state: Mapping[str, Tensor], patterns: Iterable[str]) -> dict[str, Tensor]:
    """`state` less the keys that one of `patterns` matches from the start."""
    joined = re.compile("|".join(f"(?:{p})" for p in patterns))
    return {key: tensor for key, tensor in state.items() if not joined.match(key)}
