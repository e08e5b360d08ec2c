"""The codecs that a verb works with: those named with --codec, else the checkpoint's.

Knows where codecs lie and which one a medium or a grid of codes needs; no modality by name.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyglyph.errors import FormatError, InputError, unknown


class Codecs:
    """Codecs by modality.

    named: names of checkpoints, checkpoint, run or codec folders, or spans of the checkpoint; their
    codecs stand in for the checkpoint's of the same modality. The checkpoint itself is then read
    only when a medium of another modality comes. n_codebooks: how many codebooks the residual ones
    use; the others use all of theirs. InputError for names that mean nothing, before any is read.
    """

    def __init__(
        self, checkpoint: str, named: Sequence[str] = (), n_codebooks: int | None = None
    ) -> None:
        from polyglyph.checkpoint import find_checkpoint

        self.checkpoint, self.n_codebooks = checkpoint, n_codebooks
        found = None if named else find_checkpoint(checkpoint)
        folders = [self._find(name) for name in named]
        self._named: dict[str, Any] = {}
        for name, span, folder in folders:
            for tokenizer in _read(name, span, folder):
                if tokenizer.modality in self._named:
                    raise InputError(
                        f"--codec {name!r} is a second codec of {tokenizer.modality}; name one of "
                        f"each modality"
                    )
                self._named[tokenizer.modality] = tokenizer
        if found is not None:
            self._checkpoints  # noqa: B018  read now: its faults are the command's
        self._check_codebooks()

    def _find(self, name: str) -> tuple[str, str | None, Path]:
        """(name, span, folder) that a --codec means."""
        from polyglyph.checkpoint import find_checkpoint, packaged_checkpoints, read_manifest

        if (Path(name) / "codec.json").is_file():
            return name, None, Path(name)
        spans: list[str] = []
        if not os.path.isdir(name):
            # The checkpoint need not be there where every codec is named by itself.
            with contextlib.suppress(InputError):
                folder = find_checkpoint(self.checkpoint)
                spans = list(read_manifest(folder, verify=False).get("tokenizers") or {})
                if name in spans:
                    return name, name, folder
            if not os.path.lexists(name) and len(Path(name).parts) == 1:
                packaged = packaged_checkpoints()
                if name not in packaged:
                    raise unknown("codec", name, [*spans, *packaged])
        return name, None, find_checkpoint(name)

    @functools.cached_property
    def _checkpoints(self) -> Mapping[str, Any]:
        from polyglyph.assembly import load_parts
        from polyglyph.checkpoint import find_checkpoint

        return load_parts(find_checkpoint(self.checkpoint), name=self.checkpoint).tokenizers

    def _check_codebooks(self) -> None:
        if self.n_codebooks is None:
            return
        known = list(self._named.values()) or list(self._checkpoints.values())
        most = max((t.spec.n_codebooks for t in known if t.is_residual), default=0)
        if not most:
            raise InputError(
                "none of these codecs has codebooks of which the first alone can be used (a "
                "residual codec has); leave --codebooks out"
            )
        if not 1 <= self.n_codebooks <= most:
            raise InputError(f"--codebooks goes from 1 to {most} here; got {self.n_codebooks}")

    def of(self, modality: str) -> Any:
        """The tokenizer for media of `modality`; InputError where there is none."""
        return self._named.get(modality) or self._checkpoints[modality]

    def codebooks_of(self, modality: str) -> int | None:
        """How many codebooks `encode` uses; None: all."""
        return self.n_codebooks if self.of(modality).is_residual else None

    def encode(self, medium: Any) -> list[Any]:
        """The grids of a text or medium; of a clip with sound, those of both."""
        from polyglyph.media import modality_of

        sound = getattr(medium, "audio", None)
        grids = []
        for item in [medium] if sound is None else [medium, sound]:
            modality = modality_of(item)
            n = self.codebooks_of(modality)
            grids.append(self.of(modality).encode(item, n_codebooks=n))
        return grids

    def encode_chunks(self, modality: str, chunks: Iterable[Any]) -> list[Any]:
        """The grids of a medium that comes in chunks: those of the whole, in bounded memory."""
        tokenizer, n = self.of(modality), self.codebooks_of(modality)
        return [tokenizer.join(list(tokenizer.encode_stream(chunks, n_codebooks=n)))]

    def takes_chunks(self, modality: str) -> bool:
        """True for a codec that needs no more of a medium than a stretch at a time."""
        from polyglyph.tokenizers.base import Tokenizer

        return type(self.of(modality)).encode_stream is not Tokenizer.encode_stream

    def decode(self, grids: Sequence[Any]) -> list[Any]:
        """The media of grids, each by the codec that made it; a clip gets its sound.

        FormatError, naming both, where the codec of a modality is another one."""
        from polyglyph.assembly import Parts, Tokenizers
        from polyglyph.pipeline import Pipeline

        chosen = Tokenizers({grid.modality: self._that_made(grid) for grid in grids})
        return Pipeline(Parts(chosen), None, self.checkpoint).decode(grids)

    def decode_parts(self, grids: Sequence[Any]) -> Iterator[Any] | None:
        """A medium in parts that follow one another, where a codec gives it so; else None."""
        tokenizer = self._that_made(grids[0])
        if len(grids) != 1 or not hasattr(tokenizer, "decode_parts"):
            return None
        return tokenizer.decode_parts(grids[0])

    def _that_made(self, grid: Any) -> Any:
        first = self.of(grid.modality)
        if first.fingerprint == grid.fingerprint or not grid.fingerprint:
            return first
        if grid.modality not in self._named:
            for tokenizer in self._checkpoints.values():
                if tokenizer.fingerprint == grid.fingerprint:
                    return tokenizer
        name = _packaged_with(grid.fingerprint)
        if name is not None:
            raise FormatError(
                f"codes were made by codec {grid.fingerprint[:12]}, this {grid.modality} codec is "
                f"{first.fingerprint[:12]}; try --codec {name}"
            )
        return first


def _packaged_with(fingerprint: str) -> str | None:
    """The packaged checkpoint that has the codec of this fingerprint."""
    from polyglyph.checkpoint import PACKAGED, packaged_checkpoints, read_manifest

    for name in packaged_checkpoints():
        entries = read_manifest(PACKAGED / name, verify=False).get("tokenizers") or {}
        if any(entry["fingerprint"] == fingerprint for entry in entries.values()):
            return name
    return None


def _read(name: str, span: str | None, folder: Path) -> list[Any]:
    """The tokenizers in a codec's own folder or in a checkpoint; that of `span` alone."""
    from polyglyph.assembly import load_parts
    from polyglyph.tokenizers import load_tokenizer

    if (folder / "codec.json").is_file():
        return [load_tokenizer(folder)]
    tokenizers = load_parts(folder, name=name).tokenizers
    return [tokenizers[span]] if span is not None else list(tokenizers.values())
