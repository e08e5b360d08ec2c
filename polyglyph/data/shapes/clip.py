"""A scene as a clip: eight frames in which its things move. Knows nothing of captions or ids."""

from __future__ import annotations

import numpy as np

from polyglyph.data.shapes.picture import draw
from polyglyph.data.shapes.scene import N_FRAMES, Scene


def clip(scene: Scene) -> np.ndarray:
    """The scene as a clip, (8, 72, 72, 3) uint8 at `scene.FPS`; frame 0 is its picture."""
    return np.stack([draw(scene, frame) for frame in range(N_FRAMES)])
