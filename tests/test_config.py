"""TOML in and out, --set, and one line for everything that is wrong with a config."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from polyglyph.config import Config, apply_sets, build, dump, load, read_toml
from polyglyph.errors import ConfigError


class Optimizer(Config):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    decay: float | None = None


class Run(Config):
    steps: int
    name: str = "run"
    optimizer: Optimizer = Optimizer()
    parts: dict[str, Optimizer] = {}
    stages: list[Optimizer] = []


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    return path


def test_dump_and_load_are_inverse(tmp_path: Path) -> None:
    config = Run(
        steps=3,
        name='a "quoted"\n\x7f\\ name ü',
        optimizer=Optimizer(lr=math.inf, betas=(1e-300, 0.1 + 0.2)),
        parts={"a key": Optimizer(decay=0.5)},
        stages=[Optimizer(lr=3e-4), Optimizer()],
    )
    assert load(Run, write(tmp_path, dump(config))) == config


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Optimizer().lr = 1.0


def test_sets_are_toml_values_and_plain_strings_otherwise() -> None:
    data = {"optimizer": {"lr": 1.0}, "steps": 5}
    result = apply_sets(
        data, ["optimizer.lr=3e-4", "name=two words", "a.b.c=[1, 2]", "steps = 7", "x=true"]
    )
    assert result == {
        "optimizer": {"lr": 3e-4}, "name": "two words", "a": {"b": {"c": [1, 2]}},
        "steps": 7, "x": True,
    }  # fmt: skip
    assert data == {"optimizer": {"lr": 1.0}, "steps": 5}


def test_a_set_value_can_not_smuggle_in_another_key() -> None:
    assert apply_sets({}, ["name=1\nsteps = 2"]) == {"name": "1\nsteps = 2"}


@pytest.mark.parametrize("item", ["steps", "=3", "a..b=3"])
def test_a_malformed_set_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="expects key=value"):
        apply_sets({}, [item])


def test_a_set_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'steps' is a value, not a section"):
        apply_sets({"steps": 3}, ["steps.more=1"])


def test_row_31_all_unknown_keys_are_listed_with_the_nearest_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "steps = 1\nnmae = 'x'\n[optimizer]\nlearnrate = 1\n[parts.a]\nbeta = 1\n"
        "[[stages]]\nlrr = 1",
    )
    with pytest.raises(ConfigError) as caught:
        load(Run, path)
    message = str(caught.value)
    assert "\n" not in message and "run.toml" in message
    assert "unknown key 'nmae'; did you mean 'name'?" in message
    assert "unknown key 'optimizer.learnrate'" in message
    assert "unknown key 'parts.a.beta'; did you mean 'betas'?" in message
    assert "unknown key 'stages.0.lrr'; did you mean 'lr'?" in message


def test_a_wrong_and_a_missing_value_are_named_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Run, {"optimizer": {"lr": "fast"}}, "--set")
    message = str(caught.value)
    assert message.startswith("--set: ") and "\n" not in message
    assert "key 'steps' is missing" in message
    assert "key 'optimizer.lr'" in message and "got 'fast'" in message


def test_a_missing_broken_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the path of a TOML file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        read_toml(write(tmp_path, "steps: 3"))
    (tmp_path / "run.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="byte 8 is not UTF-8"):
        read_toml(tmp_path / "run.toml")
