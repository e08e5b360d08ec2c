"""A clip to words that state every attribute of every object, motion included."""

from __future__ import annotations

from polyglyph.eval.pairs import PairTask

VERSION = 1
TASK = PairTask("video_to_text", "captions of clips", ("video", "text"))
