"""A picture to words that state every attribute of every object, and nothing else."""

from __future__ import annotations

from polyglyph.eval.pairs import PairTask

VERSION = 1
TASK = PairTask("image_to_text", "captions of pictures", ("image", "text"))
