from __future__ import annotations

import typing

import typer

from polyglyph.cli import codes, generating, inspecting, options, reconstructing, running, training

VERBS = (
    codes.tokenize, codes.detokenize, reconstructing.reconstruct, generating.generate,
    inspecting.inspect, training.prepare, training.train, running.demo, running.evaluate,
    running.bench,
)  # fmt: skip


def test_an_option_that_repeats_has_one_definition() -> None:
    shared = {id(a) for a in vars(options).values() if typing.get_origin(a) is typing.Annotated}
    seen: dict[str, list[typing.Any]] = {}
    for verb in VERBS:
        for name, hint in typing.get_type_hints(verb, include_extras=True).items():
            if typing.get_origin(hint) is typing.Annotated and name in (
                "as_json",
                "debug",
                "force",
            ):
                seen.setdefault(name, []).append(hint)
    assert {len({id(h.__metadata__[0]) for h in hints}) for hints in seen.values()} == {1}
    assert shared and len(seen["as_json"]) == len(seen["debug"]) == len(VERBS)


def test_every_option_has_a_line_of_help() -> None:
    for verb in VERBS:
        for hint in typing.get_type_hints(verb, include_extras=True).values():
            for found in getattr(hint, "__metadata__", ()):
                assert isinstance(found, typer.models.ParameterInfo) and found.help, (verb, hint)
