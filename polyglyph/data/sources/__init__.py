"""Where documents come from; one file per source, looked up by name. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TABLE = {
    "shapes": "polyglyph.data.sources.shapes:Source",
    "folder": "polyglyph.data.sources.folder:Source",
    "jsonl": "polyglyph.data.sources.jsonl:Source",
}


def open_source(name_or_path: str | Path, seed: int = 0, **options: Any) -> Any:
    """The source of a name ("shapes"), of a folder of media with captions, or of a .jsonl file.

    `options` go to the source. InputError with the nearest name for anything else.
    """
    import inspect

    from polyglyph.errors import unknown
    from polyglyph.lookup import find

    path = Path(name_or_path)
    name = "folder" if path.is_dir() else "jsonl" if path.suffix == ".jsonl" else str(name_or_path)
    source = find(TABLE, name, "source")
    known = [k for k in inspect.signature(source).parameters if k not in ("path", "seed")]
    for option in options:
        if option not in known:
            raise unknown(f"option of source {name}", option, known)
    given = (path,) if name != str(name_or_path) else ()
    return source(*given, seed=seed, **options)
