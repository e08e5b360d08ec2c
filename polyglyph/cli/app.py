"""The typer application: the verbs in their order, and what holds for all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from polyglyph.cli import codes, generating, inspecting, reconstructing, running, training
from polyglyph.cli.outcome import INTERRUPTED, TERMINATED, Outcome, Terminated
from polyglyph.errors import InputError

app = typer.Typer(
    name="polyglyph",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Any medium to any medium with one transformer over one vocabulary.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from polyglyph import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(running.demo)
app.command(cls=generating.PartsInOrder)(generating.generate)
app.command()(codes.tokenize)
app.command()(codes.detokenize)
app.command()(reconstructing.reconstruct)
app.command()(inspecting.inspect)
app.command()(training.prepare)
app.command()(training.train)
app.command("eval")(running.evaluate)
app.command()(running.bench)

# Typer brings its own copy of click or stands on the installed one, by version.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # any file name can be said, whatever the locale
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminated_by_exception():
            found = app(list(arguments), prog_name="polyglyph", standalone_mode=False)
        return found if isinstance(found, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        return _refuse(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except BrokenPipeError:
        # The reader has left: it wants no more, and no traceback at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _refuse(error: Any, arguments: Sequence[str]) -> int:
    """A command line that typer couldn't read: one line, like every other wrong input."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "polyglyph"
    # Of an option without its value, click doesn't say whose it is.
    verbs: Any = typer.main.get_command(app)
    if context is None and arguments and arguments[0] in verbs.commands:
        path = f"polyglyph {arguments[0]}"
    # The first argument is the verb, if there is one at all.
    verb = path.removeprefix("polyglyph").strip() or (arguments[0] if arguments else "")
    outcome = Outcome(verb, as_json="--json" in arguments)
    message = error.format_message()
    if message:  # none where help was shown because nothing was given
        outcome.fail(InputError(f"{message.rstrip('.')}; see {path} --help"))
        outcome.close()
    return InputError.exit_status


@contextlib.contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM unwinds like an exception; `train` puts its own handlers in for its time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
