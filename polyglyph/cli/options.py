"""The options that more than one verb has: each defined once."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Stop at the first error; lost content (a cut sound) is one."),
]
Codec = Annotated[
    list[str] | None,
    typer.Option(
        "--codec",
        metavar="NAME|FOLDER",
        help="In place of the checkpoint's codec: a codec, its run, or a span; repeatable.",
    ),
]
Codebooks = Annotated[
    int | None,
    typer.Option("--codebooks", metavar="N", help="Of residual codecs, the first N codebooks."),
]
Checkpoint = Annotated[
    str,
    typer.Option("--checkpoint", "-c", help="A name, a checkpoint folder or a run folder."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same result.")]
OutFolder = Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the config; repeatable."),
]
ReadAs = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="MODALITY", help="How to read files that are two things, such as a GIF."
    ),
]
Temperature = Annotated[
    float | None, typer.Option(help="0: the most likely id each time. Default: the checkpoint's.")
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most likely ids; 0: from all.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the ids that make up this share.")]
Guidance = Annotated[
    float | None, typer.Option(help="Above 1: away from what comes without the prompt.")
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="results.json",
        help="Compare with an earlier result; refused where the two weren't measured in one way.",
    ),
]
