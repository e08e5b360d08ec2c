"""A sentence becomes a picture, and the picture becomes words again."""

from __future__ import annotations

import polyglyph

pipe = polyglyph.load("tiny")
picture = pipe.generate("a big red circle above a small blue square", to="image", seed=0)[0].image
picture.save("picture.png")
print(pipe.generate(polyglyph.Image("picture.png"), to="text", seed=0)[0].text)
