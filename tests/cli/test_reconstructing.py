from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyglyph.cli import reconstructing
from polyglyph.media import Action, Audio, Image, Region, Video


def test_every_medium_comes_back_with_its_figures(here: Path, run: Any) -> None:
    Path("text.txt").write_text("a red ring")
    Region(np.array([0.1, 0.2, 0.5, 0.9]), "box").save("box.json")
    words = ("photo.jpg", "speech.wav", "clip.mp4", "text.txt", "box.json")
    done = run("reconstruct", *words, "-o", "out", "--json")
    assert done.status == 0
    found = {Path(r["file"]).name: r for r in done.json["results"]}
    assert set(os.listdir("out")) == set(found)
    image, clip = found["photo.png"], found["clip.mp4"]
    assert image["bits"] == pytest.approx(3 * 5 * math.log2(23))
    assert image["bits_per_pixel"] == pytest.approx(image["bits"] / (21 * 34))
    assert 0 < image["psnr_db"] < 40 and -1 < image["ssim"] < 1
    assert set(clip["grids"]) == {"video", "audio"} and clip["psnr_db"] > 0
    assert found["speech.wav"]["mel_distance"] > 0 and math.isfinite(
        found["speech.wav"]["si_sdr_db"]
    )
    assert found["text.txt"]["equal"] == 1.0 and found["box.json"]["largest_error"] <= 0.5 / 64


def test_people_get_a_table(here: Path, run: Any) -> None:
    done = run("reconstruct", "photo.jpg", "-o", "out")
    assert done.status == 0 and "photo.png" in done.out and "psnr_db" in done.out


def test_a_failed_input_doesn_t_stop_the_others(here: Path, run: Any) -> None:
    Path("empty.png").touch()
    done = run("reconstruct", "empty.png", "gone.png", "photo.jpg", "-o", "out", "--json")
    assert done.status == 2 and len(done.json["results"]) == 1 and len(done.json["errors"]) == 2
    assert set(os.listdir("out")) == {"photo.png", "errors.jsonl"}


def test_row_58_output_that_is_the_input_is_refused_even_with_f(here: Path, run: Any) -> None:
    before = Path("speech.wav").read_bytes()
    done = run("reconstruct", "speech.wav", "-o", ".", "-f")
    assert done.status == 2 and "is the input" in done.err
    assert Path("speech.wav").read_bytes() == before


def test_an_unwritable_output_is_refused_before_the_codec_is_loaded(here: Path, run: Any) -> None:
    words = ("reconstruct", "photo.jpg", "-o", "speech.wav/out", "-c", "no-such-checkpoint")
    done = run(*words, checkpoint=False)
    assert done.status == 2 and "is a file" in done.err and done.err.count("\n") == 1


def test_equal_media_have_the_best_figures() -> None:
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 256, (3, 12, 14, 3), dtype=np.uint8)
    samples = noise.uniform(-0.5, 0.5, (1, 4000)).astype(np.float32)
    image, clip = Image(pixels[0]), Video(pixels, 8.0)
    assert reconstructing._image(image, image, 84.0) == {
        "psnr_db": 100.0, "ssim": pytest.approx(1.0), "bits_per_pixel": 0.5,
    }  # fmt: skip
    padded = Video(np.pad(pixels, ((0, 1), (0, 2), (0, 0), (0, 0))), 8.0)
    assert reconstructing._video(clip, padded, 3.0)["psnr_db"] == 100.0
    audio = Audio(samples, 8000)
    found = reconstructing._audio(Audio(samples, 8000), audio, 50.0)
    assert found["mel_distance"] == 0.0 and found["si_sdr_db"] > 60 and found["bits_per_s"] == 100.0
    action = Action(np.array([[0.0, 1.0], [0.5, 0.25]]))
    assert reconstructing._values(action, action, 0.0) == {"largest_error": 0.0}
