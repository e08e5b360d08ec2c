"""The checkpoint `tiny` with kernels = "triton" in triton's interpreter and with torch's, side by
side: one training step and an answer of 16 codes. Prints one JSON object. A script, because the
interpreter needs a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import polyglyph
from polyglyph.config import build
from polyglyph.data.prepare import prepare
from polyglyph.kernels import backend
from polyglyph.media import Image
from polyglyph.model.generate import decode_step, prefill
from polyglyph.model.kv_cache import KVCache
from polyglyph.sequence.document import Document, Segment
from polyglyph.train.model_loop import ModelRun, ModelTraining

TEXT = "a red circle"
ROW_LENGTH = 48


def picture(size: int) -> Image:
    """Slopes and noise, so that codes differ."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, size)[:, None, None] * np.ones((1, size, 3))
    return Image((slope + rng.integers(0, 55, (size, size, 3))).astype(np.uint8))


class Shown:
    """A text and a picture of it, either leading to the other."""

    name = "shown"
    length: int | None = 2

    def get(self, index: int) -> list[Document]:
        segments = [Segment("text", TEXT, "prompt", 0.0), Segment("image", picture(24))]
        if index:
            segments = [Segment("image", picture(32)), Segment("text", TEXT)]
        return [Document(segments)]


def run_config(shards: Path, model: dict[str, Any], kernels: str) -> ModelRun:
    sections = {
        "run": {"kind": "model", "steps": 1, "dtype": "fp32", "device": "cpu", "kernels": kernels},
        "sequence": {"checkpoint": "tiny"},
        "model": model,
        "data": {"shards": str(shards), "batch_size": 1, "row_length": ROW_LENGTH},
        "loss": {"full_every": 0},
    }
    return build(ModelRun, sections, "the test")


def use(kernels: str, folder: Path) -> dict[str, Any]:
    """Encode, train a step, answer; with the calls that it took."""
    backend.calls.clear()
    pipe = polyglyph.load("tiny", "cpu", kernels=kernels)
    assert pipe.model is not None and pipe.grammar is not None
    shards = folder / kernels
    prepare(Shown(), pipe.tokenizers, pipe.grammar, shards)
    config = run_config(shards, dict(pipe.manifest["config"]["model"]), kernels)
    training = ModelTraining(config)
    training.model.load_state_dict(pipe.model.state_dict())
    line = training.advance()
    step_calls = dict(backend.calls)
    batch = training.loader.sample(0)
    ids, doc_id = (torch.from_numpy(x) for x in (batch.ids, batch.doc_id))
    with torch.inference_mode():
        head = pipe.model.head_weight
        logits = pipe.model(ids, doc_id=doc_id) @ head.t()
        row = ids[0, :20].tolist()
        cache = KVCache(pipe.model.config, 1, 24)
        steps = [prefill(pipe.model, [row[:17]], cache)]
        steps += [decode_step(pipe.model, [[id]], cache) for id in row[17:]]
        decoded = torch.cat(steps) @ head.t()
    answer = pipe.generate([picture(24), TEXT], "image", temperature=0.0, grid=(4, 4))
    codes = answer[0].codes
    assert codes is not None
    weights = torch.cat([p.detach().flatten() for p in training.model.parameters()])
    return {
        "logits": logits,
        "decoded": decoded,
        "weights": weights,
        "loss": line["loss"],
        "grad_norm": line["grad_norm"],
        "ids": batch.ids.tolist(),
        "codes": codes.codes.ravel().tolist(),
        "step_calls": {f"{kernel}/{form}": n for (kernel, form), n in step_calls.items()},
        "calls": {f"{kernel}/{form}": n for (kernel, form), n in backend.calls.items()},
    }


def main() -> None:
    assert backend.interpreting(), "set TRITON_INTERPRET=1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {form: use(form, Path(folder)) for form in ("torch", "triton")}
    distances = {}
    for name in ("logits", "decoded", "weights"):
        a, b = (found[form].pop(name) for form in ("torch", "triton"))
        distances[name] = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
    print(json.dumps({"distances": distances, **found}))


if __name__ == "__main__":
    sys.exit(main())
