"""Where documents come from: one file per source, its name is the source's. Imports nothing
heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def list_sources() -> list[str]:
    """The names of all sources, sorted; imports none of them."""
    import pkgutil

    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_source(name_or_path: str | Path, seed: int = 0, **options: Any) -> Any:
    """The source of a name ("shapes"), of a folder of media with captions, or of a .jsonl file.

    `options` go to the source. InputError with the nearest name for anything else, and for a name
    whose source wants a path.
    """
    import inspect

    from polyglyph.errors import InputError, unknown
    from polyglyph.lookup import resolve

    path = Path(name_or_path)
    name = "folder" if path.is_dir() else "jsonl" if path.suffix == ".jsonl" else str(name_or_path)
    if name not in list_sources():
        raise unknown("source", name, list_sources())
    source = resolve(f"{__name__}.{name}:Source")
    parameters = list(inspect.signature(source).parameters)
    known = [k for k in parameters if k not in ("path", "seed")]
    for option in options:
        if option not in known:
            raise unknown(f"option of source {name}", option, known)
    given = (path,) if name != str(name_or_path) else ()
    if "path" in parameters and not given:
        raise InputError(f"source {name} is read from a path; name the {name} itself")
    return source(*given, seed=seed, **options)
