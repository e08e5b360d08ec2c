"""How much of their codebooks the shipped codecs use, all of them, every codebook.

On media of each codec's own training mixture under another seed, 25 codes for every code that a
codebook has: so many that, were all drawn evenly, none would be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from polyglyph.bench.runner import BenchResult
from polyglyph.errors import MissingExtraError

TARGET = 0.95
OFFERED = 25  # codes of the media for every code of a codebook
_OTHER_SEED = 1_000_003


def rows(quick: bool, say: Callable[[str], None]) -> Iterator[BenchResult]:
    """The least use of any codebook; the summary names each codec's least."""
    uses: dict[str, list[float]] = {}
    missing: list[str] = []
    for name, tokenizer, run in shipped_codecs():
        say(f"use of the codebooks of {name}")
        try:
            uses[name] = uses_of(tokenizer, run, 0.2 if quick else OFFERED)
        except MissingExtraError as error:
            missing.append(f"{name} not measured: {error}")
    said = [f"{name} {min(use):.1%}" for name, use in uses.items()] + missing
    yield BenchResult(
        "codebook use of the shipped codecs, every codebook",
        None if missing else min(min(use) for use in uses.values()),
        "",
        TARGET,
        at_most=False,
        summary=f"the least used codebook of each: {', '.join(said)}",
        facts={"uses": uses},
    )


def shipped_codecs() -> Iterator[tuple[str, Any, Any]]:
    """(name, tokenizer, the run that trained it) of all that learned a codebook."""
    from polyglyph.assembly import load_parts
    from polyglyph.checkpoint import find_checkpoint, packaged_checkpoints
    from polyglyph.train.config import config_names, load_run

    for checkpoint in packaged_checkpoints():
        parts = load_parts(find_checkpoint(checkpoint), name=checkpoint)
        for span, tokenizer in parts.tokenizers.items():
            if hasattr(getattr(tokenizer, "net", None), "quantizer"):
                # Codecs that ship with a transformer have a config each: tiny-image, …
                own = f"{checkpoint}-{span}"
                name = own if own in config_names() else checkpoint
                yield name, tokenizer, load_run(name)


def uses_of(tokenizer: Any, run: Any, offered: float) -> list[float]:
    """The share of its codes that each codebook uses."""
    import torch

    from polyglyph.data.media_batches import BUILT_IN_RATE, MediaBatches
    from polyglyph.tokenizers.quantize import codebook_use

    net, codec = tokenizer.net, tokenizer.net.config
    batches = MediaBatches(
        tokenizer.modality,
        run.data,
        run.run.seed + _OTHER_SEED,
        sample_rate=getattr(codec, "sample_rate", BUILT_IN_RATE),
        n_channels=getattr(codec, "channels", 1),
        hop=getattr(net, "hop", 1),
    )
    convert = getattr(net, "batch_tensor", torch.from_numpy)
    size, made, n, step = codec.quantizer.codebook_size, [], 0, 0
    while n < offered * size:
        codes = net.encode(convert(batches.batch(step))).flatten(2)  # (B, Q, codes of a medium)
        made.append(codes.transpose(1, 2).flatten(0, 1))
        n, step = n + len(made[-1]), step + 1
    return [use.usage for use in codebook_use(torch.cat(made), size)]
