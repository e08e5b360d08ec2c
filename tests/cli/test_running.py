from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def test_the_lists_name_every_task_and_bench(here: Path, run: Any) -> None:
    from polyglyph.bench.runner import list_benches
    from polyglyph.eval.runner import list_tasks

    tasks = run("eval", "--list", "--json", checkpoint=False).json["results"]
    assert [entry["task"] for entry in tasks] == list_tasks()
    assert all(entry["summary"] for entry in tasks)
    benches = run("bench", "--list", "--json", checkpoint=False).json["results"]
    assert [entry["bench"] for entry in benches] == list_benches()


def test_a_task_is_scored_with_a_table_and_a_report(here: Path, run: Any) -> None:
    words = ("eval", "image_to_text", "-n", "2", "-o", "scores", "--temperature", "0")
    done = run(*words, "--json")
    assert done.status == 0, done.err
    (task,) = done.json["results"]
    assert task["task"] == "image_to_text" and 0 <= task["right"]["mean"] <= 1
    assert {"results.json", "report.html"} <= set(os.listdir("scores"))
    assert json.loads(Path("scores/results.json").read_text())["settings"] == {"temperature": 0.0}
    assert run(*words).status == 2  # the folder exists


def test_validation_needs_no_checkpoint(here: Path, run: Any) -> None:
    done = run("eval", "--validate", "image_to_text", "-n", "4", "--json", checkpoint=False)
    assert done.status == 0 and done.json["results"][0]["mean"] == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval"], "name a task, or pass --all"),
        (["eval", "image_to_txt"], "did you mean 'image_to_text'"),
        (["eval", "image_to_text", "-n", "0"], "at least one item"),
        (["eval", "image_to_text", "--seed", "-3"], "from 0; got -3"),
        (["eval", "image_to_text", "-n", "1", "-o", "photo.jpg/x"], "photo.jpg' is a file"),
        (["eval", "image_to_text", "-c", "tinny"], "unknown checkpoint 'tinny'"),
        (["bench", "trainin"], "did you mean 'training'"),
        (["demo", "-c", "tinny"], "unknown checkpoint 'tinny'"),
    ],
)
def test_a_wrong_call_is_one_line(here: Path, run: Any, words: list[str], said: str) -> None:
    before = set(os.listdir())
    done = run(*words, checkpoint="eval" in words and "-c" not in words)
    assert done.status == 2 and done.err.count("\n") == 1 and said in done.err
    assert set(os.listdir()) == before


def test_a_comparison_with_a_result_of_other_tasks_is_refused_before_the_work(
    here: Path, run: Any
) -> None:
    earlier = {"format": 1, "tasks": [{"task": "image_to_text", "protocol": {"n": 1}}]}
    Path("before.json").write_text(json.dumps(earlier))
    done = run("eval", "text_to_image", "-n", "1", "-o", "scores", "--against", "before.json")
    assert done.status == 2 and "none of these tasks; it has image_to_text" in done.err
    assert done.err.count("\n") == 1 and not os.path.exists("scores")


def test_demo_hands_over_and_reports_what_came(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import polyglyph.demo

    def run_demo(out: str, files: list[str], checkpoint: str, seed: int, *rest: Any) -> dict:
        errors = [{"source": f, "type": "MediaError", "message": f"{f}: bad"} for f in files]
        return {"results": [{"name": "a"}], "index": f"{out}/index.html", "errors": errors}

    monkeypatch.setattr(polyglyph.demo, "run_demo", run_demo)
    done = run("demo", "-o", "tour")
    assert done.status == 0 and done.out == "tour/index.html\n"
    named = [entry["page"] for entry in run("demo", "--json").json["results"] if "page" in entry]
    assert named == ["demo/index.html"]
    done = run("demo", "gone.png", "--json")
    assert done.status == 2 and done.json["errors"][0]["source"] == "gone.png"
