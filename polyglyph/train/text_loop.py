"""Trains the text codec: gathers the texts of a source, then sentencepiece does the work.

There is nothing to resume: it takes seconds and the same texts give the same pieces. The result
is a checkpoint folder of kind "codec" in a run folder, like that of every other codec.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from polyglyph.checkpoint import write_manifest
from polyglyph.config import Config, dump
from polyglyph.data.sources import open_source
from polyglyph.tokenizers.text import TextConfig, TextTokenizer
from polyglyph.train.config import RunSection
from polyglyph.train.runlog import RunFolder, peak_bytes


class TextDataConfig(Config):
    """`[data]` of a text run: the texts of the first n_documents items of a source, which is a
    name, a folder of media with captions, or a .jsonl file."""

    source: str = "shapes"
    n_documents: int = Field(20_000, ge=1)


class TextRun(Config):
    """A whole text run; `run.steps` is 1."""

    run: RunSection
    codec: TextConfig = TextConfig()
    data: TextDataConfig = TextDataConfig()


def gather(config: TextRun) -> list[str]:
    """The texts of the source, in the order of its items."""
    source, n = open_source(config.data.source, seed=config.run.seed), config.data.n_documents
    n = n if source.length is None else min(n, source.length)
    return [text for i in range(n) for text in source.captions(i)]


def train_text(
    config: TextRun,
    out: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict], None] | None = None,
) -> dict[str, Any]:
    """Writes the run folder `out` with one checkpoint; returns its log line."""
    started = time.time()
    open_source(config.data.source, seed=config.run.seed)  # a wrong name leaves no run behind
    if resume:
        run = RunFolder.open(out)
    else:
        describe = {"kind": config.run.kind, "name": config.run.name}
        run = RunFolder.create(out, dump(config), describe)
    with run:
        if resume and run.lines() and run.latest() is not None:
            return run.lines()[-1]
        run.cut_log(0)  # the line of a run that was killed before its checkpoint
        texts = gather(config)
        tokenizer = TextTokenizer.train(texts, config.codec.vocabulary_size, config.codec.span)
        n_ids = sum(tokenizer.encode(text).n_tokens for text in texts[:2000])
        n_bytes = sum(len(text.encode()) for text in texts[:2000])
        line = {
            "step": 1,
            "time_s": time.time() - started,
            "n_texts": len(texts),
            "bytes_per_id": n_bytes / max(1, n_ids),
            "peak_bytes": peak_bytes(),
        }

        def write_model(folder: Path) -> None:
            span = tokenizer.span
            tokenizer.save(folder / "tokenizers" / span)
            (folder / "config.toml").write_text(dump(config), "utf-8")
            mark = tokenizer.fingerprint
            write_manifest(
                folder,
                kind="codec",
                config=config.model_dump(mode="json"),
                dialect=None,
                vocabulary_sha256=None,
                tokenizers={span: {"path": f"tokenizers/{span}", "fingerprint": mark}},
                origin=f"polyglyph train --config {config.run.name}",
                licence="Apache-2.0",
            )

        run.log(line)
        run.save_checkpoint(1, write_model, {}, {}, keep=1)
        (on_log or (lambda _: None))(line)
    return line
