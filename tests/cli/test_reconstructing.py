from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyglyph.media import Image, Region


def test_every_medium_comes_back_with_its_figures(here: Path, run: Any) -> None:
    Path("text.txt").write_text("a red ring")
    Region(np.array([0.1, 0.2, 0.5, 0.9]), "box").save("box.json")
    words = ("photo.jpg", "speech.wav", "clip.mp4", "text.txt", "box.json")
    done = run("reconstruct", *words, "-o", "out", "--json")
    assert done.status == 0
    found = {Path(r["file"]).name: r for r in done.json["results"]}
    pictures = {Path(r["comparison"]).name for r in done.json["results"] if "comparison" in r}
    assert pictures == {f"{name}-compared.png" for name in ("photo", "speech", "clip")}
    assert set(os.listdir("out")) == {*found, *pictures, "results.json"}
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
    assert "mean of 1 (image)" in done.out and "codebook_use" in done.out
    assert "of 23" in done.out and "perplexity" in done.out


def test_a_failed_input_doesn_t_stop_the_others(here: Path, run: Any) -> None:
    Path("empty.png").touch()
    done = run("reconstruct", "empty.png", "gone.png", "photo.jpg", "-o", "out", "--json")
    assert done.status == 2 and len(done.json["results"]) == 1 and len(done.json["errors"]) == 2
    left = {"photo.png", "photo-compared.png", "results.json", "errors.jsonl"}
    assert set(os.listdir("out")) == left


def test_two_results_are_compared_and_refused_where_they_differ(here: Path, run: Any) -> None:
    for name, words in (
        ("all", ["speech.wav", "photo.jpg"]),
        ("few", ["speech.wav", "photo.jpg", "--codebooks", "1"]),
        ("small", ["photo.jpg", "--size", "16"]),
        ("one", ["clip.mp4"]),
    ):
        assert run("reconstruct", *words, "-o", name).status == 0
    small = Image("small/photo.png")
    assert (small.width, small.height) == (16, 16)
    done = run(
        "eval", "few/results.json", "--against", "all/results.json", "--json", checkpoint=False
    )
    assert done.status == 0, done.err
    rows = {(row["task"], row["metric"]): row for row in done.json["results"]}
    assert rows["reconstruct_audio", "bits"]["difference"] < 0
    assert rows["reconstruct_image", "psnr_db"]["difference"] == 0
    for name, said in (("small", "resize is 'to cover 16x16"), ("one", "no task in common")):
        words = ("eval", f"{name}/results.json", "--against", "all/results.json")
        done = run(*words, checkpoint=False)
        assert done.status == 2 and said in done.err and done.err.count("\n") == 1, done.err
    done = run("reconstruct", "photo.jpg", "-o", "again", "--against", "all/results.json")
    assert done.status == 0 and "difference" in done.out
    stamp = json.loads(Path("all/results.json").read_text())["tasks"][0]["protocol"]
    assert set(stamp) >= {"measured", "reference", "n", "resize", "crop", "weights"}


def test_a_result_that_is_none_is_refused_before_the_work(here: Path, run: Any) -> None:
    Path("a.json").write_text("[]")
    for name in ("a.json", "gone.json", "photo.jpg"):
        done = run("reconstruct", "photo.jpg", "-o", "out", "--against", name)
        assert done.status == 2 and done.err.count("\n") == 1 and not Path("out").exists()


def test_row_58_output_that_is_the_input_is_refused_even_with_f(here: Path, run: Any) -> None:
    before = Path("speech.wav").read_bytes()
    done = run("reconstruct", "speech.wav", "-o", ".", "-f")
    assert done.status == 2 and "is the input" in done.err
    assert Path("speech.wav").read_bytes() == before


def test_an_unwritable_output_is_refused_before_the_codec_is_loaded(here: Path, run: Any) -> None:
    words = ("reconstruct", "photo.jpg", "-o", "speech.wav/out", "-c", "no-such-checkpoint")
    done = run(*words, checkpoint=False)
    assert done.status == 2 and "is a file" in done.err and done.err.count("\n") == 1
