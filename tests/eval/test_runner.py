"""Tasks, their checkers and the runner, with pipelines whose answers are known beforehand."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyglyph.data.shapes.check import observe
from polyglyph.data.shapes.examples import (
    READ,
    SHOW,
    TASKS,
    check_reconstruction,
    make_example,
)
from polyglyph.data.shapes.scene import HELD_OUT, OBSERVABLE, make_scene
from polyglyph.data.sources.shapes import to_media, to_plain
from polyglyph.errors import InputError
from polyglyph.eval.pairs import PairTask
from polyglyph.eval.protocol import compare
from polyglyph.eval.runner import (
    check_comparable,
    list_tasks,
    load_task,
    named_tasks,
    run_tasks,
    validate,
)
from polyglyph.eval.scoring import Task, others
from polyglyph.media import MODALITY_OF, Image
from polyglyph.sequence.document import Document, Segment
from polyglyph.tokenizers.base import CodeGrid, SpanSpec

PAIRS = [n for n in list_tasks() if isinstance(load_task(n).TASK, PairTask)]
RANK = {"text": 1, "image": 2, "video": 3, "audio": 1, "region": 1}


class Mirror:
    """A codec that loses nothing: the code is the place of the medium in a list."""

    def __init__(self, modality: str) -> None:
        self.spec = SpanSpec(modality, modality, 4096, 1, RANK[modality])
        self.fingerprint = f"mirror of {modality}"
        self.media: list[Any] = []

    def encode_batch(self, media: list[Any]) -> list[CodeGrid]:
        self.media += media
        first = len(self.media) - len(media)
        shape = (1,) * (1 + self.spec.grid_rank)
        codes = [np.full(shape, first + i, np.int32) for i in range(len(media))]
        return [CodeGrid(self.spec.modality, code) for code in codes]

    def decode(self, grid: CodeGrid) -> Any:
        return self.media[int(grid.codes.flat[0])]


class Oracle:
    """A pipeline that knows the answers to one task's items, or gives `wrong` instead."""

    name = "oracle"

    def __init__(self, examples: list[Any], wrong: str = "") -> None:
        self.tokenizers = {modality: Mirror(modality) for modality in RANK}
        self.answers = {key_of([to_media(p) for p in e.prompt]): e.target for e in examples}
        self.wrong = wrong
        self.batches: list[int] = []
        self.model: Any = "an oracle"

    def generate_batch(self, prompts: list[Any], *, to: str, seed: list[int], **_: Any) -> Any:
        self.batches.append(len(prompts))
        assert len(seed) == len(prompts)
        if self.wrong == "error":
            raise InputError("no answer")
        documents = []
        for prompt in prompts:
            part = self.answers[key_of(prompt)]
            assert part[0] == to
            medium = "blue blue" if self.wrong and to == "text" else to_media(part)
            codes = self.tokenizers[to].encode_batch([medium])[0]
            documents.append(Document([Segment(to, medium, codes=codes)]))
        return documents


def key_of(prompt: list[Any]) -> tuple[Any, ...]:
    return tuple((MODALITY_OF(p), np.asarray(to_plain(p)).tobytes()) for p in prompt)


def oracle_of(name: str, n: int, seed: int, **options: Any) -> Oracle:
    items = load_task(name).TASK.items(n, seed, max(2, n // 4))
    return Oracle([item.example for item in items], **options)


def test_every_task_has_a_version_a_task_and_a_summary() -> None:
    assert len(list_tasks()) == 15 and len(PAIRS) == 11
    for name in list_tasks():
        module = load_task(name)
        assert module.VERSION >= 1 and isinstance(module.TASK, Task)
        assert module.TASK.summary and module.TASK.needs


def test_a_name_is_a_task_or_the_beginning_of_several() -> None:
    media = [f"reconstruction_{medium}" for medium in ("audio", "image", "video")]
    assert named_tasks(["reconstruction"]) == media
    assert named_tasks(["validity", media[1], "reconstruction"]) == [
        "validity",
        media[1],
        *media[::2],
    ]
    assert named_tasks([]) == []
    for wrong in ("reconstructio", "reconstruction_", ""):
        with pytest.raises(InputError, match="unknown task"):
            named_tasks([wrong])


def test_every_pair_of_the_world_is_a_task() -> None:
    assert {load_task(name).TASK.name for name in PAIRS} == set(TASKS)


def test_the_checkers_call_the_ground_truth_right_in_files() -> None:
    found = validate(n=6, seed=5)
    assert set(found) == set(list_tasks())
    assert {name: e.mean for name, e in found.items()} == dict.fromkeys(found, 1.0)


@pytest.mark.parametrize("name", PAIRS)
def test_right_answers_score_one_and_answers_to_other_scenes_next_to_nothing(name: str) -> None:
    pipe = oracle_of(name, 9, seed=11)
    result = run_tasks([name], pipe, 9, seed=11, batch_size=4)[name]
    assert result.right.mean == 1 and result.ceiling.mean == 1 and result.held_out.mean == 1
    # Answers such as "yes" are right by chance: half of the visual questions have two answers.
    assert result.floor.mean <= (0.6 if name == "visual_question" else 0.34)
    assert result.n == 9 and result.version == load_task(name).VERSION
    assert set(result.by_objects) == {1, 2, 3} and result.by_attribute
    assert set(result.by_attribute.values()) == {1.0}
    assert max(pipe.batches) == 4, "prompts go in batches"


def test_held_out_items_hold_a_pair_that_was_never_trained_and_the_others_none() -> None:
    for item in load_task("text_to_image").TASK.items(20, 3, 12):
        pairs = {(t.color, t.shape) for t in item.example.scene.things}
        assert bool(pairs & HELD_OUT) == item.held_out


def test_unreadable_text_and_a_failing_pipeline_count_as_wrong() -> None:
    for wrong in ("text", "error"):
        pipe = oracle_of("image_to_text", 4, seed=2, wrong=wrong)
        result = run_tasks(["image_to_text"], pipe, 4, seed=2)["image_to_text"]
        assert result.right.mean == 0 and result.n == 4
        assert all(item.verdict.detail for item in result.items)


def test_validity_counts_documents_that_are_not_what_was_asked_for() -> None:
    task = load_task("validity")
    mirror = Mirror("text")
    good = Document([Segment("text", "a", codes=mirror.encode_batch(["a"])[0])])
    assert task.fault(good, "text", mirror) == ""
    assert "segments" in task.fault(Document([*good, *good]), "text", mirror)
    assert "segments" in task.fault(good, "image", mirror)
    far = CodeGrid("text", np.array([[4096]], np.int32))
    assert "outside" in task.fault(Document([Segment("text", "a", codes=far)]), "text", mirror)
    assert task.fault(InputError("why"), "text", mirror) == "why"


@pytest.mark.parametrize("modality", sorted(SHOW))
def test_reconstruction_is_right_where_every_attribute_is_read_as_it_was(modality: str) -> None:
    names = [name for name in OBSERVABLE[modality] if name != "order"]

    def attributes(things: list[Any]) -> list[tuple[Any, ...]]:
        return [tuple(getattr(thing, name) for name in names) for thing in things]

    for index in range(12):
        scene = make_scene(8, index, "test")
        shown = make_scene(8, index + index % 2, "test")
        medium = to_media((modality, SHOW[modality](shown)))
        read = attributes(READ[modality](to_plain(medium)))
        due = read == attributes(observe(scene, modality))
        assert check_reconstruction(scene, modality, to_plain(medium)).ok == due
        assert due == (index % 2 == 0)


def test_a_lossless_codec_reconstructs_everything() -> None:
    pipe = Oracle([])
    names = [f"reconstruction_{modality}" for modality in sorted(SHOW)]
    for result in run_tasks(names, pipe, 5, seed=1, batch_size=3).tasks:
        assert result.right.mean == 1 and result.floor.mean < 1
        assert result.metrics["bits"].mean == 12
        assert result.facts["codebooks"][0]["perplexity"] == pytest.approx(5)
        assert result.subject["fingerprint"].startswith("mirror of")
        assert result.protocol["n"] == 5 and result.protocol["weights"].startswith("none")


def test_two_runs_are_compared_and_a_run_of_other_scenes_is_refused() -> None:
    names = ["reconstruction_image", "reconstruction_audio"]
    one, same, other = (run_tasks(names, Oracle([]), 3, seed=s).to_json() for s in (1, 1, 2))
    rows = compare(one, same)
    assert {row["metric"] for row in rows} >= {"right", "psnr_db", "ssim", "si_sdr_db", "stoi"}
    assert all(row["difference"] == 0 for row in rows)
    with pytest.raises(InputError, match="seed is 1 in reconstruction_image of this and 2 in"):
        compare(one, other)
    with pytest.raises(InputError, match="n is 4 in reconstruction_image of this and 3 in"):
        check_comparable(names, 4, 1, one, "that")
    check_comparable(names, 3, 1, one, "that")


def test_pixels_that_differ_are_another_reference_whatever_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = run_tasks(["reconstruction_image"], Oracle([]), 2, seed=1).to_json()
    task = load_task("reconstruction_image").TASK
    show = type(task)._show
    brighter = lambda self, scene: Image(np.maximum(show(self, scene).array, 9))  # noqa: E731
    monkeypatch.setattr(type(task), "_show", brighter)
    after = run_tasks(["reconstruction_image"], Oracle([]), 2, seed=1).to_json()
    with pytest.raises(InputError, match="can't be compared: reference is 'test scenes of shapes"):
        compare(before, after)


def test_the_blind_baseline_answers_some_questions_and_not_most() -> None:
    pipe = oracle_of("visual_question", 40, seed=6)
    blind = run_tasks(["visual_question"], pipe, 40, seed=6)["visual_question"].metrics["blind"]
    assert 0.1 < blind.mean < 0.7


def test_an_edit_that_changes_nothing_is_wrong() -> None:
    pipe = oracle_of("image_edit", 6, seed=6)
    assert run_tasks(["image_edit"], pipe, 6, seed=6)["image_edit"].metrics["unchanged"].mean == 0


class Tags(HTMLParser):
    """Opens and closes in balance; remembers what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "poster"):
                assert value.startswith(("data:", "#")), value
        if tag not in ("meta", "br", "img", "link", "source", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_results_are_saved_whole_and_can_be_scored_again(tmp_path: Path) -> None:
    pipe = oracle_of("image_to_audio", 4, seed=1)
    results = run_tasks(["image_to_audio"], pipe, 4, tmp_path / "out", seed=1)
    data = json.loads((tmp_path / "out/results.json").read_text())
    assert data["format"] == 1 and data["checkpoint"] == "oracle" and data["hardware"]
    task = data["tasks"][0]
    for name in ("task", "version", "seed", "n", "right", "ceiling", "floor", "by_objects"):
        assert task[name] is not None
    lines = (tmp_path / "out/samples.jsonl").read_text().splitlines()
    seen = [row for row in map(json.loads, lines) if not row["held_out"]]
    assert sum(row["ok"] for row in seen) / len(seen) == task["right"]["mean"]
    tags = Tags()
    tags.feed((tmp_path / "out/report.html").read_text())
    assert not tags.open and "table" in tags.seen and "script" not in tags.seen
    assert results.table().row_count == 1
    with pytest.raises(InputError, match="exists"):
        run_tasks(["image_to_audio"], pipe, 4, tmp_path / "out", seed=1)


def test_needs_are_checked_before_the_first_task_starts() -> None:
    pipe = oracle_of("image_to_audio", 2, seed=1)
    del pipe.tokenizers["video"]
    with pytest.raises(InputError, match="text_to_video needs video"):
        run_tasks(["image_to_audio", "text_to_video"], pipe, 2, seed=1)
    assert not pipe.batches
    pipe.model = None
    with pytest.raises(InputError, match="needs a model"):
        run_tasks(["image_to_audio"], pipe, 2, seed=1)
    run_tasks(["reconstruction_image"], pipe, 2, seed=1)
    with pytest.raises(InputError, match="did you mean 'image_to_text'"):
        run_tasks(["image_to_txt"], pipe, 2)
    with pytest.raises(InputError, match="at least one"):
        run_tasks(["image_to_text"], pipe, 0)


def test_every_item_gets_another_ones_answer_once() -> None:
    found = others(17, seed=3)
    assert sorted(found) == list(range(17)) and all(i != j for i, j in enumerate(found))


def test_prompts_of_a_task_are_a_pure_function_of_the_seed() -> None:
    task = load_task("image_edit").TASK
    one, two = (task.items(3, 9)[2].example for _ in range(2))
    direct = make_example("image_instruction_to_image", 9, 2, "test", 3)
    assert one.scene == two.scene == direct.scene and one.prompt[1] == direct.prompt[1]
