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
    from polyglyph.lookup import find

    path = Path(name_or_path)
    if path.is_dir():
        return find(TABLE, "folder", "source")(path, seed=seed, **options)  # type: ignore[operator]
    if path.suffix == ".jsonl":
        return find(TABLE, "jsonl", "source")(path, seed=seed, **options)  # type: ignore[operator]
    return find(TABLE, str(name_or_path), "source")(seed=seed, **options)  # type: ignore[operator]
