"""Trains the small feature net of the perceptual loss on procedural pictures, in about a minute.

For those who have no VGG16 at hand. The net learns to tell what was done to a picture (blur,
noise, blocks, posterised levels, ringing, lost resolution) under any light, and to undo the
damage: what a codec's loss should see. It has never seen a photograph unless `[data]`
names a folder of them, and its file says which. There is nothing to resume: a run that was stopped
begins anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from polyglyph.checkpoint import save_tensors
from polyglyph.config import Config, dump
from polyglyph.data.media_batches import SOURCES, MediaBatches, MediaDataConfig
from polyglyph.device import pick_device
from polyglyph.tokenizers.features import SMALL_FILE, SmallFeatures
from polyglyph.tokenizers.image import to_pixels
from polyglyph.train.config import RunSection, settle
from polyglyph.train.guards import check_finite
from polyglyph.train.optimizer import (
    OptimizerConfig,
    ScheduleConfig,
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_rate,
)
from polyglyph.train.runlog import RunFolder, peak_bytes

_STREAM = 23  # of the random numbers of damages
_HELD_OUT = 1_000_003  # seed of pictures that are measured and never trained on


class FeatureRun(Config):
    """A whole run of the small feature net."""

    run: RunSection
    data: MediaDataConfig = MediaDataConfig(mixture={"leaves": 3, "shapes": 1})
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-3)
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _whole_eighths(self) -> FeatureRun:
        if self.data.side % 8:
            raise ValueError(f"data.side is a multiple of 8 here; got {self.data.side}")
        return self


# --- damages -----------------------------------------------------------------------------------


def _blurred(x: Tensor, k: float, rng: np.random.Generator) -> Tensor:
    sigma = 0.5 + 1.5 * k
    reach = torch.arange(-4, 5, dtype=torch.float32)
    kernel = torch.exp(-(reach**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 9)
    padded = F.pad(x[None], (4, 4, 4, 4), mode="replicate")
    rows = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=3)[0]


def _noisy(x: Tensor, k: float, rng: np.random.Generator) -> Tensor:
    noise = rng.standard_normal(x.shape, np.float32)
    return x + (0.03 + 0.22 * k) * torch.from_numpy(noise)


def _blocky(x: Tensor, k: float, rng: np.random.Generator) -> Tensor:
    """Every block of 8 × 8 pulled towards its mean, as coarse transform coding does."""
    h, w = x.shape[-2:]
    means = F.avg_pool2d(x[None], 8, ceil_mode=True)
    flat = means.repeat_interleave(8, -2).repeat_interleave(8, -1)[0, :, :h, :w]
    return torch.lerp(x, flat, 0.3 + 0.6 * k)


def _posterised(x: Tensor, k: float, rng: np.random.Generator) -> Tensor:
    n = round(12 - 9 * k)
    return ((x + 1) / 2 * n).round() / n * 2 - 1


def _ringing(x: Tensor, k: float, rng: np.random.Generator) -> Tensor:
    return x + (0.5 + 2 * k) * (x - _blurred(x, 0.5, rng))


def _coarse(x: Tensor, k: float, rng: np.random.Generator) -> Tensor:
    n = 2 if k < 0.5 else 3
    h, w = x.shape[-2:]
    small = F.avg_pool2d(x[None], n, ceil_mode=True)
    return small.repeat_interleave(n, -2).repeat_interleave(n, -1)[0, :, :h, :w]


DAMAGES: tuple[Callable[[Tensor, float, np.random.Generator], Tensor] | None, ...] = (
    None, _blurred, _noisy, _blocky, _posterised, _ringing, _coarse,
)  # fmt: skip


def damaged(x: Tensor, kind: int, strength: float, rng: np.random.Generator) -> Tensor:
    """A picture (3, H, W) in [-1, 1], damaged in one way by a strength of 0…1."""
    damage = DAMAGES[kind]
    return x if damage is None else damage(x, strength, rng).clamp(-1, 1)


def lit(x: Tensor, rng: np.random.Generator) -> Tensor:
    """The picture under another light: contrast, brightness and tint, which are no damage."""
    light = torch.from_numpy(rng.standard_normal((3, 1, 1), np.float32))
    brightness = float(rng.standard_normal()) * 0.15
    return (x * float(rng.uniform(0.5, 1.1)) + brightness + 0.08 * light).clamp(-1, 1)


# --- the net and its tasks ---------------------------------------------------------------------


class FeatureTasks(nn.Module):
    """The small net, and the heads that are thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallFeatures()
        width = 2 * sum(self.net.widths)
        self.damage = nn.Linear(width, len(DAMAGES))
        fine, deep = self.net.widths[1], self.net.widths[-1]
        self.fine = nn.Conv2d(fine, 3 * 4, 3, padding=1)  # at half the size
        self.deep = nn.Conv2d(deep, 3 * 64, 1)  # at an eighth

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W), whole eighths → logits of damages, clean pictures."""
        features = self.net(x)
        pooled = [t for f in features for t in (f.mean((2, 3)), f.flatten(2).std(2))]
        said = torch.cat(pooled, dim=1)
        clean = F.pixel_shuffle(self.fine(features[1]), 2)
        clean = clean + F.pixel_shuffle(self.deep(features[3]), 8)
        return self.damage(said), clean


def task_batch(batches: MediaBatches, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """(damaged pictures, clean ones, kinds of damage) of one step."""
    clean, n = to_pixels(batches.batch(step)), batches.config.batch_size
    shown, found, kinds = [], [], []
    for i in range(n):
        rng = np.random.default_rng((batches.seed, _STREAM, step * n + i))
        kind = int(rng.integers(len(DAMAGES)))
        shown.append(lit(clean[i], rng))
        found.append(damaged(shown[-1], kind, float(rng.random()), rng))
        kinds.append(kind)
    return torch.stack(found), torch.stack(shown), torch.tensor(kinds)


def task_losses(
    tasks: FeatureTasks, batch: tuple[Tensor, Tensor, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """(losses, share of damages told right)."""
    x, clean, kinds = (t.to(tasks.damage.weight.device) for t in batch)
    said, undone = tasks(x)
    losses = {
        "damage": F.cross_entropy(said, kinds),
        "undo": 2.0 * (undone - clean).abs().mean(),
    }
    return losses, float((said.argmax(1) == kinds).float().mean())


@torch.no_grad()
def held_out(tasks: FeatureTasks, config: FeatureRun, n_batches: int = 8) -> float:
    """Share of damages told right of pictures that were never trained on."""
    batches = MediaBatches("image", config.data, _HELD_OUT)
    shares = [task_losses(tasks, task_batch(batches, step))[1] for step in range(n_batches)]
    return sum(shares) / len(shares)


def train_features(
    config: FeatureRun,
    out: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict], None] | None = None,
) -> dict[str, Any]:
    """Writes the run folder `out` with model/features.safetensors; returns the last log line."""
    if resume:
        run = RunFolder.open(out)
    else:
        describe = {"kind": config.run.kind, "name": config.run.name}
        run = RunFolder.create(out, dump(config), describe)
    with run:
        if resume and run.lines() and run.latest() is not None:
            return run.lines()[-1]
        run.cut_log(0)
        return _loop(config, run, on_log or (lambda line: None))


def _loop(config: FeatureRun, run: RunFolder, on_log: Callable[[dict], None]) -> dict[str, Any]:
    settle(config.run)
    device, started = pick_device(config.run.device), time.time()
    torch.manual_seed(config.run.seed)
    tasks = FeatureTasks().to(device)
    optimizer = make_optimizer(tasks, config.optimizer)
    batches = MediaBatches("image", config.data, config.run.seed)
    line: dict[str, Any] = {}
    for step in range(config.run.steps):
        rate = learning_rate(step, config.run.steps, config.optimizer, config.schedule)
        set_rate(optimizer, rate)
        losses, right = task_losses(tasks, task_batch(batches, step))
        total = torch.stack(list(losses.values())).sum()
        check_finite("loss", float(total.detach()), step + 1)
        optimizer.zero_grad()
        total.backward()
        norm = clip_gradients(tasks, config.optimizer.clip)
        optimizer.step()
        last = step + 1 == config.run.steps
        if (step + 1) % config.run.log_every == 0 or last:
            line = {"step": step + 1, "time_s": time.time() - started}
            line |= {"loss": float(total.detach()), "lr": rate, "grad_norm": norm}
            line["peak_bytes"] = peak_bytes()
            line["losses"] = {name: float(value.detach()) for name, value in losses.items()}
            line["monitors"] = {"damage_right": held_out(tasks, config) if last else right}
            run.log(line)
            on_log(line)
    origin = _origin(config, line["monitors"])
    run.save_checkpoint(
        config.run.steps, lambda folder: write_features(folder, tasks.net, origin), {}, {}, keep=1
    )
    return line


def _origin(config: FeatureRun, right: dict[str, float]) -> str:
    """Where the weights are from, in words that travel with them."""
    names = sorted(config.data.weights)
    if set(names) <= SOURCES.keys():
        seen = f"procedural pictures ({', '.join(names)}; no photographs)"
    else:
        seen = f"pictures of {', '.join(Path(name).name for name in names)}"
    return (
        f"trained on {seen}, {config.run.steps} steps: "
        f"tells {right['damage_right']:.0%} of {len(DAMAGES)} kinds of damage"
    )


def write_features(folder: Path, net: SmallFeatures, origin: str) -> None:
    """features.safetensors, in bf16, saying where it is from."""
    tensors = {k: v.bfloat16() for k, v in net.state_dict().items()}
    save_tensors(folder / SMALL_FILE, tensors, {"polyglyph": json.dumps({"origin": origin})})
