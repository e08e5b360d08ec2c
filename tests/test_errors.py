"""Errors say what was expected, what came and what to do, and carry an exit status."""

from __future__ import annotations

import pickle

import pytest

from polyglyph.errors import (
    ConfigError,
    FormatError,
    InputError,
    MachineError,
    MediaError,
    ParseError,
    PolyglyphError,
    missing_extra,
    nearest,
    unknown,
)


@pytest.mark.parametrize("kind", [InputError, MediaError, ConfigError, FormatError, ParseError])
def test_every_error_of_the_user_exits_with_2_and_is_a_value_error(kind: type) -> None:
    error = kind("said")
    assert error.exit_status == 2
    assert isinstance(error, ValueError) and isinstance(error, PolyglyphError)


def test_an_error_of_the_machine_exits_with_1_and_is_not_the_users() -> None:
    assert MachineError.exit_status == 1
    assert not issubclass(MachineError, InputError)


def test_unknown_names_the_nearest_option_whatever_the_case() -> None:
    assert str(unknown("modality", "Imge", ["text", "image"])) == (
        "unknown modality 'Imge'; did you mean 'image'? (available: text, image)"
    )
    assert nearest("IMAGE", ["Image"]) == "Image"


def test_unknown_without_a_near_option_only_lists_them() -> None:
    error = unknown("checkpoint", "zzz", ["tiny"], FormatError)
    assert str(error) == "unknown checkpoint 'zzz' (available: tiny)"
    assert isinstance(error, FormatError)
    assert "none" in str(unknown("task", "a", []))


def test_unknown_stays_short_with_many_options() -> None:
    message = str(unknown("task", "zzz", [f"task_{i:03}" for i in range(100)]))
    assert "76 more" in message and len(message) < 400


def test_missing_extra_names_the_command_to_install_it() -> None:
    assert "pip install 'polyglyph[speech]'" in str(missing_extra("espeakng_loader", "speech"))


def test_parse_error_keeps_its_fields_through_another_process() -> None:
    error = pickle.loads(pickle.dumps(ParseError("wrong", 7, "image code", "1024 codes")))
    assert (str(error), error.position, error.slot, error.allowed) == (
        "wrong", 7, "image code", "1024 codes",
    )  # fmt: skip
