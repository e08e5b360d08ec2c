"""One prompt, three seeds, one batch: the rows do not influence each other.

The checkpoint answers with the most likely ids unless a temperature says to draw."""

from __future__ import annotations

import polyglyph

pipe = polyglyph.load("tiny")
prompts = ["a green triangle left of a yellow ring"] * 3
documents = pipe.generate_batch(prompts, to="image", seed=[0, 1, 2], temperature=1.0)
for seed, document in enumerate(documents):
    document[0].image.save(f"answer-{seed}.png")
