"""Clips of test scenes through the video codec and an MP4."""

from __future__ import annotations

from polyglyph.eval.reconstruction import ReconstructionTask

VERSION = 2  # 2: the rates of the codes; of sounds, STOI; the protocol

TASK = ReconstructionTask("video", "clips through the video codec")
