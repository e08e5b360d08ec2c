"""From a name or a file to a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyglyph.config import dump
from polyglyph.errors import ConfigError
from polyglyph.kernels import backend
from polyglyph.lookup import resolve
from polyglyph.train.config import (
    LOOPS,
    RUNS,
    RunSection,
    config_names,
    find_config,
    load_run,
    settle,
)

TEXT = '[run]\nkind = "text"\nsteps = 1\n'


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_is_a_whole_run_under_its_name(name: str, tmp_path: Path) -> None:
    run = load_run(name)
    assert run.run.name == name and isinstance(run, resolve(RUNS[run.run.kind]))
    (tmp_path / "again.toml").write_text(dump(run))
    assert load_run(str(tmp_path / "again.toml")) == run


def test_every_kind_of_run_has_its_loop() -> None:
    assert RUNS.keys() == LOOPS.keys()
    assert all(callable(resolve(target)) for target in LOOPS.values())


def test_sets_change_single_keys(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXT)
    run = load_run(str(tmp_path / "a.toml"), ["run.seed=7", "data.n_documents=12"])
    assert (run.run.seed, run.data.n_documents, run.run.steps) == (7, 12, 1)
    with pytest.raises(ConfigError, match=r"--set run.sed=7: unknown key 'run.sed'.*'seed'"):
        load_run(str(tmp_path / "a.toml"), ["run.sed=7"])


def test_an_unknown_config_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown config 'tiny-imgae'; did you mean 'tiny-image'"):
        find_config("tiny-imgae")


def test_a_folder_does_not_hide_a_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = config_names()[0]
    shipped = find_config(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # such as the run folder of `-o` with that name
    assert find_config(name) == shipped and shipped.is_file()


def test_a_file_of_any_suffix_is_taken_and_a_missing_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(TEXT)
    assert load_run(str(tmp_path / "mine.txt")).run.kind == "text"
    with pytest.raises(ConfigError, match="No such file"):
        load_run(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ('[run]\nkind = "modle"\n', "'modle'"),
        ("[run]\nkind = [1]\n", r"\[1\]"),
        ("[run]\nsteps = 1\n", "None"),
        ("run = 3\n", "None"),
        ("", "None"),
    ],
)
def test_a_run_of_no_known_kind_is_refused(tmp_path: Path, text: str, got: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(
        ConfigError,
        match=rf"run.kind must be one of \['codec', 'features', 'model', 'text'\], got {got}",
    ):
        load_run(str(tmp_path / "a.toml"))


def test_all_wrong_keys_of_a_run_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXT.replace("steps = 1", "steps = 0\nthreds = 2"))
    with pytest.raises(ConfigError, match=r"'run.steps'.*'run.threds'; did you mean 'threads'"):
        load_run(str(tmp_path / "a.toml"))


def test_kernels_that_cannot_run_here_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    section = RunSection(kind="text", steps=1, kernels="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^run\.kernels = 'triton'.*TRITON_INTERPRET=1") as found:
        settle(section)
    assert "\n" not in str(found.value) and backend.chosen() == "auto"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    with pytest.raises(ConfigError, match="isn't installed: pip install"):
        settle(section)
    with backend.using("auto"):
        settle(section.model_copy(update={"kernels": "torch"}))
        assert backend.chosen() == "torch"
    assert backend.chosen() == "auto"
