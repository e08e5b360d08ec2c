"""Files and folders that are whole or absent, fingerprints, and the checkpoint folder (format 1).

Everything is written beside its final name, synced and renamed, so a visible checkpoint is a
complete one. Knows tensors and JSON; nothing of models, codecs or runs. Imports torch only where
it is asked to make torch tensors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyglyph.errors import FormatError, InputError, MachineError, PolyglyphError, unknown

FORMAT = 1
MANIFEST = "checkpoint.json"
KINDS = ("codec", "model")
PACKAGED = Path(__file__).parent / "checkpoints"

_TEMPORARY = ".tmp-"
_HEADER_CAP = 100_000_000  # bytes of a safetensors header; the library's own cap
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# --- fingerprints ------------------------------------------------------------------------------


def fingerprint(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """sha256 (hex) over sorted (name, dtype, shape, bytes) as stored, and the config.

    Torch tensors and numpy arrays of the same values give the same fingerprint. `config` has to be
    plain JSON data; the order of its keys doesn't matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        kind, shape, data = _stored(tensors[name])
        digest.update(json.dumps([name, kind, shape], ensure_ascii=True).encode() + b"\n")
        digest.update(data)
    digest.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()


def _stored(tensor: Any) -> tuple[str, list[int], Any]:
    """(dtype name, shape, the bytes as an array) of a torch tensor or a numpy array."""
    kind, shape = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
    if not isinstance(tensor, np.ndarray):
        import torch

        # Through uint8, because numpy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return kind, shape, flat.view(torch.uint8).numpy()
    return kind, shape, np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


def sha256_file(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- whole or absent ---------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed to `path`.

    Missing parent folders are made. On any failure nothing is left and an existing file is as it
    was. Raises InputError when `path` exists and `force` is false, or can't be written;
    MachineError when the disk is full."""
    path = Path(path)
    refuse_existing(path, force)
    if os.path.isdir(path):  # not Path.is_dir(), which raises for a name too long
        raise InputError(f"output {shown(path)} is a folder; expected the name of a file")
    suffix = path.suffix if len(path.suffix) <= 16 else ""
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(6)}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made by us first: its mode is then the umask's, whatever the writer does with it later.
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield temporary
        with _as_output_error(path):
            os.chmod(temporary, mode)
            _sync(temporary)
            refuse_existing(path, force)
            os.replace(temporary, path)
            _sync(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise output_error(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`; on success it is synced and renamed to it.

    An existing empty folder counts as absent. With `force` an existing folder is replaced as a
    whole, unless the working or home directory lies in it or it is a repository. Errors as
    `atomic_file`."""
    path = Path(path)
    _refuse_folder(path, force)
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(6)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield temporary
        with _as_output_error(path):
            for file in sorted(temporary.rglob("*"), reverse=True):
                _sync(file)
            _sync(temporary)
            _refuse_folder(path, force)
            _swap_in(temporary, path)
            _sync(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise output_error(path, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_in(temporary: Path, path: Path) -> None:
    if not path.exists() or not any(path.iterdir()):
        os.replace(temporary, path)
        return
    old = path.parent / f"{_TEMPORARY}{secrets.token_hex(6)}"
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def refuse_existing(path: str | os.PathLike, force: bool) -> None:
    """Raises InputError when `path` exists and `force` is false: call it before slow work."""
    if "\0" in os.fsdecode(path):
        raise InputError(f"output {shown(path)} is not a valid path: it holds a zero byte")
    if os.path.lexists(path) and not force:
        raise InputError(
            f"output {shown(path)} exists; choose another name or pass -f (force=True)"
        )


def _refuse_folder(path: Path, force: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"output {shown(path)} is a file; expected the name of a folder")
    if not any(path.iterdir()):
        return
    refuse_existing(path, force)
    real = path.resolve()
    holds = [where for where in (Path.cwd(), Path.home()) if where.resolve().is_relative_to(real)]
    if holds or (path / ".git").exists():
        raise InputError(
            f"output {shown(path)} would be replaced as a whole and holds more than an output; "
            f"choose a folder of its own"
        )


def shown(path: str | os.PathLike) -> str:
    """A path in quotes for a message; bytes that aren't UTF-8 are escaped."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return repr(text if len(text) <= 200 else f"{text[:100]}...{text[-90:]}")


def output_error(path: str | Path, error: OSError) -> PolyglyphError:
    """The error to raise where writing failed: MachineError for a full disk, else InputError."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL or error.errno == errno.EIO:
        return MachineError(
            f"writing {shown(path)} failed: {reason}; free some space and run again"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason = "a part of its path is a file, not a folder"
    return InputError(
        f"output {shown(path)} can't be written: {reason}; "
        f"choose a path in a folder that you may write"
    )


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems can't sync a folder; the rename still orders them.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


# --- tensors -----------------------------------------------------------------------------------


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Writes a safetensors file, whole or not at all, with the mode of the umask.

    `tensors` are all torch tensors or all numpy arrays. (safetensors itself leaves mode 0600.)"""
    extra = dict(metadata) if metadata else None
    as_numpy = all(isinstance(tensor, np.ndarray) for tensor in tensors.values())
    with atomic_file(path, force) as temporary:
        if as_numpy:
            from safetensors.numpy import save_file

            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, extra)
            return
        from safetensors.torch import save_file as save_torch_file

        # Cloned: safetensors refuses tensors that share storage (tied or sliced weights).
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_torch_file(plain, temporary, extra)


def load_tensors(path: str | Path, framework: str = "torch") -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU; `framework` is "torch" or "numpy"."""
    assert framework in ("torch", "numpy"), framework
    read_tensor_metadata(path)  # the precise errors
    from safetensors import SafetensorError

    try:
        if framework == "numpy":
            from safetensors.numpy import load_file

            return load_file(path)
        from safetensors.torch import load_file as load_torch_file

        return load_torch_file(path)
    except SafetensorError as error:
        raise FormatError(
            f"{shown(path)} is damaged or cut off: {error}; fetch it again"
        ) from error


def read_tensor_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading a tensor."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= _HEADER_CAP:
                raise FormatError(f"{shown(path)} is not a safetensors file")
            header = json.loads(file.read(length))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{shown(path)} can't be read: {reason}") from error
    except ValueError as error:  # JSON and UTF-8 errors; FormatError is one too
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{shown(path)} is not a safetensors file, or is cut off") from error
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise FormatError(f"{shown(path)} is not a safetensors file")
    return metadata


# --- the checkpoint folder ---------------------------------------------------------------------


def write_manifest(
    folder: str | Path,
    kind: str,
    config: Mapping[str, Any],
    dialect: Mapping[str, Any] | None = None,
    vocabulary_sha256: str | None = None,
    tokenizers: Mapping[str, Mapping[str, str]] | None = None,
    origin: str = "",
    licence: str = "",
) -> dict[str, Any]:
    """Writes `checkpoint.json` over everything that lies in `folder`; the last step of a save.

    `tokenizers` is {span: {"path", "fingerprint"}}. Returns the manifest."""
    assert kind in KINDS, kind
    folder = Path(folder)
    files = {
        file.relative_to(folder).as_posix(): {
            "sha256": sha256_file(file),
            "bytes": file.stat().st_size,
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "config": dict(config),
        "dialect": dialect,
        "vocabulary_sha256": vocabulary_sha256,
        "tokenizers": {span: dict(entry) for span, entry in (tokenizers or {}).items()},
        "origin": origin,
        "licence": licence,
        "files": files,
    }
    with atomic_file(folder / MANIFEST, force=True) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return manifest


def read_manifest(
    folder: str | Path, kind: str | None = None, verify: bool = True
) -> dict[str, Any]:
    """The manifest of a checkpoint folder, after checking what it says against what is there.

    Refuses (FormatError) a newer format, another `kind`, a missing file, a wrong size and, with
    `verify`, a flipped byte. A folder without a manifest is unfinished or no checkpoint."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"checkpoint {shown(folder)}: no such folder")
    path = folder / MANIFEST
    if folder.name.startswith(_TEMPORARY):
        raise FormatError(f"checkpoint {shown(folder)} is unfinished: its writing was cut short")
    if not path.is_file():
        raise FormatError(
            f"{shown(folder)} is not a finished checkpoint: it has no {MANIFEST}; "
            f"give the folder of a codec or a model, or a run folder"
        )
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{shown(path)} is damaged: not JSON ({error})") from error
    check_format(manifest, "checkpoint", path)
    missing = {"kind", "config", "files"} - set(manifest)
    if missing or not isinstance(manifest["files"], dict):
        what = ", ".join(sorted(missing)) or "a table of files"
        raise FormatError(f"{shown(path)} is damaged: it lacks {what}")
    if kind is not None and manifest["kind"] != kind:
        raise FormatError(f"{shown(folder)} is a {manifest['kind']} checkpoint; expected a {kind}")
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry, verify)
    return manifest


def check_format(data: Any, what: str, path: str | Path, newest: int = FORMAT) -> None:
    """Refuses an artefact whose "format" is absent, or newer than `newest`: names both numbers."""
    found = data.get("format") if isinstance(data, Mapping) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise FormatError(f"{shown(path)} is not a {what} of polyglyph: it states no format")
    if found > newest:
        raise FormatError(
            f"{shown(path)} has {what} format {found}; this polyglyph reads up to format {newest}; "
            f"upgrade polyglyph"
        )


def _check_file(folder: Path, name: str, entry: Mapping[str, Any], verify: bool) -> None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\\" in name:
        raise FormatError(f"{shown(folder / MANIFEST)} names a file outside its folder: {name!r}")
    file = folder / name
    if not file.is_file():
        raise FormatError(f"checkpoint {shown(folder)} is incomplete: {name} is missing")
    size = file.stat().st_size
    if not isinstance(entry, Mapping) or not {"bytes", "sha256"} <= set(entry):
        raise FormatError(f"{shown(folder / MANIFEST)} is damaged: its entry of {name}")
    if size != entry["bytes"]:
        raise FormatError(
            f"checkpoint {shown(folder)}: {name} has {size} bytes, expected {entry['bytes']}; "
            f"the file is damaged or was changed"
        )
    if verify and sha256_file(file) != entry["sha256"]:
        raise FormatError(
            f"checkpoint {shown(folder)}: {name} doesn't match its sha256; "
            f"the file is damaged or was changed"
        )


# --- finding one -------------------------------------------------------------------------------


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The checkpoint folder that a name ("tiny") or a path means.

    A path may be a checkpoint, a run folder (its latest finished checkpoint) or one step of a run.
    A folder wins over a packaged name. Raises InputError with the nearest name."""
    path = Path(name_or_path)
    if os.path.isdir(path):
        found = _checkpoint_in(path)
        if found is not None:
            return found
        raise FormatError(
            f"{shown(path)} holds no finished checkpoint: expected {MANIFEST} in it, "
            f"or a run folder with checkpoints/step-*/model"
        )
    name = str(name_or_path)
    packaged = PACKAGED / name
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and (packaged / MANIFEST).is_file():
        return packaged
    if os.path.isfile(path):
        raise InputError(f"checkpoint {shown(path)} is a file; expected a name or a folder")
    if len(path.parts) > 1:
        raise InputError(f"checkpoint {shown(path)}: no such folder")
    raise unknown("checkpoint", name, packaged_checkpoints())


def packaged_checkpoints() -> list[str]:
    """The names of the checkpoints that come with the package."""
    return sorted(file.parent.name for file in PACKAGED.glob(f"*/{MANIFEST}"))


def _checkpoint_in(folder: Path) -> Path | None:
    for candidate in (folder, folder / "model"):
        if (candidate / MANIFEST).is_file():
            return candidate
    steps = [step for step in (folder / "checkpoints").glob("step-*") if step.is_dir()]
    # `latest` first (a link, or a file that holds a path), then the newest that is complete.
    steps.sort(key=lambda step: int("0" + re.sub(r"\D", "", step.name)), reverse=True)
    latest = folder / "latest"
    if latest.is_dir():
        steps.insert(0, latest)
    elif latest.is_file():
        named = latest.read_text("utf-8", "replace").strip()  # the step's name, or a path to it
        steps[:0] = [folder / "checkpoints" / named, folder / named]
    for step in steps:
        for candidate in (step / "model", step):
            if (candidate / MANIFEST).is_file():
                return candidate.resolve()
    return None
