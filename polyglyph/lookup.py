"""Lazy lookups: a table of "package.module:Name" strings, resolved only when a name is used.

The tables stand in the `__init__` of the folder that they describe. Knows nothing of what they
hold."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from polyglyph.errors import unknown


def resolve(target: str) -> Any:
    """The object that `"package.module:Name"` names; imports the module."""
    module, separator, name = target.partition(":")
    assert separator and module and name, target
    return getattr(importlib.import_module(module), name)


def find(table: Mapping[str, str], name: str, kind: str) -> Any:
    """The object that `table` holds under `name`.

    Raises InputError with the nearest name when the table has no such entry; `kind` is the word
    for an entry in that message ("modality", "kernel")."""
    if name not in table:
        raise unknown(kind, name, table)
    return resolve(table[name])
