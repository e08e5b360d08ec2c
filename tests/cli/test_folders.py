from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyglyph.cli.folders import ResultFolder, each, read_lines, refuse_foreign
from polyglyph.cli.outcome import Outcome
from polyglyph.errors import InputError, MachineError


def name_of(entry: dict) -> str:
    return entry["name"]


def test_entries_outlive_the_run_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with ResultFolder(folder, Outcome("a"), name_of) as results:
        results.add({"name": "x", "n": 1})
        results.add({"name": "x", "n": 2})
    with open(folder / "index.jsonl", "a") as file:
        file.write('{"other": 1}\n[3]\n{"name": "y", "n')
    with ResultFolder(folder, Outcome("a"), name_of) as results:
        assert results.entries == {"x": {"name": "x", "n": 2}}
        results.add({"name": "z"})
    assert ResultFolder(folder, Outcome("a"), name_of).entries.keys() == {"x", "z"}


def test_a_folder_is_filled_by_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        ResultFolder(tmp_path, Outcome("a"), name_of) as results,
        pytest.raises(InputError, match="is being filled by another run"),
        ResultFolder(tmp_path, Outcome("b"), name_of),
    ):
        raise AssertionError("two runs in one folder")
    with ResultFolder(tmp_path, Outcome("b"), name_of) as results:
        results.add({"name": "x"})


def test_errors_are_those_of_this_run_however_it_ends(tmp_path: Path) -> None:
    (tmp_path / "errors.jsonl").write_text('{"source": "stale"}\n')
    (tmp_path / ".tmp-abc.safetensors").write_text("half")
    outcome = Outcome("a")
    with pytest.raises(KeyboardInterrupt), ResultFolder(tmp_path, outcome, name_of):
        assert not list(tmp_path.glob("errors.jsonl")) and not list(tmp_path.glob(".tmp*"))
        outcome.fail(InputError("bad"), "x.png")
        raise KeyboardInterrupt
    (error,) = read_lines(tmp_path / "errors.jsonl")
    assert error == {"source": "x.png", "type": "InputError", "message": "bad"}
    with ResultFolder(tmp_path, Outcome("a"), name_of):
        pass
    assert not list(tmp_path.iterdir())


def test_a_failure_is_recorded_and_the_rest_is_done_unless_strict() -> None:
    for strict, due in ((False, ["a", "c"]), (True, ["a"])):
        outcome, done = Outcome("a"), []
        for item, attempting in each(outcome, ["a", "b", "c"], "doing", str, strict):
            with attempting:
                if item == "b":
                    raise InputError("no b")
                done.append(item)
        assert done == due and [error["source"] for error in outcome.errors] == ["b"]
        assert outcome.status == 2


def test_a_full_disk_ends_a_batch_at_once() -> None:
    for error in (MachineError("full"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)):
            for _, attempting in each(Outcome("a"), ["a", "b"], "doing", str, False):
                with attempting:
                    raise error


def test_a_folder_of_others_is_refused_and_our_own_taken(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new")
    (tmp_path / "errors.jsonl").write_text("")
    refuse_foreign(tmp_path)  # a run of which everything failed
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds other files"):
        refuse_foreign(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        refuse_foreign(tmp_path / "letter.txt")
    (tmp_path / "index.jsonl").write_text(json.dumps({"name": "x"}))
    refuse_foreign(tmp_path)
