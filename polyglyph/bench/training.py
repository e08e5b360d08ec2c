"""Our training step against transformers' LlamaForCausalLM of the same shape, in one process.

Both read the same documents of the built-in world's shapes (random codes), in the same precision,
with the same optimizer; ours isolates the packed documents and slices its loss, as training does,
Llama's is causal over the row with a full softmax, as its own. One thread, CPU seconds, steps in
turn; the figure is the ratio of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyglyph.bench.runner import Bench, BenchResult, Progress

TARGET = 1.0
N_STEPS = 7  # of each, after one that is not counted
Z_LOSS = 1e-4


@dataclass(frozen=True)
class Shape:
    """Rows of one step, and the transformer."""

    batch: int = 8
    length: int = 512
    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 704


QUICK = Shape(2, 160, 32, 2, 2, 1, 48)


@dataclass(frozen=True)
class Rows:
    """Packed documents: ids and targets (B, T), which document (B, T), the slot of each target."""

    ids: Any
    targets: Any
    doc_id: Any
    slots: Any
    slot_table: Any
    full_slots: list[int]
    vocabulary_size: int


def make_grammar() -> Any:
    """The grammar of the built-in checkpoint's spans."""
    from polyglyph.sequence.dialects import DIALECTS
    from polyglyph.sequence.grammar import Grammar
    from polyglyph.sequence.vocabulary import Vocabulary
    from polyglyph.tokenizers.base import SpanSpec

    specs = [
        SpanSpec("text", "text", 512, 1, 1),
        SpanSpec("image", "image", 768, 1, 2),
        SpanSpec("video", "video", 1024, 1, 3),
        SpanSpec("audio", "audio", 256, 4, 1),
    ]
    vocabulary = Vocabulary.build(specs)
    return Grammar(DIALECTS["polyglyph"], vocabulary, {spec.span: spec for spec in specs})


# Grids of the built-in world, in the order in which the documents take turns after a text.
GRIDS = {"image": (9, 9), "audio": (25,), "video": (2, 9, 9)}


def make_rows(shape: Shape, seed: int = 0) -> Rows:
    """Documents of a text and a medium, packed into rows; the last one of a row is cut."""
    import torch

    from polyglyph.sequence.document import Document, Segment
    from polyglyph.tokenizers.base import CodeGrid

    grammar = make_grammar()
    rng = np.random.default_rng(seed)
    n = shape.batch * (shape.length + 1)
    ids: list[np.ndarray] = []
    docs: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    total = 0
    while total < n:
        modality = list(GRIDS)[len(ids) % len(GRIDS)]
        grids = {"text": (int(rng.integers(8, 40)),), modality: GRIDS[modality]}
        segments = []
        for span, grid in grids.items():
            spec = grammar.specs[span]
            codes = rng.integers(0, spec.codebook_size, (spec.n_codebooks, *grid))
            segments.append(Segment(span, codes=CodeGrid(span, codes.astype(np.int32))))
        row = grammar.render(Document(segments)).ids
        slots.append(grammar.automaton.slots_of_ids(row))
        docs.append(np.full(len(row), len(ids), np.int32))
        ids.append(row)
        total += len(row)
    shaped = [
        torch.from_numpy(np.concatenate(x)[:n].astype(np.int64)).view(shape.batch, -1)
        for x in (ids, docs, slots)
    ]
    rows, doc, slot = shaped
    targets = rows[:, 1:].masked_fill(doc[:, 1:] != doc[:, :-1], -100)  # nothing leads to a bos
    text = grammar.slots_of_modality("text").tolist()
    return Rows(
        rows[:, :-1].contiguous(),
        targets.contiguous(),
        doc[:, :-1].int().contiguous(),
        slot[:, 1:].contiguous(),
        torch.from_numpy(np.ascontiguousarray(grammar.automaton.slots)),
        text,
        grammar.vocabulary.size,
    )


@dataclass(frozen=True)
class Side:
    """One of the two: a call trains a step and returns its loss."""

    step: Callable[[], float]
    n_parameters: int


def our_side(shape: Shape, rows: Rows, autocast: Callable[[], Any]) -> Side:
    """One step of ours: packed forward, sliced loss, backward, clip, AdamW."""
    from polyglyph.kernels.cross_entropy import sliced_cross_entropy
    from polyglyph.model.transformer import ModelConfig, Transformer
    from polyglyph.train.optimizer import OptimizerConfig, clip_gradients, make_optimizer

    config = ModelConfig(
        vocabulary_size=rows.vocabulary_size,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        d_ff=shape.d_ff,
        context=shape.length,
    )
    model = Transformer(config)
    settings = OptimizerConfig()
    optimizer = make_optimizer(model, settings)

    def step() -> float:
        with autocast():
            hidden = model(rows.ids, doc_id=rows.doc_id)
            found = sliced_cross_entropy(
                hidden.flatten(0, 1),
                model.head_weight,
                rows.targets.flatten(),
                rows.slots.flatten(),
                rows.slot_table,
                z_loss=Z_LOSS,
                full_slots=rows.full_slots,
            )
        found.loss.backward()
        clip_gradients(model, settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(found.loss.detach())

    return Side(step, model.n_parameters)


def peer_side(shape: Shape, rows: Rows, autocast: Callable[[], Any]) -> Side:
    """One step of transformers' Llama: its own forward and loss, the same clip and AdamW."""
    from polyglyph.device import check_broken_torchvision

    check_broken_torchvision()  # transformers doesn't load beside one
    from transformers import LlamaConfig, LlamaForCausalLM

    from polyglyph.train.optimizer import OptimizerConfig, clip_gradients, make_optimizer

    config = LlamaConfig(
        vocab_size=rows.vocabulary_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.length,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    settings = OptimizerConfig()
    optimizer = make_optimizer(model, settings)

    def step() -> float:
        with autocast():
            loss = model(input_ids=rows.ids, shift_labels=rows.targets, labels=rows.targets).loss
        loss.backward()
        clip_gradients(model, settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return Side(step, sum(p.numel() for p in model.parameters()))


def run(quick: bool, progress: Progress) -> BenchResult:
    """Steps in turn on one thread; the number of threads is as before afterwards."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(QUICK if quick else Shape(), 2 if quick else N_STEPS, progress)
    finally:
        torch.set_num_threads(n_threads)


def _run(shape: Shape, n_steps: int, progress: Progress) -> BenchResult:
    import torch

    from polyglyph.device import autocast, pick_dtype

    device = torch.device("cpu")
    dtype = pick_dtype(device, "auto")
    torch.manual_seed(0)
    rows = make_rows(shape)

    def cast() -> Any:
        return autocast(device, dtype)

    sides = {"ours": our_side(shape, rows, cast), "llama": peer_side(shape, rows, cast)}
    cpu_s: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(n_steps + 1):
        progress(i, n_steps + 1, "steps in turn")
        for name, side in sides.items():
            began = time.process_time()
            side.step()
            if i:  # the first one allocates
                cpu_s[name].append(time.process_time() - began)
    progress(n_steps + 1, n_steps + 1, "steps in turn")
    ours, llama = (statistics.median(cpu_s[name]) for name in sides)
    n_ids = shape.batch * shape.length
    return BenchResult(
        "",
        llama / ours,
        "×",
        TARGET,
        at_most=False,
        summary=f"{n_ids / ours:,.0f} ids/s against Llama's {n_ids / llama:,.0f}",
        samples={f"{name}_cpu_s": values for name, values in cpu_s.items()},
        facts={
            "shape": vars(shape),
            "vocabulary_size": rows.vocabulary_size,
            "dtype": str(dtype).removeprefix("torch."),
            "n_parameters": {name: side.n_parameters for name, side in sides.items()},
        },
    )


BENCH = Bench("our training step against transformers' LlamaForCausalLM", run)
