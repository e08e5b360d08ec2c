"""Any medium to any medium with one transformer over one vocabulary.

The public surface. Lazy: a name is imported when it is used, so `import polyglyph` is light."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "polyglyph.pipeline:load",
    "Pipeline": "polyglyph.pipeline:Pipeline",
    "Document": "polyglyph.sequence.document:Document",
    "Segment": "polyglyph.sequence.document:Segment",
    "Image": "polyglyph.media:Image",
    "Audio": "polyglyph.media:Audio",
    "Video": "polyglyph.media:Video",
    "Region": "polyglyph.media:Region",
    "Action": "polyglyph.media:Action",
    "CodeGrid": "polyglyph.tokenizers.base:CodeGrid",
    "PolyglyphError": "polyglyph.errors:PolyglyphError",
    "InputError": "polyglyph.errors:InputError",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'polyglyph' has no attribute {name!r}")
    from polyglyph.lookup import resolve

    value = resolve(_PUBLIC[name])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
