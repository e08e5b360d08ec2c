"""Trains an image, video or audio codec on media: one plain loop.

Batches, rates and samples are pure functions of (config, step); with the saved states of net,
learner, optimizer, discriminator and random generator a resumed run continues bit for bit. NaN
and collapse of a codebook stop the run with a sentence. Knows nothing of ids.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from polyglyph.checkpoint import find_checkpoint, write_manifest
from polyglyph.config import Config, build, dump
from polyglyph.data.media_batches import MediaBatches, MediaDataConfig
from polyglyph.device import autocast, pick_device, pick_dtype
from polyglyph.errors import ConfigError, PolyglyphError
from polyglyph.lookup import find
from polyglyph.tokenizers import TABLE, load_tokenizer
from polyglyph.tokenizers.base import read_codec_json
from polyglyph.tokenizers.neural import CodecStep
from polyglyph.tokenizers.quantize import QuantizerConfig, codebook_use
from polyglyph.train.adversarial import (
    DISCRIMINATORS,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from polyglyph.train.config import RunSection
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

COLLAPSE_STEPS = 200


class CodecEvalConfig(Config):
    """`[eval]` of a codec run: every so many steps, checkers on n reconstructed test scenes."""

    every: int = Field(500, ge=1)
    n: int = Field(64, ge=1)


class CodecRun(Config):
    """A whole codec run. `[codec]` and `[loss]` are those of the codec of `codec.modality`."""

    run: RunSection
    codec: dict[str, Any]
    quantizer: QuantizerConfig = QuantizerConfig()
    loss: dict[str, Any] = {}
    data: MediaDataConfig = MediaDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: CodecEvalConfig = CodecEvalConfig()


def make_net(config: CodecRun) -> tuple[nn.Module, type]:
    """The untrained net of a run and its tokenizer class; ConfigError on wrong sections."""
    modality = config.codec.get("modality")
    if not isinstance(modality, str):
        raise ConfigError("codec.modality is missing; name the medium the codec is for")
    tokenizer_class = find(TABLE, modality, "modality")
    if not hasattr(tokenizer_class, "net_class"):
        raise ConfigError(f"{modality} has no codec that trains on media; see run.kind")
    sections = {**config.codec, "quantizer": config.quantizer, "loss": config.loss}
    codec = build(tokenizer_class.config_class, sections, "[codec], [quantizer], [loss]")
    torch.manual_seed(config.run.seed)
    net = tokenizer_class.net_class(codec)
    if getattr(codec, "init", None):
        net.init_from(_trained(codec.init, getattr(net, "starts_from", modality)))
    net.quantizer.attach_learner()
    return net, tokenizer_class


def _trained(path: str, modality: str) -> nn.Module:
    """The net of the codec of `modality` in a checkpoint, run or codec folder."""
    folders = [Path(path)]
    if not (folders[0] / "codec.json").is_file():
        inside = sorted((find_checkpoint(path) / "tokenizers").glob("*/codec.json"))
        folders = [file.parent for file in inside]
    for folder in folders:
        if read_codec_json(folder)["modality"] == modality:
            tokenizer: Any = load_tokenizer(folder)
            return tokenizer.net
    raise ConfigError(
        f"codec.init: {path} holds no {modality} codec; name such a codec's folder or run"
    )


class CodecTraining:
    """State of a run: net, optimizers and the step; `advance` does one step."""

    def __init__(self, config: CodecRun) -> None:
        self.config = config
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.device = pick_device(config.run.device)
        self.dtype = pick_dtype(self.device, config.run.dtype)
        self.net, self.tokenizer_class = make_net(config)
        self.net.to(self.device)
        self.optimizer = make_optimizer(self.net, config.optimizer)
        loss = self.net.config.loss
        self.adversarial = float(getattr(loss, "adversarial", 0.0))
        self.start = int(getattr(loss, "discriminator_start", 0))
        self.judge: nn.Module | None = None
        if self.adversarial:
            kind = getattr(self.net, "discriminator", "pictures")
            self.judge = DISCRIMINATORS[kind]().to(self.device)
            self.judge_optimizer = make_optimizer(self.judge, config.optimizer)
        self.batches = MediaBatches(config.codec["modality"], config.data, config.run.seed)
        self.step = 0
        self.low_use = 0
        self.last: CodecStep | None = None
        self.last_batch: Tensor | None = None

    def tensor_batch(self, step: int) -> Tensor:
        array = self.batches.batch(step)
        convert: Callable[[np.ndarray], Tensor] = getattr(
            self.net, "batch_tensor", torch.from_numpy
        )
        return convert(array).to(self.device)

    def advance(self) -> dict[str, Any]:
        """One step; returns what the log wants of it."""
        rate = learning_rate(
            self.step, self.config.run.steps, self.config.optimizer, self.config.schedule
        )
        set_rate(self.optimizer, rate)
        waited = time.perf_counter()
        batch = self.tensor_batch(self.step)
        waited = time.perf_counter() - waited
        self.net.train()
        with autocast(self.device, self.dtype):
            out: CodecStep = self.net.training_losses(batch)
        losses = dict(out.losses)
        total = torch.stack(list(losses.values())).sum()
        if self.judge is not None and self.step >= self.start:
            losses["adversarial"] = self._fool(out.reconstruction, total)
            total = total + losses["adversarial"]
        self._check_finite("loss", float(total.detach()))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = clip_gradients(self.net, self.config.optimizer.clip)
        self._check_finite("gradient norm", norm)
        self.optimizer.step()
        if self.judge is not None and self.step >= self.start:
            losses["discriminator"] = self._train_judge(batch, out.reconstruction, rate)
        self.step += 1
        self.last, self.last_batch = out, batch
        return {
            "loss": float(total.detach()),
            "lr": rate,
            "grad_norm": norm,
            "data_wait_s": waited,
            "losses": {name: float(value.detach()) for name, value in losses.items()},
        }

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise PolyglyphError(
                f"{what} became {value} at step {self.step + 1}; the last checkpoint is kept: "
                "lower optimizer.lr, or set run.dtype=fp32"
            )

    def _fool(self, reconstruction: Tensor, total: Tensor) -> Tensor:
        assert self.judge is not None
        fake = self.judge(_judged(reconstruction))
        term = generator_loss(fake)
        weight = adaptive_weight(total, term, self.net.last_layer)
        return self.adversarial * weight * term

    def _train_judge(self, batch: Tensor, reconstruction: Tensor, rate: float) -> Tensor:
        assert self.judge is not None
        set_rate(self.judge_optimizer, rate)
        real, fake = _judged(batch), _judged(reconstruction.detach())
        loss = discriminator_loss(self.judge(real), self.judge(fake))
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge_optimizer.step()
        return loss

    def check_collapse(self, uses: list[dict[str, float]], n_steps: int) -> None:
        """Stops a run whose codebook stays under 10 % use or a perplexity of 4 for 200 steps."""
        bad = any(u["usage"] < 0.10 or u["perplexity"] < 4 for u in uses)
        self.low_use = self.low_use + n_steps if bad else 0
        if self.low_use >= COLLAPSE_STEPS:
            raise PolyglyphError(
                f"codebook collapse: under 10 % of the codes in use, or a perplexity under 4, for "
                f"{self.low_use} steps (step {self.step}); lower optimizer.lr or raise "
                "quantizer.threshold_ema_dead_code"
            )

    # Saved state ----------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors["rng"] = torch.get_rng_state()
        if self.judge is not None:
            tensors |= {f"judge.{k}": v for k, v in self.judge.state_dict().items()}
            judge = optimizer_tensors(self.judge_optimizer)
            tensors |= {f"judge_optimizer.{k}": v for k, v in judge.items()}
        return {k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}, {
            "low_use": self.low_use
        }

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.net.load_state_dict(part("net"))
        load_optimizer(self.optimizer, part("optimizer"))
        if self.judge is not None:
            self.judge.load_state_dict(part("judge"))
            load_optimizer(self.judge_optimizer, part("judge_optimizer"))
        torch.set_rng_state(tensors["rng"].to(torch.uint8))
        self.step, self.low_use = int(numbers["step"]), int(numbers["low_use"])

    def tokenizer(self) -> Any:
        """The codec as it stands, for checks and for saving; the net goes on training after."""
        self.net.quantizer.sync()
        return self.tokenizer_class(self.net)

    def write_model(self, folder: Path) -> None:
        """A checkpoint folder of kind "codec" (design, section 6), weights in bf16."""
        tokenizer = self.tokenizer()
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
            origin=f"polyglyph train --config {self.config.run.name}",
            licence="Apache-2.0",
        )


def _judged(x: Tensor) -> Tensor:
    """Clips are judged frame by frame: (B, F, C, H, W) → (BF, C, H, W)."""
    return x.flatten(0, 1) if x.ndim == 5 else x


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
        run = RunFolder.create(
            out, dump(config), {"kind": config.run.kind, "name": config.run.name}
        )
    with run, StopSignals() as stop:
        if resume:
            tensors, numbers, _ = run.load_state()
            training.load_state(tensors, numbers)
            run.cut_log(training.step)
        return _loop(training, run, stop, on_log or (lambda line: None))


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
            size = training.net.quantizer.config.codebook_size
            uses = [vars(u) for u in codebook_use(torch.cat(codes), size)]
            line = {"step": step, "time_s": time.time() - started, **values}
            line |= {"media_per_s": n_media / (time.time() - window), "peak_bytes": peak_bytes()}
            line |= {"codebooks": uses, "monitors": {}}
            if check:
                line["monitors"] = _monitor(training, run)
            run.log(line)
            on_log(line)
            training.check_collapse(uses, len(codes))
            codes, n_media, window = [], 0, time.time()
        if step % config.checkpoint.every == 0 or last or stop.received is not None:
            tensors, numbers = training.state()
            run.save_checkpoint(
                step, training.write_model, tensors, numbers, config.checkpoint.keep
            )
        if stop.received is not None and not last:
            raise Interrupted(stop.received, step, run.path)
    return line


def _monitor(training: CodecTraining, run: RunFolder) -> dict[str, float]:
    """Checkers on reconstructed test scenes, and a side-by-side sample in the run folder."""
    from polyglyph.eval.scenes import reconstruction_scores
    from polyglyph.train.samples import write_sample

    # The checks draw no random numbers that training would miss: a resumed run stays bit-equal.
    state = torch.get_rng_state()
    tokenizer = training.tokenizer()
    scores = reconstruction_scores(tokenizer, training.config.eval.n)
    assert training.last_batch is not None
    write_sample(run.samples / f"step-{training.step:08d}", tokenizer, training.last_batch)
    torch.set_rng_state(state)
    training.net.train()
    return scores
