from __future__ import annotations

import numpy as np
import pytest

from polyglyph.eval.fidelity import MEASURED, measure, values_of
from polyglyph.eval.metrics import PSNR_CAP_DB
from polyglyph.media import Action, Audio, Image, Region, Video


def test_equal_media_have_the_best_figures_and_their_rates() -> None:
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 256, (3, 12, 14, 3), dtype=np.uint8)
    samples = noise.uniform(-0.5, 0.5, (1, 8000)).astype(np.float32)
    image, clip, sound = Image(pixels[0]), Video(pixels, 8.0), Audio(samples, 8000)
    assert measure(image, image, 84.0) == {
        "psnr_db": PSNR_CAP_DB, "ssim": pytest.approx(1.0), "bits_per_pixel": 0.5,
    }  # fmt: skip
    padded = Video(np.pad(pixels, ((0, 1), (0, 2), (0, 0), (0, 0))), 8.0)
    found = measure(clip, padded, 3.0)
    assert found["psnr_db"] == found["difference_psnr_db"] == PSNR_CAP_DB
    assert found["bits_per_s"] == 8.0
    found = measure(sound, sound, 50.0)
    assert found["mel_distance"] == 0.0 and found["si_sdr_db"] > 60 and found["bits_per_s"] == 50.0
    assert found["stoi"] == pytest.approx(1.0)
    action = Action(np.array([[0.0, 1.0], [0.5, 0.25]]))
    assert measure(action, action, 0.0) == {"largest_error": 0.0}
    assert measure("a", "b", 1.0) == {"equal": 0.0}


def test_a_sound_is_judged_at_the_rate_of_what_came_back() -> None:
    t = np.arange(16_000) / 16_000
    whole = Audio(np.stack([np.sin(2 * np.pi * 300 * t), np.sin(2 * np.pi * 500 * t)]) / 3, 16_000)
    half = np.arange(8000) / 8000
    back = (np.sin(2 * np.pi * 300 * half) + np.sin(2 * np.pi * 500 * half)) / 6
    assert measure(whole, Audio(back, 8000), 1.0)["si_sdr_db"] > 30


def test_silence_and_short_sounds_have_finite_figures() -> None:
    for n in (1, 50, 3000, 9000):
        silent = Audio(np.zeros((1, n), np.float32), 8000)
        for other in (silent, Audio(np.full((1, n), 0.3, np.float32), 8000)):
            for a, b in ((silent, other), (other, silent)):
                assert all(np.isfinite(v) for v in measure(a, b, 1.0).values())


def test_values_tell_one_medium_from_another() -> None:
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    sound = Audio(np.zeros(5), 8000)
    kinds = ["a", Image(pixels[0]), sound, Video(pixels, 5), Video(pixels, 5, sound)]
    kinds += [Region(np.zeros(2), "point"), Action(np.zeros((1, 2)))]
    seen = [repr(values_of(medium)) for medium in kinds]
    assert len(set(seen)) == len(kinds) and set(MEASURED) == {"image", "video", "audio"}
