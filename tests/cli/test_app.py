from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest


@pytest.mark.parametrize("verb", [[], ["generate"], ["tokenize"], ["eval"], ["train"]])
def test_help_of_every_verb_is_shown_with_status_0(run: Any, verb: list[str]) -> None:
    done = run(*verb, "--help", checkpoint=False)
    assert done.status == 0 and "Usage: polyglyph" in done.out and not done.err


def test_no_help_holds_what_the_page_would_take_for_markup() -> None:
    """ "[sequence]" in a help text is a colour to what prints it, and vanishes."""
    from typer.main import get_command

    from polyglyph.cli.app import app

    commands: Any = get_command(app)
    for verb, command in commands.commands.items():
        texts = [command.help, *(getattr(option, "help", None) for option in command.params)]
        for text in filter(None, texts):
            assert not re.search(r"(?<!\\)\[[a-z/#@][^\[]*\]", text), (verb, text)


def test_verbs_that_are_not_built_are_not_there(run: Any) -> None:
    listed = run("--help", checkpoint=False).out
    for verb in ("demo", "generate", "tokenize", "detokenize", "reconstruct", "inspect", "prepare"):
        assert f" {verb} " in listed
    for verb in ("serve", "chat", "import", "export"):
        assert f" {verb} " not in listed
        assert run(verb, checkpoint=False).status == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "No such command 'nope'"),
        (["generate", "--bogus"], "--bogus"),
        (["tokenize"], "Missing argument"),
        (["generate", "x", "--seed", "one"], "Invalid value for '--seed'"),
        (["generate", "--to", "text", "--image"], "requires an argument; see polyglyph generate"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    run: Any, words: list[str], said: str
) -> None:
    done = run(*words, checkpoint=False)
    assert done.status == 2 and not done.out
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and said in done.err


def test_a_wrong_command_line_with_json_is_an_object_too(run: Any) -> None:
    done = run("tokenize", "--json", checkpoint=False)
    assert done.status == 2
    assert (done.json["command"], done.json["ok"]) == ("tokenize", False)
    assert "Missing argument" in done.json["errors"][0]["message"]


def test_the_version_is_the_package_s(run: Any) -> None:
    import polyglyph

    assert run("--version", checkpoint=False).out.strip() == polyglyph.__version__


def test_nothing_given_shows_help(run: Any) -> None:
    done = run(checkpoint=False)
    assert done.status == 2 and "Usage" in done.out + done.err


@pytest.mark.parametrize(("signal", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_with_the_shell_s_status_and_a_json_object(signal: str, status: int) -> None:
    code = (
        "import os, signal, sys\n"
        # A shell starts what it runs in the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from polyglyph.cli import app, inspecting\n"
        f"inspecting._reader = lambda path: os.kill(os.getpid(), signal.{signal})\n"
        "sys.exit(app.run(['inspect', 'x', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert json.loads(done.stdout)["ok"] is False and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    code = "import sys; from polyglyph.cli.app import run; sys.exit(run(['bench', '--list']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()
