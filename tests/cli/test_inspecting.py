from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyglyph.kernels import TABLE


def test_a_document_is_spelled_id_by_id(here: Path, run: Any) -> None:
    segments = [{"modality": "text", "text": "ring"}, {"modality": "image", "path": "photo.jpg"}]
    Path("doc.json").write_text(json.dumps({"format": 1, "segments": segments}))
    done = run("inspect", "doc.json", "--json")
    assert done.status == 0
    rows = done.json["results"]
    names = [row["name"] for row in rows]
    assert names[:2] == ["bos", "begin_text"] and names[-2:] == ["end_image", "eos"]
    assert "".join(row["piece"] for row in rows) == "ring"
    assert [row["position"] for row in rows] == list(range(len(rows)))
    # brought to the 16x24 pixels of the checkpoint: two rows of three codes of 23
    start = names.index("begin_image")
    assert names[start + 1 : start + 3] == ["size 2", "size 3"]
    assert [row["slot"] for row in rows[start + 3 : start + 7]] == ["image"] * 3 + ["row_end"]
    assert {row["n_allowed"] for row in rows if row["slot"] == "image"} == {23}


def test_people_get_a_table_of_slots_cut_where_they_say(here: Path, run: Any) -> None:
    Path("a.txt").write_text("[red] ring")
    done = run("inspect", "a.txt", "--limit", "5")
    assert done.status == 0 and "begin_text" in done.out and "next segment" in done.out
    assert "more ids" in done.err and "[red]" not in done.out and "eos" not in done.out
    whole = run("inspect", "a.txt")
    assert "eos" in whole.out and not whole.err


def test_a_line_of_a_corpus_is_picked(here: Path, run: Any) -> None:
    documents = [{"format": 1, "segments": [{"modality": "text", "text": t}]} for t in ("a", "bb")]
    Path("docs.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n")
    found = run("inspect", "docs.jsonl", "--document", "1", "--json").json["results"]
    assert "".join(row["piece"] for row in found) == "bb"
    done = run("inspect", "docs.jsonl", "--document", "2")
    assert done.status == 2 and "documents 0..1; got --document 2" in done.err


def test_a_codes_file_is_listed_and_spelled(here: Path, run: Any) -> None:
    run("tokenize", "photo.jpg", "clip.mp4", "-o", "codes.safetensors")
    listed = run("inspect", "codes.safetensors", "--json").json["results"]
    assert [row["modality"] for row in listed] == ["image", "video", "audio"]
    assert listed[0]["meta"] == {"height": 21, "width": 34} and listed[0]["shape"] == [1, 3, 5]
    assert "photo.jpg" in run("inspect", "codes.safetensors").out
    rows = run("inspect", "codes.safetensors", "--document", "1", "--json").json["results"]
    names = [row["name"] for row in rows]
    assert names.count("begin_video") == names.count("begin_audio") == names.count("eos") == 1


def test_a_checkpoint_says_what_it_holds(here: Path, run: Any, made: Path) -> None:
    (entry,) = run("inspect", made / "model", "--json").json["results"]
    assert entry["kind"] == "model" and entry["finite"] and entry["origin"] == "a test"
    assert set(entry["codecs"]) == {"text", "image", "video", "audio", "region", "action"}
    (entry,) = run("inspect", made / "codecs" / "image", "--json").json["results"]
    assert entry["kind"] == "codec" and "vocabulary" not in entry


def test_a_medium_says_its_sizes(here: Path, run: Any) -> None:
    (entry,) = run("inspect", "clip.mp4", "--json").json["results"]
    assert (entry["modality"], entry["width"], entry["n_frames"]) == ("video", 26, 5)
    assert "Audio" in entry["sound"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'{"format": 9, "segments": []}', "9"),
        ("a.json", b'{"format": 1, "segments": [{"modality": "text"}]}', "exactly one of text"),
        ("a.png", b"", "is empty"),
        ("a.safetensors", b"junk", "codes file"),
        (
            "b.json",
            b'{"format": 1, "segments": [{"modality": "image", "path": "no.png"}]}',
            "no.png",
        ),
    ],
)
def test_what_can_t_be_read_is_one_line(
    here: Path, run: Any, name: str, data: bytes, said: str
) -> None:
    Path(name).write_bytes(data)
    done = run("inspect", name)
    assert done.status == 2 and done.err.count("\n") == 1 and said in done.err and not done.out


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gone.png", "'gone.png': no such file"),
        ("no/such/place", "no such folder"),
        (".", "is no folder of ours: expected one of manifest.json, run.json"),
        ("run", "run.json' is not JSON"),
    ],
)
def test_a_path_that_is_nothing_of_ours_is_refused(
    here: Path, run: Any, path: str, said: str
) -> None:
    Path("run").mkdir()
    Path("run/run.json").write_text('{"kind": "mod')
    done = run("inspect", path)
    assert done.status == 2 and done.err.count("\n") == 1 and said in done.err


def test_kernels_say_what_runs_here_and_why(here: Path, run: Any) -> None:
    done = run("inspect", "--kernels", "--device", "cpu", "--json")
    assert done.status == 0
    rows = {row["kernel"]: row for row in done.json["results"]}
    assert set(rows) == set(TABLE)
    assert rows["attention"]["runs"] == "torch" and rows["attention"]["why"] == "tensors on cpu"
    if rows["rms_norm"]["triton"] is not None:
        assert set(rows["rms_norm"]["configurations"]) >= {"sm_80", "sm_90"}
    shown = run("inspect", "--kernels", "--device", "cpu").out
    assert "attention" in shown and "tensors on cpu" in shown
    done = run("inspect")
    assert done.status == 2 and "expected a file or folder, or --kernels alone" in done.err
    assert run("inspect", "--kernels", "photo.jpg").status == 2
