"""A text codec's run: from the texts of a source to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyglyph.checkpoint import find_checkpoint, read_manifest
from polyglyph.config import build
from polyglyph.errors import InputError
from polyglyph.tokenizers import load_tokenizer
from polyglyph.train.runlog import RunFolder
from polyglyph.train.text_loop import TextRun, gather, train_text


def run_of(**data: Any) -> TextRun:
    sections = {
        "run": {"kind": "text", "name": "words", "steps": 1},
        "codec": {"vocabulary_size": 300},
        "data": {"n_documents": 80, **data},
    }
    return build(TextRun, sections, "the test")


def test_the_checkpoint_is_a_text_codec_that_shortens_the_worlds_texts(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    line = train_text(run_of(), tmp_path / "r", on_log=said.append)
    assert said == [line] == RunFolder(tmp_path / "r").lines()
    assert line["step"] == 1 and line["n_texts"] == len(gather(run_of())) > 40
    folder = find_checkpoint(tmp_path / "r")
    entry = read_manifest(folder, "codec")["tokenizers"]["text"]
    tokenizer: Any = load_tokenizer(folder / entry["path"])
    assert tokenizer.fingerprint == entry["fingerprint"]
    assert tokenizer.spec.codebook_size == 300
    texts = gather(run_of())
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    n_ids = sum(tokenizer.encode(text).n_tokens for text in texts)
    assert line["bytes_per_id"] == pytest.approx(sum(len(t.encode()) for t in texts) / n_ids)
    assert line["bytes_per_id"] > 1.4  # 44 pieces beside the bytes


def test_the_same_config_gives_the_same_codec_and_another_seed_other_texts(
    tmp_path: Path,
) -> None:
    marks = []
    for name in ("a", "b"):
        train_text(run_of(), tmp_path / name)
        manifest = read_manifest(find_checkpoint(tmp_path / name))
        marks.append(manifest["tokenizers"]["text"]["fingerprint"])
    assert marks[0] == marks[1]
    other = run_of().model_copy(update={"run": run_of().run.model_copy(update={"seed": 5})})
    assert gather(other) != gather(run_of()) == gather(run_of())


def test_a_finished_run_resumed_is_still_finished(tmp_path: Path) -> None:
    line = train_text(run_of(), tmp_path / "r")
    assert train_text(run_of(), tmp_path / "r", resume=True) == line
    with pytest.raises(InputError, match="already exists"):
        train_text(run_of(), tmp_path / "r")


def test_a_run_killed_before_its_checkpoint_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save_checkpoint", killed)
        train_text(run_of(), tmp_path / "r")
    assert len(RunFolder(tmp_path / "r").lines()) == 1, "its line is there, its codec is not"
    train_text(run_of(), tmp_path / "r", resume=True)
    assert len(RunFolder(tmp_path / "r").lines()) == 1
    assert read_manifest(find_checkpoint(tmp_path / "r"))["kind"] == "codec"


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown source 'shaeps'; did you mean 'shapes'"):
        gather(run_of(source="shaeps"))
