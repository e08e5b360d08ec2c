"""A sound to a picture of the same scene, in what both carry; rows are free."""

from __future__ import annotations

from polyglyph.eval.pairs import PairTask

VERSION = 1
TASK = PairTask("audio_to_image", "pictures of sounds", ("audio", "image"))
