"""A sound to words that state every attribute that it carries, in order."""

from __future__ import annotations

from polyglyph.eval.pairs import PairTask

VERSION = 1
TASK = PairTask("audio_to_text", "captions of sounds", ("audio", "text"))
