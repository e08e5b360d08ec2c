"""Names are resolved when they are used, and not before."""

from __future__ import annotations

import subprocess
import sys

import pytest

import polyglyph
from polyglyph.errors import InputError
from polyglyph.lookup import find, resolve


def test_resolve_gives_the_named_object() -> None:
    from polyglyph.media import Image

    assert resolve("polyglyph.media:Image") is Image
    assert polyglyph.Image is Image


def test_a_name_missing_from_a_table_is_refused_with_the_nearest() -> None:
    table = {"image": "polyglyph.media:Image", "audio": "polyglyph.media:Audio"}
    assert find(table, "audio", "modality") is polyglyph.Audio
    with pytest.raises(InputError, match=r"unknown modality 'imag'; did you mean 'image'\?"):
        find(table, "imag", "modality")


def test_a_table_may_name_what_can_not_be_imported_until_it_is_used() -> None:
    table = {"good": "polyglyph.errors:InputError", "broken": "polyglyph.nowhere:Thing"}
    assert find(table, "good", "thing") is InputError
    with pytest.raises(ImportError):
        find(table, "broken", "thing")


def test_the_package_lists_its_surface_and_refuses_other_names() -> None:
    assert {"load", "Image", "Audio", "Video", "Document"} <= set(dir(polyglyph))
    assert polyglyph.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = polyglyph.nothing_like_it


def test_floor_0_imports_nothing_heavy() -> None:
    program = (
        "import sys, polyglyph, polyglyph.errors, polyglyph.config, polyglyph.lookup,"
        " polyglyph.media, polyglyph.device, polyglyph.checkpoint\n"
        "heavy = {'torch', 'transformers', 'PIL', 'av', 'soundfile', 'soxr', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
