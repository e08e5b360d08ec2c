"""A sound becomes codes and a sound again; prints what one second costs."""

from __future__ import annotations

import math

import numpy as np

import polyglyph

sample_rate = 16_000
time_s = np.arange(sample_rate, dtype=np.float32) / sample_rate
tone = polyglyph.Audio(0.3 * np.sin(2 * np.pi * 440 * time_s)[None], sample_rate)

codec = polyglyph.load("tiny").tokenizers["audio"]
grid = codec.encode(tone)
bits = grid.n_tokens * math.log2(codec.spec.codebook_size)
print(f"{grid.n_tokens} codes, {bits:.0f} bit/s against {16 * sample_rate} bit/s of 16-bit samples")
codec.decode(grid).save("tone.wav")
