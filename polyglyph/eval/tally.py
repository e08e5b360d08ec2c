"""What the reconstructions of many files add up to: means with their protocol, use of codebooks.

Knows codes and figures; no modality by name, and nothing of how a file was read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from polyglyph.eval.fidelity import MEASURED, MEASURED_PARTS, MEASURED_SOUND, SOUND, values_of
from polyglyph.eval.metrics import bootstrap, codebook_use
from polyglyph.eval.protocol import AS_IS, FORMAT, hash_of, reconstruction_protocol

_COMMON = ("n_tokens", "bits")  # columns of every table, whatever the modality
PARTS = "parts"  # the key of an entry that was measured in parts


class Tally:
    """Collects files as they are reconstructed.

    tokenizer_of: modality → its codec. framed: modalities whose media were brought to `size`
    pixels a side before (Lanczos, the rest cut off evenly); None: none were."""

    def __init__(
        self,
        tokenizer_of: Callable[[str], Any],
        size: int | None = None,
        framed: Sequence[str] = (),
    ) -> None:
        self._tokenizer_of, self._size, self._framed = tokenizer_of, size, framed
        self._entries: dict[str, list[dict[str, Any]]] = {}
        self._grids: dict[str, list[Any]] = {}  # by modality; those of a clip's sound too
        self._hashes: dict[str, list[str]] = {}  # of the originals
        self._rates: dict[str, set[int]] = {}  # Hz, of results

    def add(self, modality: str, entry: dict[str, Any], original: Any, result: Any) -> None:
        """One file: its figures are the floats of `entry`."""
        rate = getattr(result, "sample_rate", None)
        self.add_marked(modality, entry, hash_of(values_of(original)), rate)

    def add_marked(
        self, modality: str, entry: dict[str, Any], mark: str, rate: int | None = None
    ) -> None:
        """As `add`, of a file whose original has the hash `mark`; rate: of the result, in Hz."""
        self._entries.setdefault(modality, []).append(entry)
        self._hashes.setdefault(modality, []).append(mark)
        if rate is not None:
            self._rates.setdefault(modality, set()).add(rate)

    def use(self, grids: Sequence[Any]) -> float:
        """The share of its codebooks that one file uses, mean over them; remembers the codes."""
        for grid in grids:
            self._grids.setdefault(grid.modality, []).append(grid)
        uses = codebook_use(grids[:1], self._tokenizer_of(grids[0].modality).spec)
        return sum(use.usage for use in uses) / len(uses)

    def results(self, checkpoint: str) -> dict[str, Any]:
        """As results.json has them: a task per modality, with metrics, protocol and subject."""
        from polyglyph import __version__

        return {
            "format": FORMAT,
            "polyglyph": __version__,
            "checkpoint": checkpoint,
            "tasks": [self._task(modality) for modality in self._entries],
            "files": [entry for entries in self._entries.values() for entry in entries],
        }

    def _task(self, modality: str) -> dict[str, Any]:
        entries, tokenizer = self._entries[modality], self._tokenizer_of(modality)
        uses = self._uses(modality)
        found = {
            name: bootstrap([e[name] for e in entries if name in e]).to_json()
            for name in _figures(entries)
        }
        subject = {"span": tokenizer.span, "fingerprint": tokenizer.fingerprint}
        return {
            "task": f"reconstruct_{modality}",
            "n": len(entries),
            "metrics": found,
            "codebooks": [asdict(use) for use in uses],
            "protocol": self._protocol(modality),
            "subject": {**subject, "n_codebooks": len(uses)},
        }

    def _uses(self, modality: str) -> list[Any]:
        return codebook_use(self._grids[modality], self._tokenizer_of(modality).spec)

    def _protocol(self, modality: str) -> dict[str, Any]:
        hashes = self._hashes[modality]
        more: dict[str, Any] = {}
        if modality in self._rates:
            more["sample_rate"] = sorted(self._rates[modality])
        names = {name for entry in self._entries[modality] for name in entry}
        how = [MEASURED.get(modality, "values as written")]
        how += [MEASURED_SOUND] * any(name.startswith(SOUND) for name in names)
        how += [MEASURED_PARTS] * (PARTS in names)
        side = f"{self._size}x{self._size}" if modality in self._framed else ""
        return reconstruction_protocol(
            "; ".join(how),
            f"files {hash_of(sorted(hashes))}",
            len(hashes),
            resize=f"to cover {side}, Lanczos of Pillow" if side else AS_IS,
            crop=f"centre {side}" if side else AS_IS,
            **more,
        )

    def table(self) -> Any:
        """A row per file and one of the means per modality, as a rich table."""
        from rich.table import Table

        every = [entry for entries in self._entries.values() for entry in entries]
        names = [name.removeprefix(SOUND) for name in _figures(every)]
        names = [name for name in dict.fromkeys(names) if name not in _COMMON]
        table = Table()
        for name in ("file", "codes", "bits", *names):
            table.add_column(name, justify="left" if name == "file" else "right")
        for modality, entries in self._entries.items():
            for entry in entries:
                table.add_row(entry["file"], f"{entry['n_tokens']:,}", *_row(entry, names))
                _add_sound(table, "its sound", entry, names)
            metrics = self._task(modality)["metrics"]
            means = {name: estimate["mean"] for name, estimate in metrics.items()}
            table.add_row(f"mean of {len(entries)} ({modality})", "", *_row(means, names))
            _add_sound(table, "mean of their sounds", means, names)
        return table

    def codebooks_table(self) -> Any:
        """The use of each codebook over all files, as a rich table."""
        from rich.table import Table

        table = Table()
        for name in ("codec", "codebook", "codes seen", "used", "perplexity"):
            table.add_column(name, justify="left" if name == "codec" else "right")
        for modality, grids in self._grids.items():
            size = self._tokenizer_of(modality).spec.codebook_size
            for q, use in enumerate(self._uses(modality)):
                seen = sum(g.n_tokens // g.n_codebooks for g in grids if q < g.n_codebooks)
                share = f"{100 * use.usage:.1f} % of {size:,}"
                table.add_row(modality, str(q), f"{seen:,}", share, f"{use.perplexity:.1f}")
        return table


def _add_sound(table: Any, title: str, entry: dict[str, Any], names: Sequence[str]) -> None:
    """The row of a clip's sound below that of the clip, in the columns of sounds."""
    found = {k.removeprefix(SOUND): v for k, v in entry.items() if k.startswith(SOUND)}
    if found:
        table.add_row(title, "", *_row(found, names))


def _figures(entries: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(k for e in entries for k, v in e.items() if isinstance(v, float)))


def _row(entry: dict[str, Any], names: Sequence[str]) -> list[str]:
    figures = [f"{entry[name]:.4g}" if name in entry else "" for name in names]
    return [f"{entry['bits']:,.0f}", *figures]
