from __future__ import annotations

import numpy as np

from polyglyph.eval.comparison import side_by_side
from polyglyph.media import Audio, Image, Video


def test_pictures_stand_side_by_side_pixel_for_pixel() -> None:
    red, blue = (np.full((20, 30, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255)))
    sheet = np.array(side_by_side(Image(red), Image(blue)))
    assert (sheet == (255, 0, 0)).all(-1).sum() == (sheet == (0, 0, 255)).all(-1).sum() == 600
    columns = [np.flatnonzero((sheet == c).all(-1).any(0)) for c in ((255, 0, 0), (0, 0, 255))]
    assert columns[0].max() < columns[1].min()


def test_a_large_picture_and_a_long_clip_are_scaled_down() -> None:
    wide = Image(np.zeros((10, 5000, 3), np.uint8))
    assert side_by_side(wide, wide).width < 2200
    clip = Video(np.zeros((40, 300, 400, 3), np.uint8), 10)
    shorter = Video(np.zeros((39, 302, 400, 3), np.uint8), 10)
    sheet = side_by_side(clip, shorter)
    assert sheet.width < 1700 and sheet.height < 500
    one = Video(np.zeros((1, 4, 4, 3), np.uint8), 10)
    assert side_by_side(one, one).width < 30


def test_a_codec_of_a_lower_rate_shows_what_it_leaves_out() -> None:
    t = np.arange(16_000) / 16_000
    high = Audio(0.5 * np.sin(2 * np.pi * 5000 * t), 16_000)
    silent = Audio(np.zeros(8000, np.float32), 8000)
    sheet = np.array(side_by_side(high, silent)).astype(int)
    above, below = sheet[22 : sheet.shape[0] // 2], sheet[sheet.shape[0] // 2 + 12 : -6]
    assert above[:, 20:-20].max() > 120 and below[:, 20:-20, 0].max() < 50


def test_a_text_has_no_picture() -> None:
    assert side_by_side("a", "a") is None
