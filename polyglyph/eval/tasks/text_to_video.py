"""A caption to a clip that shows what it says, motion included; what it leaves open is free."""

from __future__ import annotations

from polyglyph.eval.pairs import PairTask

VERSION = 1
TASK = PairTask("text_to_video", "clips from captions", ("text", "video"))
