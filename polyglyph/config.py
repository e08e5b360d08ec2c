"""TOML files to pydantic models: the base class, the loader, `--set`, and the way back to TOML.

The models themselves stand on top of the files that they configure. A config is one whole file
without inheritance; an unknown key is an error that names the nearest one. Knows no section."""

from __future__ import annotations

import copy
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from polyglyph.errors import ConfigError, nearest


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, and it refuses keys that it doesn't know."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


C = TypeVar("C", bound=pydantic.BaseModel)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError for a missing, unreadable or broken file."""
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        reason = error.strerror or "can't be read"
        raise ConfigError(
            f"config {str(path)!r}: {reason}; expected the path of a TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"config {str(path)!r}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config {str(path)!r} is not valid TOML: {error}") from error


def apply_sets(data: Mapping[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with every `"a.b=value"` applied; a value is TOML, else a plain string."""
    result = copy.deepcopy(dict(data))
    for item in sets:
        key, separator, text = item.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not separator or not all(parts):
            raise ConfigError(f"--set expects key=value, such as run.steps=100; got {item!r}")
        table = result
        for depth, part in enumerate(parts[:-1]):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                owner = ".".join(parts[: depth + 1])
                raise ConfigError(f"--set {item!r}: {owner!r} is a value, not a section")
        table[parts[-1]] = _parse_value(text.strip())
    return result


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def build(cls: type[C], data: Mapping[str, Any], source: str) -> C:
    """A `cls` from plain data. Raises one ConfigError line that lists every wrong key.

    `source` names where the data came from: a file name or "--set"."""
    try:
        return cls.model_validate(dict(data))
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_problem(cls, item["type"], item["loc"], item) for item in found]
        raise ConfigError(f"{source}: " + "; ".join(dict.fromkeys(problems))) from error


def load(cls: type[C], path: str | Path, sets: Iterable[str] = ()) -> C:
    """A `cls` from a TOML file, with `--set` items applied on top."""
    sets = list(sets)
    source = f"config {str(path)!r}" + (f" with --set {' '.join(sets)}" if sets else "")
    return build(cls, apply_sets(read_toml(path), sets), source)


def _problem(cls: type, kind: str, loc: Sequence[int | str], item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in loc) or "the config"
    if kind == "extra_forbidden":
        known = _fields_at(cls, loc[:-1])
        guess = nearest(str(loc[-1]), known)
        listed = ", ".join(known) or "none"
        hint = f"did you mean {guess!r}?" if guess else f"known keys: {listed}"
        return f"unknown key {key!r}; {hint}"
    if kind == "missing":
        return f"key {key!r} is missing"
    message = re.sub(r"\s+", " ", item["msg"]).strip()
    return f"key {key!r}: {message[:1].lower()}{message[1:]}; got {_short(item['input'])}"


def _short(value: Any) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(cls: type, loc: Sequence[int | str]) -> list[str]:
    """The keys that the models reachable at `loc` know; more than one model for a union."""
    models = _models_in(cls)
    for part in loc:
        found: list[type[pydantic.BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                found += _models_in(model.model_fields[str(part)].annotation)
        # A part that is no field is a list index, a dict key or a union's tag: stay where we are.
        models = found or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def dump(config: pydantic.BaseModel) -> str:
    """The config as TOML text that `load` reads back to an equal config.

    TOML has no null: a field that is None is left out, so its default has to be None."""
    import tomli_w

    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        assert None not in value, "TOML has no null"
        return [_without_none(item) for item in value]
    return value
