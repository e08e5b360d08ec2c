"""Trains an image, video or audio codec on media: one plain loop.

Batches, rates and samples are pure functions of (config, step); with the saved states of net,
learner, optimizer, discriminator, balancer, averages and random generators a resumed run continues
bit for bit. NaN, a wrong range of values and collapse of a codebook stop the run with a sentence.
Knows nothing of ids.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from polyglyph.checkpoint import write_manifest
from polyglyph.config import Config, dump
from polyglyph.data.media_batches import BUILT_IN_RATE, MediaBatches, MediaDataConfig
from polyglyph.device import autocast, pick_device, pick_dtype
from polyglyph.errors import ConfigError
from polyglyph.tokenizers.base import read_codec_json
from polyglyph.tokenizers.neural import CodecStep
from polyglyph.tokenizers.quantize import QuantizerConfig, codebook_use
from polyglyph.train.adversarial import Judge, adaptive_weight
from polyglyph.train.averaging import WeightAverage
from polyglyph.train.balancer import Balancer
from polyglyph.train.config import RunSection, settle
from polyglyph.train.criteria import Criteria
from polyglyph.train.guards import Guards, check_finite
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
from polyglyph.train.randomness import random_state, set_random_state
from polyglyph.train.runlog import (
    CheckpointConfig,
    Interrupted,
    RunFolder,
    StopSignals,
    peak_bytes,
)
from polyglyph.train.starting import frozen_mark, make_net


class CodecEvalConfig(Config):
    """`[eval]` of a codec run: every so many steps, checkers on n reconstructed test scenes."""

    every: int = Field(500, ge=1)
    n: int = Field(64, ge=1)


class AverageConfig(Config):
    """`[ema]`: a running mean of the weights beside the ones that train.

    decay: of the mean, 0 for none. export: which set is checked and written as the codec."""

    decay: float = Field(0.0, ge=0, lt=1)
    export: Literal["ema", "raw"] = "ema"


class CodecRun(Config):
    """A whole codec run. `[codec]` and `[loss]` are those of the codec of `codec.modality`, with
    codec.freeze = "encoder" to train only the decoder of `codec.init`."""

    run: RunSection
    codec: dict[str, Any]
    quantizer: QuantizerConfig = QuantizerConfig()
    loss: dict[str, Any] = {}
    data: MediaDataConfig = MediaDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: AverageConfig = Field(AverageConfig(), exclude_if=lambda ema: ema == AverageConfig())
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: CodecEvalConfig = CodecEvalConfig()


class CodecTraining:
    """State of a run: net, optimizers and the step; `advance` does one step."""

    def __init__(self, config: CodecRun) -> None:
        self.config = config
        settle(config.run)
        self.device = pick_device(config.run.device)
        self.dtype = pick_dtype(self.device, config.run.dtype)
        self.net, self.tokenizer_class = make_net(config)
        self.net.to(self.device)
        self.loss: Any = self.net.config.loss
        self.frozen = frozen_mark(self.net) if "freeze" in config.codec else None
        semantic = getattr(self.loss, "semantic", 0.0)
        if self.frozen and semantic:
            raise ConfigError("loss.semantic trains the encoder, which codec.freeze keeps as it is")
        if self.frozen and self.loss.steady:
            raise ConfigError("loss.steady trains the encoder, which codec.freeze keeps as it is")
        if not self.loss.steady and (config.data.noise or config.data.shift):
            raise ConfigError(
                "data.noise and data.shift are the damage of loss.steady, which has no weight; "
                "give it one"
            )
        self.criteria = Criteria(self.net, config.data, config.run.seed).to(self.device)
        # What the criteria train goes behind the net: without any, the state is the net's alone.
        self.trained = nn.ModuleList([self.net, self.criteria])
        self.optimizer = make_optimizer(self.trained, config.optimizer)
        self.judge: Judge | None = None
        if self.loss.adversarial:
            kind = getattr(self.net, "discriminator", "pictures")
            self.judge = Judge(kind, self.loss, config.optimizer).to(self.device)
        self.balancer = Balancer() if self.loss.balancer else None
        self.average = WeightAverage(self.net, config.ema.decay) if config.ema.decay else None
        codec = self.net.config
        self.batches = MediaBatches(
            config.codec["modality"],
            config.data,
            config.run.seed,
            sample_rate=getattr(codec, "sample_rate", BUILT_IN_RATE),
            n_channels=getattr(codec, "channels", 1),
            hop=getattr(self.net, "hop", 1),
        )
        self.step = 0
        self.guards = Guards()
        self.last: CodecStep | None = None
        self.last_batch: Tensor | None = None

    def tensor_batch(self, step: int) -> Tensor:
        array = self.batches.batch(step)
        convert: Callable[[np.ndarray], Tensor] = getattr(
            self.net, "batch_tensor", torch.from_numpy
        )
        batch = convert(array).to(self.device)
        stride = getattr(self.net, "stride", 1)
        if batch.shape[-1] % stride:
            raise ConfigError(
                f"data.side is {batch.shape[-1]}, no multiple of the codec's stride of {stride}; "
                f"set it to {batch.shape[-1] // stride * stride or stride}"
            )
        return batch

    def advance(self) -> dict[str, Any]:
        """One step; returns what the log wants of it."""
        rate = learning_rate(
            self.step, self.config.run.steps, self.config.optimizer, self.config.schedule
        )
        set_rate(self.optimizer, rate)
        waited = time.perf_counter()
        batch = self.tensor_batch(self.step)
        waited = time.perf_counter() - waited
        self.guards.check_batch(batch, self.step + 1)
        self.net.train()
        with autocast(self.device, self.dtype):
            out: CodecStep = self.net.training_losses(batch)
            losses = dict(out.losses) | self.criteria.losses(self.net, batch, out, self.step)
        if self.frozen:
            losses.pop("quantizer", None)  # nothing that it could move
        judged = self.judge is not None and self.step >= self.loss.discriminator_start
        if judged:
            losses |= self._fool(batch, out, torch.stack(list(losses.values())).sum())
        total = torch.stack(list(losses.values())).sum()
        check_finite("loss", float(total.detach()), self.step + 1)
        norm = self._descend(losses, total, out.reconstruction)
        if judged:
            losses |= self._train_judge(batch, out, rate)
        if self.average is not None:
            self.average.update(self.net)
        self.step += 1
        self.last, self.last_batch = out, batch
        return {
            "loss": float(total.detach()),
            "lr": rate,
            "grad_norm": norm,
            "data_wait_s": waited,
            "losses": {name: float(value.detach()) for name, value in losses.items()},
        }

    def _descend(self, losses: dict[str, Tensor], total: Tensor, output: Tensor) -> float:
        """Backward and one step of the codec; the gradient's norm before it was clipped."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.balancer is None:
            total.backward()
        else:
            # What [loss] weighs is of the output, but for the semantic term.
            weights = {k: float(getattr(self.loss, k, 0.0)) for k in losses if k != "semantic"}
            weights = {name: weight for name, weight in weights.items() if weight}
            rest = [value for name, value in losses.items() if name not in weights]
            self.balancer.backward(
                {name: losses[name] for name in weights},
                weights,
                output,
                torch.stack(rest).sum() if rest else None,
            )
        norm = clip_gradients(self.trained, self.config.optimizer.clip)
        check_finite("gradient norm", norm, self.step + 1)
        self.optimizer.step()
        return norm

    def _fool(self, batch: Tensor, out: CodecStep, total: Tensor) -> dict[str, Tensor]:
        """The judge's terms, weighted."""
        assert self.judge is not None
        terms = self.judge.fool(*_judged(batch, out))
        weight = total.new_tensor(self.loss.adversarial)
        if self.loss.adaptive_weight and self.balancer is None:
            weight = weight * adaptive_weight(total, terms["adversarial"], self.net.last_layer)
        terms["adversarial"] = weight * terms["adversarial"]
        if "feature_matching" in terms:
            terms["feature_matching"] = self.loss.feature_matching * terms["feature_matching"]
        return terms

    def _train_judge(self, batch: Tensor, out: CodecStep, rate: float) -> dict[str, Tensor]:
        assert self.judge is not None
        return self.judge.learn(*_judged(batch, out), rate)

    # Saved state ----------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"criteria.{k}": v for k, v in self.criteria.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors |= random_state(self.device)
        numbers: dict[str, Any] = self.guards.numbers()
        if self.judge is not None:
            tensors |= self.judge.state()
        if self.average is not None:
            tensors |= {f"ema.{k}": v for k, v in self.average.means.items()}
            numbers["ema_updates"] = self.average.n_updates
        if self.balancer is not None:
            numbers["balancer"] = self.balancer.numbers()
        return {k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}, numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.net.load_state_dict(part("net"))
        self.criteria.load_state_dict(part("criteria"))
        load_optimizer(self.optimizer, part("optimizer"))
        if self.judge is not None:
            self.judge.load_state(part)
        if self.average is not None:
            self.average.load(part("ema"), int(numbers["ema_updates"]))
        if self.balancer is not None:
            self.balancer.load_numbers(numbers["balancer"])
        set_random_state(tensors, self.device)
        self.guards.load_numbers(numbers)
        self.step = int(numbers["step"])

    # What is shown and exported -------------------------------------------------------------

    @property
    def weights(self) -> str:
        """Which set of weights is checked and exported: "raw", or "ema" with its decay."""
        ema = self.config.ema
        return f"ema {ema.decay:g}" if self.average is not None and ema.export == "ema" else "raw"

    @contextmanager
    def exported(self) -> Iterator[Any]:
        """The codec as it stands, for checks and for saving, with the weights that are exported;
        the net goes on training, with its own, after the block."""
        if self.average is None or self.config.ema.export == "raw":
            self.net.quantizer.sync()
            yield self.tokenizer_class(self.net)
            return
        with self.average.swapped_in(self.net):
            self.net.quantizer.sync()
            yield self.tokenizer_class(self.net)

    def labels(self) -> dict[str, str]:
        """What the run folder says beyond its config: nets that judge, the weights exported."""
        said = self.criteria.labels()
        if self.average is not None:
            said["weights"] = self.weights
        if self.frozen:
            said["frozen"] = self.frozen
        return said

    def write_model(self, folder: Path) -> None:
        """A checkpoint folder of kind "codec" (design, section 6), weights in bf16."""
        with self.exported() as tokenizer:
            if self.frozen:
                assert frozen_mark(self.net) == self.frozen, "what is frozen has moved"
            span = tokenizer.span
            target = folder / "tokenizers" / span
            tokenizer.save(target, dtype=torch.bfloat16)
        # Read, not loaded: building a net draws random numbers, and a resumed run, which did not
        # write this checkpoint, would restart other codes.
        fingerprint = read_codec_json(target)["fingerprint"]
        (folder / "config.toml").write_text(dump(self.config), "utf-8")
        write_manifest(
            folder,
            kind="codec",
            config=self.config.model_dump(mode="json"),
            dialect=None,
            vocabulary_sha256=None,
            tokenizers={span: {"path": f"tokenizers/{span}", "fingerprint": fingerprint}},
            origin=f"polyglyph train --config {self.config.run.name}"
            + (f" (weights: {self.weights})" if self.average is not None else ""),
            licence="Apache-2.0",
        )


def _judged(batch: Tensor, out: CodecStep) -> tuple[Tensor, Tensor]:
    """(real, fake) as a discriminator takes them; clips frame by frame, (BF, C, H, W)."""
    real = batch if out.target is None else out.target
    pair = (real, out.reconstruction)
    first, second = (x.flatten(0, 1) if x.ndim == 5 else x for x in pair)
    return first, second


def train_codec(
    config: CodecRun,
    out: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict], None] | None = None,
) -> dict[str, Any]:
    """Runs or resumes a codec run in folder `out`; returns the last log line.

    Raises Interrupted after a signal (checkpoint written), PolyglyphError on NaN or collapse.
    """
    training = CodecTraining(config)
    if resume:
        run = RunFolder.open(out)
    else:
        describe = {"kind": config.run.kind, "name": config.run.name, **training.labels()}
        run = RunFolder.create(out, dump(config), describe)
    with run, StopSignals() as stop:
        if resume:
            tensors, numbers, _ = run.load_state()
            training.load_state(tensors, numbers)
            run.cut_log(training.step)
        try:
            return _loop(training, run, stop, on_log or (lambda line: None))
        finally:
            _log_errors(run, training.batches.errors)


def _loop(
    training: CodecTraining, run: RunFolder, stop: StopSignals, on_log: Callable[[dict], None]
) -> dict[str, Any]:
    config = training.config
    line: dict[str, Any] = run.lines()[-1] if run.lines() else {}
    started = time.time() - float(line.get("time_s", 0.0))
    codes: list[Tensor] = []
    n_media, window = 0, time.time()
    while training.step < config.run.steps:
        values = training.advance()
        assert training.last is not None
        codes.append(training.last.codes.reshape(-1, training.last.codes.shape[-1]))
        n_media += config.data.batch_size
        step, last = training.step, training.step == config.run.steps
        check = step % config.eval.every == 0 or last
        if step % config.run.log_every == 0 or check:
            size, seen = training.net.quantizer.config.codebook_size, torch.cat(codes)
            uses = [vars(u) for u in codebook_use(seen, size)]
            line = {"step": step, "time_s": time.time() - started, **values}
            line |= {"media_per_s": n_media / (time.time() - window), "peak_bytes": peak_bytes()}
            line |= {"codebooks": uses, "monitors": {}}
            if check:
                line["monitors"] = _monitor(training, run)
            run.log(line)
            on_log(line)
            _log_errors(run, training.batches.errors)
            training.guards.check_collapse(seen, size, len(codes), step)
            codes, n_media, window = [], 0, time.time()
        if step % config.checkpoint.every == 0 or last or stop.received is not None:
            tensors, numbers = training.state()
            run.save_checkpoint(
                step, training.write_model, tensors, numbers, config.checkpoint.keep
            )
        if stop.received is not None and not last:
            raise Interrupted(stop.received, step, run.path)
    return line


def _log_errors(run: RunFolder, errors: list[dict[str, Any]]) -> None:
    """Files that were left out, one line each, those of an earlier start of this run not twice."""
    path = run.path / "errors.jsonl"
    known = set(path.read_text("utf-8").splitlines()) if path.exists() else set()
    lines = [json.dumps(error, ensure_ascii=False) for error in errors]
    new = [line for line in dict.fromkeys(lines) if line not in known]
    if new:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in new)


def _monitor(training: CodecTraining, run: RunFolder) -> dict[str, float]:
    """Checkers on reconstructed test scenes, and a side-by-side sample in the run folder."""
    from polyglyph.eval.scenes import reconstruction_scores
    from polyglyph.train.samples import write_sample

    # The checks draw no random numbers that training would miss: a resumed run stays bit-equal.
    state = random_state(training.device)
    with training.exported() as tokenizer:
        scores = reconstruction_scores(tokenizer, training.config.eval.n)
        assert training.last_batch is not None
        write_sample(run.samples / f"step-{training.step:08d}", tokenizer, training.last_batch)
    set_random_state(state, training.device)
    training.net.train()
    return scores
