"""One prompt, three seeds, one batch: the rows do not influence each other."""

from __future__ import annotations

import polyglyph

pipe = polyglyph.load("tiny")
prompts = ["a green triangle left of a yellow ring"] * 3
for seed, document in enumerate(pipe.generate_batch(prompts, to="image", seed=[0, 1, 2])):
    document[0].image.save(f"answer-{seed}.png")
