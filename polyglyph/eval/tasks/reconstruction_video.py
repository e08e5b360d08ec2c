"""Clips of test scenes through the video codec and an MP4."""

from __future__ import annotations

from typing import Any

from polyglyph.eval.metrics import clip_ssim, difference_psnr, psnr
from polyglyph.eval.reconstruction import ReconstructionTask

VERSION = 1


def measure(original: Any, result: Any) -> dict[str, float]:
    """PSNR in dB, SSIM per frame, PSNR of the frame-to-frame differences."""
    a, b = original.frames, result.frames
    return {
        "psnr_db": psnr(a, b),
        "ssim": clip_ssim(a, b),
        "difference_psnr_db": difference_psnr(a, b),
    }


TASK = ReconstructionTask("video", "clips through the video codec", measure)
