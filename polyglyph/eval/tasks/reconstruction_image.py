"""Pictures of test scenes through the image codec and a PNG."""

from __future__ import annotations

from typing import Any

from polyglyph.eval.metrics import psnr, ssim
from polyglyph.eval.reconstruction import ReconstructionTask

VERSION = 1


def measure(original: Any, result: Any) -> dict[str, float]:
    """PSNR in dB and SSIM of the pixels."""
    a, b = original.array, result.array
    return {"psnr_db": psnr(a, b), "ssim": ssim(a, b)}


TASK = ReconstructionTask("image", "pictures through the image codec", measure)
