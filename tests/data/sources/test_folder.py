from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polyglyph.data.prepare import describe, prepare
from polyglyph.data.shards import Shards
from polyglyph.data.sources import open_source
from polyglyph.data.sources.folder import Source
from polyglyph.errors import InputError
from polyglyph.media import Audio, Image, Video, save


def picture(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (16, 32, 3)).astype(np.uint8))


@pytest.fixture
def media(tmp_path) -> Path:
    root = tmp_path / "media"
    (root / "deep").mkdir(parents=True)
    save(picture(1), root / "b.png")
    save(picture(2), root / "a.jpg")
    save(Audio(np.sin(np.arange(800) / 9)[None], 8000), root / "deep" / "c.wav")
    frames = np.stack([picture(i).array for i in range(3)])
    save(Video(frames, 4.0), root / "deep" / "d.mp4")
    for name in ("a", "b", "deep/c", "deep/d"):
        (root / f"{name}.txt").write_text(f"caption of {name}\n", "utf-8")
    return root


def test_each_medium_gives_both_directions_with_loss_on_the_target(media):
    source = Source(media)
    assert source.length == 4
    found = [[s.modality for s in d] for i in range(4) for d in source.get(i)]
    names = ["image", "image", "audio", "video"]
    assert found == [pair for m in names for pair in (["text", m], [m, "text"])]
    there, back = source.get(1)
    assert there[0].text == back[1].text == "caption of b"
    assert there[1].content is back[0].content and there[1].content == picture(1)
    assert [[s.loss_weight for s in d] for d in (there, back)] == [[0.0, 1.0]] * 2
    assert source.captions(2) == ["caption of deep/c"]


def test_captions_jsonl_names_the_items(media):
    lines = [{"path": "deep/c.wav", "text": "a hum"}, {"path": "b.png", "text": "noise"}]
    (media / "captions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    source = open_source(media)
    assert source.length == 2
    assert [source.get(i)[0][0].text for i in range(2)] == ["a hum", "noise"]
    assert source.get(1)[0][1].content == picture(1)


def test_a_changed_folder_is_another_source(media):
    before = describe(Source(media))
    assert before == describe(Source(media)) and before["name"] == "folder"
    (media / "a.txt").write_text("another caption")
    assert describe(Source(media)) != before


def test_bad_files_are_recorded_and_the_rest_prepared(media, tmp_path, codecs, grammar_of):
    (media / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (media / "broken.txt").write_text("x")
    save(picture(3), media / "alone.png")
    save(picture(4), media / "latin.png")
    (media / "latin.txt").write_bytes(b"caf\xe9")
    (media / "deep" / "d.mp4").unlink()
    (media / ".hidden.png").write_bytes(b"x")
    grammar = grammar_of(codecs)
    done = prepare(Source(media), codecs, grammar, tmp_path / "s")
    lines = [json.loads(x) for x in (tmp_path / "s" / "errors.jsonl").read_text().splitlines()]
    said = {line["source"]: line for line in lines}
    assert sorted(said) == ["alone.png", "broken.png", "latin.png"]
    assert said["broken.png"]["type"] == "MediaError"
    assert "expected alone.txt beside it" in said["alone.png"]["message"]
    assert "byte 3 is not UTF-8" in said["latin.png"]["message"]
    assert done.n_documents == Shards(tmp_path / "s", grammar).n_documents == 6
    assert codecs["image"].n_encoded == 2  # two pictures, each in two documents


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "expected {"),
        ('{"path": "a.jpg"}', "KeyError"),
        ('{"path": "../a.jpg", "text": "x"}', "leaves the folder"),
        ('{"path": "/etc/a.jpg", "text": "x"}', "leaves the folder"),
        ('{"path": "a.jpg", "text": "  "}', "caption of a.jpg is empty"),
    ],
)
def test_a_wrong_line_is_an_error_of_its_item(media, line, message):
    (media / "captions.jsonl").write_text(line + '\n{"path": "a.jpg", "text": "x"}\n')
    source = Source(media)
    with pytest.raises(InputError, match=message):
        source.get(0)
    assert len(source.get(1)) == 2 and source.where(1) == "captions.jsonl:2"


def test_row_58_names_of_any_alphabet_work(tmp_path):
    name = "чаша 🍵 " + "x" * 200
    save(picture(1), tmp_path / f"{name}.png")
    (tmp_path / f"{name}.txt").write_text("чаша", "utf-8")
    source = Source(tmp_path)
    assert source.get(0)[0][0].text == "чаша" and source.where(0) == f"{name}.png"


def test_no_media_and_no_folder_say_what_is_expected(tmp_path):
    with pytest.raises(InputError, match=r"holds no media; expected files such as x\.jpg"):
        Source(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        Source(tmp_path / "nowhere")
    with pytest.raises(InputError, match="unknown source 'shape'; did you mean 'shapes'"):
        open_source("shape")
    with pytest.raises(InputError, match="source folder is read from a path"):
        open_source("folder")


def test_an_option_the_source_does_not_know_is_refused_with_the_nearest(tmp_path):
    from polyglyph.data.sources import open_source
    from polyglyph.errors import InputError

    with pytest.raises(InputError, match="did you mean 'mixture'"):
        open_source("shapes", mixtur={"text_to_image": 1})
    source = open_source("shapes", seed=4, mixture={"text_to_image": 1})
    assert source.weights == {"text_to_image": 1} and source.seed == 4
