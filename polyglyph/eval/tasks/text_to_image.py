"""A caption to a picture that shows what it says; what it leaves open is free."""

from __future__ import annotations

from polyglyph.eval.pairs import PairTask

VERSION = 1
TASK = PairTask("text_to_image", "pictures from captions", ("text", "image"))
