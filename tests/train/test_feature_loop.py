"""The small feature net: its damages, what a run writes, and that a codec can use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyglyph.config import build
from polyglyph.data.media_batches import MediaBatches
from polyglyph.errors import InputError
from polyglyph.tokenizers.features import perceptual_loss
from polyglyph.tokenizers.losses import ImageLossConfig
from polyglyph.train.feature_loop import (
    DAMAGES,
    FeatureRun,
    FeatureTasks,
    damaged,
    task_batch,
    train_features,
)
from polyglyph.train.runlog import RunFolder


def run_of(steps: int = 3) -> FeatureRun:
    sections: dict[str, Any] = {
        "run": {"kind": "features", "name": "few", "steps": steps, "log_every": 2, "threads": 1},
        "data": {"mixture": {"leaves": 1}, "batch_size": 4},
        "schedule": {"warmup": 1},
    }
    return build(FeatureRun, sections, "the test")


@pytest.mark.parametrize("kind", range(len(DAMAGES)))
def test_a_damage_changes_a_picture_of_any_size_more_the_stronger_it_is(kind: int) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((3, 19, 30), np.float32)) * 1.6 - 0.8
    far = [
        float((damaged(x, kind, k, np.random.default_rng(1)) - x).square().mean())
        for k in (0.1, 1.0)
    ]
    if DAMAGES[kind] is None:
        assert far == [0, 0]
    else:
        assert 0 < far[0] < far[1]
    assert float(damaged(x, kind, 1.0, rng).abs().max()) <= 1


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    one, other = (MediaBatches("image", run_of().data, 3) for _ in range(2))
    due = [task_batch(one, step) for step in range(2)]
    for step in (1, 0):
        found = task_batch(other, step)
        assert all(map(torch.equal, found, due[step]))
    x, clean, kinds = due[0]
    assert x.shape == clean.shape == (4, 3, 72, 72) and float(x.abs().max()) <= 1
    assert kinds.shape == (4,)
    assert not torch.equal(due[0][0], due[1][0])


def test_a_run_writes_a_net_that_says_what_it_saw_and_a_loss_can_use(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    line = train_features(run_of(), tmp_path / "r", on_log=said.append)
    assert [entry["step"] for entry in said] == [2, 3] and said[-1] == line
    assert RunFolder(tmp_path / "r").lines() == said
    assert set(line["monitors"]) == {"damage_right"}
    config = ImageLossConfig(
        perceptual=1.0, perceptual_net="small", perceptual_weights=str(tmp_path / "r")
    )
    loss = perceptual_loss(config)
    assert loss is not None
    assert "trained on procedural pictures (leaves; no photographs), 3 steps" in loss.label
    x = torch.zeros(1, 3, 24, 24)
    assert float(loss(x, x)) == 0
    assert train_features(run_of(), tmp_path / "r", resume=True) == line
    with pytest.raises(InputError, match="already exists"):
        train_features(run_of(), tmp_path / "r")
    file = next((tmp_path / "r").rglob("features.safetensors"))
    assert file.stat().st_size < 200_000


def test_the_same_config_gives_the_same_net(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        train_features(run_of(2), tmp_path / name)
        files.append(next((tmp_path / name).rglob("features.safetensors")).read_bytes())
    assert files[0] == files[1]


def test_the_tasks_have_a_gradient_for_every_layer() -> None:
    tasks = FeatureTasks()
    damage, clean = tasks(torch.randn(2, 3, 24, 16))
    assert damage.shape == (2, len(DAMAGES)) and clean.shape == (2, 3, 24, 16)
    (damage.square().sum() + clean.square().sum()).backward()
    assert all(p.grad is not None for p in tasks.parameters())
