"""Scores a codec on scenes of the built-in world: media → codes → media → file → checkers.

Knows no modality by name: `fidelity` says how a medium is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from polyglyph.data.shapes.captions import canonical
from polyglyph.data.shapes.claims import Verdict
from polyglyph.data.shapes.examples import SHOW, check_reconstruction
from polyglyph.data.shapes.scene import Scene, make_scene
from polyglyph.data.sources.shapes import to_media, to_plain
from polyglyph.eval.fidelity import MEASURED, measure, values_of
from polyglyph.eval.files import as_filed
from polyglyph.eval.metrics import bits, codebook_use
from polyglyph.eval.protocol import hash_of, reconstruction_protocol
from polyglyph.eval.scoring import Context, Scored, Task, TaskResult, others, share_ok, summarise


class ReconstructionTask(Task):
    """Test scenes through one codec."""

    generates = False

    def __init__(self, modality: str, summary: str) -> None:
        self.modality, self.summary = modality, summary
        self.needs = (modality,)

    def truth(self, n: int, seed: int) -> list[Verdict]:
        scenes = _scenes(n, seed, held_out=False)
        return [self._judge(scene, as_filed(self._show(scene))) for scene in scenes]

    def run(self, context: Context) -> TaskResult:
        tokenizer = context.pipe.tokenizers[self.modality]
        scenes = _scenes(context.n, context.seed, held_out=False)
        every = scenes + _scenes(context.n_held_out, context.seed, held_out=True)
        grids, items, hashes = [], [], []
        rates: set[int] = set()
        for start in range(0, len(every), context.batch_size):
            context.progress(start, len(every), "encoding and decoding")
            part = every[start : start + context.batch_size]
            media = [self._show(scene) for scene in part]
            made = tokenizer.encode_batch(media)
            grids += made
            for i, (scene, medium, grid) in enumerate(zip(part, media, made, strict=True), start):
                result = as_filed(tokenizer.decode(grid))
                n_bits = bits(grid, tokenizer.spec)
                values = measure(medium, result, n_bits) | {"bits": n_bits}
                hashes.append(hash_of(values_of(medium)))
                rates |= {result.sample_rate} if hasattr(result, "sample_rate") else set()
                held_out = i >= len(scenes)
                key = f"held-out-{i - len(scenes)}" if held_out else str(i)
                found = self._judge(scene, result)
                words = canonical(scene, self.modality)
                items.append(Scored(key, found, len(scene.things), words, "", "", held_out, values))
        context.progress(len(every), len(every), "encoding and decoding")
        result = summarise(items, context.seed)
        result.ceiling = share_ok(self.truth(context.n, context.seed), context.seed)
        result.floor = share_ok(self._floor(scenes, context.seed), context.seed)
        uses = codebook_use(grids[: len(scenes)], tokenizer.spec)
        result.facts["codebooks"] = [asdict(use) for use in uses]
        more: dict[str, Any] = {"sample_rate": sorted(rates)} if rates else {}
        result.protocol = reconstruction_protocol(
            MEASURED[self.modality],
            f"test scenes of shapes {hash_of(hashes)}",
            len(scenes),
            **more,
        )
        result.subject = {"span": tokenizer.spec.span, "fingerprint": tokenizer.fingerprint}
        return result

    def _show(self, scene: Scene) -> Any:
        return to_media((self.modality, SHOW[self.modality](scene)))

    def _judge(self, scene: Scene, medium: Any) -> Verdict:
        """`medium` as it came back from its file."""
        return check_reconstruction(scene, self.modality, to_plain(medium))

    def _floor(self, scenes: Sequence[Scene], seed: int) -> list[Verdict]:
        rows = zip(scenes, others(len(scenes), seed), strict=True)
        return [self._judge(scene, as_filed(self._show(scenes[other]))) for scene, other in rows]


def _scenes(n: int, seed: int, held_out: bool) -> list[Scene]:
    return [make_scene(seed, i, "test", 1 + i % 3, held_out) for i in range(n)]
