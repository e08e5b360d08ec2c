"""Side-by-side samples of a codec run: originals above (or before) their reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyglyph.media import Audio
from polyglyph.tokenizers.image import to_uint8

_N_SHOWN = 8


@torch.no_grad()
def write_sample(stem: Path, tokenizer: Any, batch: Tensor) -> Path:
    """Writes <stem>.png for pictures and clips, <stem>.wav for sound; returns its path.

    A sample of a step that a resumed run does again is replaced."""
    shown = batch[:_N_SHOWN]
    net = tokenizer.net
    result = net.decode(net.encode(shown))
    if shown.ndim == 3:  # (B, 1, S)
        pairs = torch.cat([shown, result[..., : shown.shape[-1]]], dim=-1)
        samples = pairs.reshape(1, -1).cpu().numpy().astype(np.float32)
        path = stem.with_suffix(".wav")
        Audio(np.clip(samples, -1, 1), tokenizer.config.sample_rate).save(path, force=True)
        return path
    import PIL.Image

    strips = []
    for medium in (shown, result):
        frames = medium.flatten(0, 1) if medium.ndim == 5 else medium
        strips.append(np.concatenate(list(to_uint8(frames[: _N_SHOWN * 2])), axis=1))
    path = stem.with_suffix(".png")
    PIL.Image.fromarray(np.concatenate(strips, axis=0)).save(path)
    return path
