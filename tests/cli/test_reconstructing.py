from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import picture, sound

from polyglyph.cli import files
from polyglyph.cli.codecs import Codecs
from polyglyph.eval.fidelity import measure
from polyglyph.media import Audio, Image, Region, Video


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


def test_a_clip_s_sound_has_figures_of_its_own(here: Path, run: Any, made: Path) -> None:
    frames = np.stack([picture(16, 20, i) for i in range(6)])
    Video(frames, 8.0).save("mute.mp4")
    done = run("reconstruct", "clip.mp4", "mute.mp4", "-o", "out", "--json")
    clip, mute = done.json["results"]
    assert not any(name.startswith("sound_") for name in mute)
    n_codes = math.prod(clip["grids"]["audio"])
    assert clip["sound_bits"] == pytest.approx(n_codes * math.log2(17))
    assert clip["bits"] == pytest.approx(
        clip["sound_bits"] + math.prod(clip["grids"]["video"]) * math.log2(23)
    )
    due = measure(Video("clip.mp4").audio, Video("out/clip.mp4").audio, 1.0)
    for name in ("si_sdr_db", "mel_distance"):
        assert clip[f"sound_{name}"] == pytest.approx(due[name])
    task = json.loads(Path("out/results.json").read_text())["tasks"][0]
    assert task["metrics"]["sound_si_sdr_db"]["n"] == 1 and task["metrics"]["psnr_db"]["n"] == 2
    assert "AAC" in task["protocol"]["measured"]
    done = run("reconstruct", "clip.mp4", "-o", "table")
    assert "its sound" in done.out and "sound_" not in done.out and "mel_distance" in done.out


def test_a_long_sound_goes_through_in_parts_with_the_figures_of_the_whole(
    here: Path, run: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Audio(np.stack([sound(181 * 8000)[0], sound(181 * 8000, 1)[0]]), 8000)
    whole.save("long.wav")
    encode = Codecs.encode
    held: list[int] = []

    def counted(self: Codecs, medium: Any) -> Any:
        held.append(medium.n_samples)
        return encode(self, medium)

    monkeypatch.setattr(Codecs, "encode", counted)
    done = run("reconstruct", "long.wav", "speech.wav", "-o", "out", "--json")
    assert done.status == 0 and held == [1700]  # only the short one was held
    found, short = done.json["results"]
    due = measure(Audio("long.wav"), Audio("out/long.wav"), found["bits"])
    assert found["si_sdr_db"] == pytest.approx(due["si_sdr_db"], abs=1e-4)
    assert found["mel_distance"] == pytest.approx(due["mel_distance"], rel=0.02)
    assert found["bits_per_s"] == pytest.approx(due["bits_per_s"])
    assert found["parts"] and "parts" not in short and Path(found["comparison"]).is_file()
    assert (
        short["si_sdr_db"] == measure(Audio("speech.wav"), Audio("out/speech.wav"), 1)["si_sdr_db"]
    )
    stamp = json.loads(Path("out/results.json").read_text())["tasks"][0]["protocol"]
    assert "stretches of 30 s" in stamp["measured"] and stamp["sample_rate"] == [4000]
    # As a whole, it has the same codes, and numbers that are of another kind.
    monkeypatch.setattr(files, "LONG_S", 1000.0)
    words = ("reconstruct", "long.wav", "speech.wav", "-o", "held", "--json")
    done = run(*words, "--against", "out/results.json")
    assert (
        done.status == 2 and "can't be compared: measured is" in done.json["errors"][0]["message"]
    )
    assert held[1:] == [181 * 8000, 1700] and done.json["results"][1] | {"file": 0} == short | {
        "file": 0, "comparison": done.json["results"][1]["comparison"],
    }  # fmt: skip
    assert done.json["results"][0]["grids"] == found["grids"]
    # A damaged one says so; with --strict it is an error and leaves nothing.
    monkeypatch.setattr(files, "LONG_S", 60.0)
    data = Path("long.wav").read_bytes()
    Path("long.wav").write_bytes(data[: len(data) // 2])
    done = run("reconstruct", "long.wav", "-o", "cut")
    assert done.status == 0 and "note: long.wav: ends early" in done.err
    assert run("reconstruct", "long.wav", "-o", "none", "--strict").status == 2
    assert os.listdir("none") == ["errors.jsonl"]


MEMORY = """
    import resource, sys
    import numpy as np, torch
    torch.set_num_threads(1)
    from polyglyph.cli.app import run
    from polyglyph.tokenizers import audio
    audio._SAMPLES_PER_BATCH = 1 << 16
    from polyglyph.media import Audio, save_sound
    def parts(n):
        for i in range(n):
            noise = np.random.default_rng(i).standard_normal((2, 10 * 16_000))
            yield Audio((0.1 * noise).astype(np.float32), 16_000)
    def peak(n):
        save_sound(parts(n), f"{n}.wav")
        assert run(["reconstruct", f"{n}.wav", "-o", f"{n}", "-c", sys.argv[1], "--json"]) == 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    first = peak(13)
    print(peak(52) - first)
"""


def test_four_times_as_long_a_sound_takes_no_more_memory(here: Path, made: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), os.fspath(made / "model")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given = 390 * 16_000 * 2 * 4 / 2**20  # MiB of samples more
    assert float(done.stdout.splitlines()[-1]) < 0.25 * given, done.stdout
