"""Side-by-side samples of a codec run: originals above (or before) their reconstructions.

Pictures and clips as one picture; sounds to listen to, and their spectrograms as one picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyglyph.media import Audio
from polyglyph.tokenizers.image import to_uint8
from polyglyph.tokenizers.spectral import log_mel

_N_SHOWN = 8
_N_MELS = 80
_FAINTEST = -9.0  # ln of the mel magnitude that is drawn black, -78 dB of full scale


@torch.no_grad()
def write_sample(stem: Path, tokenizer: Any, batch: Tensor) -> Path:
    """Writes <stem>.png for pictures and clips, <stem>.wav for sound; returns its path.

    Beside the sound stands <stem>.png with the mel spectrograms, originals above. A sample of a
    step that a resumed run does again is replaced."""
    shown = batch[:_N_SHOWN]
    net = tokenizer.net
    result = net.decode(net.encode(shown))
    if shown.ndim == 3:  # (B, C, S)
        return _write_sounds(stem, shown.cpu(), result.cpu(), tokenizer.config.sample_rate)
    import PIL.Image

    strips = []
    for medium in (shown, result):
        frames = medium.flatten(0, 1) if medium.ndim == 5 else medium
        strips.append(np.concatenate(list(to_uint8(frames[: _N_SHOWN * 2])), axis=1))
    path = stem.with_suffix(".png")
    PIL.Image.fromarray(np.concatenate(strips, axis=0)).save(path)
    return path


def _write_sounds(stem: Path, shown: Tensor, result: Tensor, sample_rate: int) -> Path:
    import PIL.Image

    result = result[..., : shown.shape[-1]]
    pairs = torch.cat([shown, result], dim=-1)  # (B, C, 2S)
    samples = pairs.transpose(0, 1).flatten(1).numpy().astype(np.float32)
    path = stem.with_suffix(".wav")
    Audio(np.clip(samples, -1, 1), sample_rate).save(path, force=True)
    rows = [np.concatenate([spectrogram(x, sample_rate) for x in s], 1) for s in (shown, result)]
    PIL.Image.fromarray(np.concatenate(rows, axis=0)).save(stem.with_suffix(".png"))
    return path


def spectrogram(sound: Tensor, sample_rate: int) -> np.ndarray:
    """Grey uint8 (bands, frames) of sound (C, S), its channels mixed, low notes at the bottom."""
    levels = log_mel(sound.float().mean(0), sample_rate, n_mels=_N_MELS)  # (bands, frames)
    bright = ((levels - _FAINTEST) / -_FAINTEST).clamp(0, 1) * 255
    return bright.flip(0).round().to(torch.uint8).numpy()
