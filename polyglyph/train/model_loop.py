"""Trains the transformer on shards of ids: one plain loop.

Batches and rates are pure functions of (config, corpus, step); nothing in the step draws a random
number, so with the saved weights and optimizer a resumed run continues bit for bit. The loss reads
the rows of the head that the grammar allows; text positions read all of it by default
(`loss.text_head`). Knows modalities as columns of the log only.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from polyglyph.assembly import UNTRAINED, Parts, build_tokens, load_parts, save_model_checkpoint
from polyglyph.checkpoint import find_checkpoint, shown
from polyglyph.config import Config, build, dump
from polyglyph.data.loader import Batch, DataConfig, Loader
from polyglyph.data.shards import Shards
from polyglyph.device import autocast, pick_device, pick_dtype
from polyglyph.errors import ConfigError, FormatError, MachineError, PolyglyphError
from polyglyph.fitting import PromptSize
from polyglyph.kernels.cross_entropy import SlicedLoss, sliced_cross_entropy
from polyglyph.model.sampling import Sampling
from polyglyph.model.transformer import ModelConfig, Transformer
from polyglyph.sequence.grammar import Grammar
from polyglyph.train.config import RunSection, settle
from polyglyph.train.optimizer import (
    OptimizerConfig,
    ScheduleConfig,
    clip_gradients,
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    set_rate,
)
from polyglyph.train.runlog import (
    CheckpointConfig,
    Interrupted,
    RunFolder,
    StopSignals,
    peak_bytes,
)
from polyglyph.train.starting import start_model

# What `loss.text_head` speaks of.
WRITTEN = "text"


class SequenceConfig(Config):
    """`[sequence]`: the codecs and the vocabulary that the ids are of.

    checkpoint: one that holds codecs under a vocabulary; or codecs: names or folders of codecs, in
    the order of the vocabulary to build, with `untrained` ones behind. prompt_size, target_grid:
    what a pipeline brings prompts to and what size it asks of a target.
    """

    checkpoint: str | None = None
    codecs: list[str] = []
    untrained: tuple[str, ...] = UNTRAINED
    dialect: str = "polyglyph"
    n_sizes: int = Field(512, ge=1)
    prompt_size: PromptSize = PromptSize()
    target_grid: dict[str, tuple[int, ...]] = {}


class ModelLossConfig(Config):
    """`[loss]`: text_head: softmax of text positions over all ids or over the slot's.

    z_loss: weight of the squared log-normaliser (PaLM, 2204.02311). full_every: steps between
    measurements of the loss with the whole head everywhere; 0: never.
    """

    text_head: Literal["full", "sliced"] = "full"
    z_loss: float = Field(1e-4, ge=0)
    full_every: int = Field(100, ge=0)


class ModelRun(Config):
    """A whole model run. `[model]` is that of the transformer, without vocabulary_size; its `init`
    names a checkpoint or run of the same shape and codecs to train on from."""

    run: RunSection
    sequence: SequenceConfig = SequenceConfig()
    model: dict[str, Any] = {}
    loss: ModelLossConfig = ModelLossConfig()
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sampling: dict[str, Sampling] = {}


def load_sequence(config: SequenceConfig, shards: str | Path | None = None) -> Parts:
    """Codecs, vocabulary and grammar of a `[sequence]`; what `prepare` and the loop both use.

    A `[sequence]` that names neither takes those that `prepare` kept beside the shards.
    """
    kept = None if shards is None else Path(shards) / "codecs"
    if config.checkpoint is None and not config.codecs and kept is not None and kept.is_dir():
        return load_sequence(config.model_copy(update={"checkpoint": str(kept)}))
    if config.checkpoint is not None:
        if config.codecs:
            raise ConfigError("sequence.checkpoint and sequence.codecs exclude each other")
        parts = load_parts(find_checkpoint(config.checkpoint))
        if parts.grammar is None:
            raise ConfigError(
                f"sequence.checkpoint: {shown(config.checkpoint)} holds codecs without a "
                "vocabulary; list it in sequence.codecs instead"
            )
        return parts
    if not config.codecs:
        raise ConfigError("[sequence] names no codecs; set sequence.codecs or sequence.checkpoint")
    return build_tokens(
        config.codecs, dialect=config.dialect, n_sizes=config.n_sizes, untrained=config.untrained
    )


def model_config(config: ModelRun, grammar: Grammar) -> ModelConfig:
    """`[model]` with the grammar's vocabulary size; ConfigError where the two disagree."""
    size = grammar.vocabulary.size
    given = config.model.get("vocabulary_size", size)
    if given != size:
        raise ConfigError(f"model.vocabulary_size is {given}, the codecs make {size}; leave it out")
    shape = {key: value for key, value in config.model.items() if key != "init"}
    made = build(ModelConfig, {**shape, "vocabulary_size": size}, "[model]")
    if config.data.row_length > made.context:
        raise ConfigError(
            f"data.row_length = {config.data.row_length} is beyond model.context = "
            f"{made.context}; make them equal"
        )
    return made


class SlotTable:
    """The grammar's slots as the loss and the log want them."""

    def __init__(self, grammar: Grammar, text_head: str, device: torch.device) -> None:
        n = len(grammar.automaton.slots)
        self.table = torch.from_numpy(grammar.automaton.slots.astype(np.int64)).to(device)
        self.full = torch.zeros(n, dtype=torch.bool, device=device)
        if text_head == "full":
            written = torch.from_numpy(grammar.slots_of_modality(WRITTEN).astype(np.int64))
            self.full[written.to(device)] = True
        sizes = grammar.automaton.slot_size.astype(np.int64)
        self.log_size = np.log(np.maximum(1, sizes))
        self.read = np.where(self.full.cpu().numpy(), grammar.vocabulary.size, sizes)
        self.owner = np.full(n, -1)
        self.modalities = list(dict.fromkeys(s.modality for s in grammar.specs.values()))
        for i, modality in enumerate(self.modalities):
            slots = grammar.slots_of_modality(modality)
            self.owner[slots[self.owner[slots] < 0]] = i

    def summary(self, result: SlicedLoss) -> tuple[dict[str, Any], dict[str, Any]]:
        """({modality: figures}, figures of what no modality owns: begin ids, sizes).

        loss: mean over the weights; uniform: that of a model that knows the slot and no more.
        """
        counts, weights = result.slot_counts.cpu().numpy(), result.slot_weights.cpu().numpy()
        losses = result.slot_losses.cpu().numpy()

        def figures(mine: np.ndarray) -> dict[str, Any]:
            weight = float(weights[mine].sum())
            scale = 1.0 / weight if weight else 0.0
            return {
                "n_ids": int(counts[mine].sum()),
                "loss": float(losses[mine].sum()) * scale,
                "weight": weight,
                "uniform": float((weights * self.log_size)[mine].sum()) * scale,
            }

        found = {m: figures(self.owner == i) for i, m in enumerate(self.modalities)}
        return {m: f for m, f in found.items() if f["n_ids"]}, figures(self.owner < 0)


class ModelTraining:
    """State of a run: model, optimizer, loader and the step; `advance` does one step."""

    def __init__(self, config: ModelRun, parts: Parts | None = None) -> None:
        self.config = config
        settle(config.run)
        self.device = pick_device(config.run.device)
        self.dtype = pick_dtype(self.device, config.run.dtype)
        self.parts = parts or load_sequence(config.sequence, config.data.shards)
        assert self.parts.grammar is not None
        self.grammar = self.parts.grammar
        shape = model_config(config, self.grammar)
        shards = Shards(config.data.shards, self.grammar)
        self.loader = Loader(shards, self.grammar, config.data, config.run.seed)
        self.slots = SlotTable(self.grammar, config.loss.text_head, self.device)
        torch.manual_seed(config.run.seed)
        self.model = Transformer(shape).to(self.device)
        if "init" in config.model:
            start_model(self.model, self.grammar, str(config.model["init"]))
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.step = 0
        self.n_ids = 0
        self.flops = 0.0  # of the last step

    def advance(self) -> dict[str, Any]:
        """One step; returns what the log wants of it."""
        config = self.config
        rate = learning_rate(self.step, config.run.steps, config.optimizer, config.schedule)
        set_rate(self.optimizer, rate)
        waited = time.perf_counter()
        batch = self.loader.sample(self.step)
        waited = time.perf_counter() - waited
        every = config.loss.full_every
        measure_full = every > 0 and (self.step + 1) % every == 0
        self.model.train()
        result, full = self._losses(batch, measure_full)
        self._check_finite("loss", float(result.loss.detach()))
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        norm = clip_gradients(self.model, config.optimizer.clip)
        self._check_finite("gradient norm", norm)
        self.optimizer.step()
        self.step += 1
        self.n_ids += batch.n_ids
        self.flops = self._flops(batch, result)
        modalities, layout = self.slots.summary(result)
        weight = float(result.normaliser)
        values = {"loss": float(result.slot_losses.sum()) / weight if weight else 0.0}
        if full is not None:
            values["loss_full"] = full
        return {
            **values,
            "z_loss": config.loss.z_loss * float(result.z_loss),
            "lr": rate,
            "grad_norm": norm,
            "n_ids": self.n_ids,
            "data_wait_s": waited,
            "modalities": modalities,
            "monitors": {"layout": layout},
        }

    def _losses(self, batch: Batch, measure_full: bool) -> tuple[SlicedLoss, float | None]:
        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        targets, slots = tensor(batch.targets).flatten(), tensor(batch.slots).flatten()
        weights = tensor(batch.weights).flatten()
        with autocast(self.device, self.dtype):
            hidden = self.model(tensor(batch.ids), doc_id=tensor(batch.doc_id)).flatten(0, 1)
            head = self.model.head_weight
            common = (targets, slots, self.slots.table, weights)
            z = self.config.loss.z_loss
            result = sliced_cross_entropy(
                hidden, head, *common, z_loss=z, full_slots=self.slots.full
            )
            if not measure_full:
                return result, None
            whole = torch.ones_like(self.slots.full)
            with torch.no_grad():
                full = sliced_cross_entropy(hidden.detach(), head, *common, full_slots=whole)
        return result, float(full.loss)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise PolyglyphError(
                f"{what} became {value} at step {self.step + 1}; the last checkpoint is kept: "
                "lower optimizer.lr, or set run.dtype=fp32"
            )

    def _flops(self, batch: Batch, result: SlicedLoss) -> float:
        """Of products, forward and backward: blocks, attention inside documents, head rows read."""
        shape = self.model.config
        products = sum(p.numel() for p in self.model.blocks.parameters() if p.ndim == 2)
        keys = int((batch.positions + 1)[batch.doc_id >= 0].sum())
        head = int((result.slot_counts.cpu().numpy() * self.slots.read).sum())
        attention = 2 * shape.n_layers * keys
        return 6.0 * (products * batch.n_ids + (attention + head) * shape.d_model)

    # Saved state ----------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        numbers = {"n_ids": self.n_ids, "manifest_sha256": self.loader.manifest_sha256}
        return {k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}, numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """FormatError if the corpus is not the one that the run began with."""
        due, found = numbers["manifest_sha256"], self.loader.manifest_sha256
        if found != due:
            raise FormatError(
                f"the run was trained on shards {due[:12]}, {shown(self.config.data.shards)} holds "
                f"{found[:12]}; put the old shards back, or start a new run"
            )

        def part(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        load_optimizer(self.optimizer, part("optimizer"))
        self.step, self.n_ids = int(numbers["step"]), int(numbers["n_ids"])

    def write_model(self, folder: Path) -> None:
        """A checkpoint folder of kind "model" (design, section 6), weights in bf16."""
        save_model_checkpoint(
            folder,
            self.model,
            self.grammar,
            self.parts.tokenizers,
            self.config,
            folders=self.parts.folders,
            origin=f"polyglyph train --config {self.config.run.name}",
        )

    def description(self) -> dict[str, Any]:
        """What run.json says beside the config."""
        shards = self.loader.shards
        return {
            "kind": self.config.run.kind,
            "name": self.config.run.name,
            "n_parameters": self.model.n_parameters,
            "corpus": {
                "sha256": self.loader.manifest_sha256,
                "n_documents": shards.n_documents,
                "n_ids": shards.n_ids,
                "n_skipped": self.loader.n_skipped,
                "padding": self.loader.padding(),
            },
        }


def train_model(
    config: ModelRun,
    out: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict], None] | None = None,
) -> dict[str, Any]:
    """Runs or resumes a model run in folder `out`; returns the last log line.

    Raises Interrupted after a signal (checkpoint written), PolyglyphError on NaN.
    """
    training = ModelTraining(config)
    if resume:
        run = RunFolder.open(out)
    else:
        check_room(Path(out), training.model.n_parameters, config.checkpoint.keep)
        run = RunFolder.create(out, dump(config), training.description())
    with run, StopSignals() as stop:
        if resume:
            tensors, numbers, _ = run.load_state()
            training.load_state(tensors, numbers)
            run.cut_log(training.step)
        return _loop(training, run, stop, on_log or (lambda line: None))


def _loop(
    training: ModelTraining, run: RunFolder, stop: StopSignals, on_log: Callable[[dict], None]
) -> dict[str, Any]:
    config = training.config
    line: dict[str, Any] = run.lines()[-1] if run.lines() else {}
    started = time.time() - float(line.get("time_s", 0.0))
    peak = peak_flops(training.device, training.dtype)
    n_ids, flops, waited, window = training.n_ids, 0.0, 0.0, time.time()
    while training.step < config.run.steps:
        values = training.advance()
        flops += training.flops
        waited += values["data_wait_s"]
        step, last = training.step, training.step == config.run.steps
        if step % config.run.log_every == 0 or "loss_full" in values or last:
            seconds = max(time.time() - window, 1e-9)
            line = {"step": step, "time_s": time.time() - started, **values}
            line |= {"ids_per_s": (training.n_ids - n_ids) / seconds, "data_wait_s": waited}
            line |= {"peak_bytes": peak_bytes(), "mfu": flops / seconds / peak}
            run.log(line)
            on_log(line)
            n_ids, flops, waited, window = training.n_ids, 0.0, 0.0, time.time()
        if step % config.checkpoint.every == 0 or last or stop.received is not None:
            tensors, numbers = training.state()
            run.save_checkpoint(
                step, training.write_model, tensors, numbers, config.checkpoint.keep
            )
        if stop.received is not None and not last:
            raise Interrupted(stop.received, step, run.path)
    return line


def check_room(out: Path, n_parameters: int, keep: int) -> None:
    """MachineError unless the disk has twice the room that the run's checkpoints take."""
    needed = 2 * (keep + 1) * n_parameters * (3 * 4 + 2)  # fp32 weights and two moments; bf16
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MachineError(
            f"the disk of {shown(out)} has {free} bytes free, the checkpoints need up to {needed}; "
            "free some space, or choose another -o"
        )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product here: what `mfu` is a share of."""
    n, n_rounds = (4096, 10) if device.type == "cuda" else (1024, 3)
    a = torch.full((n, n), 0.5, dtype=dtype, device=device)
    best = math.inf
    for _ in range(n_rounds):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - began)
    return 2.0 * n**3 / best
