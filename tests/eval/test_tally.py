from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from polyglyph.eval.tally import Tally
from polyglyph.media import Audio, Image
from polyglyph.tokenizers.base import CodeGrid, SpanSpec

SPECS = {"image": SpanSpec("image", "image", 8, 1, 2), "audio": SpanSpec("audio", "audio", 4, 3, 1)}


def codec_of(modality: str) -> SimpleNamespace:
    return SimpleNamespace(spec=SPECS[modality], span=modality, fingerprint=f"of {modality}")


def tallied(size: int | None = None, brightness: int = 0) -> Tally:
    tally = Tally(codec_of, size, ["image"] if size else [])
    for i in range(2):
        image = Image(np.full((4, 4, 3), 10 * i + brightness, np.uint8))
        codes = np.full((1, 2, 2), i, np.int32)
        use = tally.use([CodeGrid("image", codes)])
        assert use == 1 / 8
        entry = {"file": f"{i}.png", "n_tokens": 4, "bits": 12.0, "psnr_db": 20.0 + i}
        tally.add("image", entry, image, image)
    sound = Audio(np.zeros(9), 8000)
    tally.use([CodeGrid("audio", np.arange(4, dtype=np.int32)[None])])
    tally.add("audio", {"file": "a.wav", "n_tokens": 4, "bits": 8.0}, sound, sound)
    return tally


def test_means_protocol_and_use_of_codebooks_are_by_modality() -> None:
    results = tallied().results("tiny")
    image, audio = results["tasks"]
    assert image["task"] == "reconstruct_image" and image["metrics"]["psnr_db"]["mean"] == 20.5
    assert image["codebooks"][0]["usage"] == 2 / 8 and len(audio["codebooks"]) == 1
    assert image["codebooks"][0]["perplexity"] == pytest.approx(2)
    assert audio["subject"] == {"span": "audio", "fingerprint": "of audio", "n_codebooks": 1}
    assert audio["protocol"]["sample_rate"] == [8000] and "sample_rate" not in image["protocol"]
    assert len(results["files"]) == 3 and image["n"] == 2


def test_the_protocol_tells_sizes_and_originals_apart() -> None:
    stamps = [
        tallied(*words).results("a")["tasks"][0]["protocol"] for words in ((), (4,), (None, 1), ())
    ]
    assert stamps[0] == stamps[3] != stamps[1] and stamps[0]["reference"] != stamps[2]["reference"]
    assert stamps[1]["resize"] == "to cover 4x4, Lanczos of Pillow" and stamps[0]["crop"] == "none"


def test_people_get_a_row_per_file_and_one_of_the_means() -> None:
    assert tallied().table().row_count == 5 and tallied().codebooks_table().row_count == 2
