"""The command line: one file per group of verbs. Imports nothing heavy before a verb runs."""

from __future__ import annotations


def main() -> None:
    """The entry point `polyglyph`; ends the process with the verb's exit status."""
    import sys

    from polyglyph.cli.app import run

    sys.exit(run(sys.argv[1:]))
