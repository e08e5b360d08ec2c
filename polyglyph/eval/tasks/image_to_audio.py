"""A picture to a sound of the same scene, in what both carry; glides are free."""

from __future__ import annotations

from polyglyph.eval.pairs import PairTask

VERSION = 1
TASK = PairTask("image_to_audio", "sounds of pictures", ("image", "audio"))
