"""Pictures of test scenes through the image codec and a PNG."""

from __future__ import annotations

from polyglyph.eval.reconstruction import ReconstructionTask

VERSION = 2  # 2: the rates of the codes; of sounds, STOI; the protocol

TASK = ReconstructionTask("image", "pictures through the image codec")
