"""Sounds of test scenes through the audio codec and a WAV."""

from __future__ import annotations

from polyglyph.eval.reconstruction import ReconstructionTask

VERSION = 2  # 2: the rates of the codes; of sounds, STOI; the protocol

TASK = ReconstructionTask("audio", "sounds through the audio codec")
