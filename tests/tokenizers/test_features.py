"""Perceptual distance: the published formula and layouts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from polyglyph.checkpoint import load_tensors
from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.features import (
    SHIPPED,
    SMALL_FILE,
    PerceptualLoss,
    SmallFeatures,
    Vgg16Features,
    perceptual_loss,
)
from polyglyph.tokenizers.losses import ImageLossConfig

WIDTHS = (64, 128, 256, 512, 512)
# torchvision's vgg16().features: convolutions by index, "M" where it pools.
LAYOUT = [0, 2, "M", 5, 7, "M", 10, 12, 14, "M", 17, 19, 21, "M", 24, 26, 28]


def published() -> dict[str, Tensor]:
    """A random state dict in the layout of torchvision's vgg16."""
    generator = torch.Generator().manual_seed(0)
    state, d_in, depth = {}, 3, 0
    for entry in LAYOUT:
        if entry == "M":
            depth += 1
            continue
        shape = (WIDTHS[depth], d_in, 3, 3)
        gain = (2 / (9 * d_in)) ** 0.5
        state[f"features.{entry}.weight"] = torch.randn(shape, generator=generator) * gain
        state[f"features.{entry}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
        d_in = shape[0]
    return state


def published_heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{i}.model.1.weight": torch.rand((1, width, 1, 1), generator=generator)
        for i, width in enumerate(WIDTHS)
    }


def by_formula(state: dict[str, Tensor], heads: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """LPIPS written down once more, with the functional interface alone."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    maps: list[list[Tensor]] = []
    for picture in (x, y):
        h, found = (picture - shift) / scale, []
        for entry in [*LAYOUT, "M"]:
            if entry == "M":
                found.append(h)
                h = F.max_pool2d(h, 2, 2) if len(found) < 5 else h
            else:
                weight, bias = (state[f"features.{entry}.{n}"] for n in ("weight", "bias"))
                h = F.relu(F.conv2d(h, weight, bias, padding=1))
        maps.append(found)
    total = torch.zeros(len(x))
    for i, (a, b) in enumerate(zip(*maps)):
        a, b = (m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in (a, b))
        total += F.conv2d((a - b) ** 2, heads[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    return total


def pictures(side: int = 21) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.rand((2, 3, side, side), generator=generator) * 2 - 1 for _ in range(2))
    return x, y


def vgg_config(weights: Path, heads: Path | None = None) -> ImageLossConfig:
    return ImageLossConfig(
        perceptual=1.0,
        perceptual_net="vgg16",
        perceptual_weights=str(weights),
        perceptual_heads=None if heads is None else str(heads),
    )


def test_vgg16_with_lpips_heads_is_the_published_formula_from_both_kinds_of_file(
    tmp_path: Path,
) -> None:
    state, heads = published(), published_heads()
    classifier = {"classifier.0.weight": torch.zeros(4, 4)}
    save_file(state | classifier, tmp_path / "vgg16.safetensors")
    torch.save(heads, tmp_path / "heads.pth")
    loss = perceptual_loss(vgg_config(tmp_path / "vgg16.safetensors", tmp_path / "heads.pth"))
    assert loss is not None
    x, y = pictures()
    due = by_formula(state, heads, x, y)
    torch.testing.assert_close(loss.distance(x, y), due, rtol=1e-4, atol=1e-6)
    assert float(loss(x, y)) == pytest.approx(float(due.mean()), rel=1e-4)
    assert loss.label == "VGG16 of vgg16.safetensors, LPIPS heads of heads.pth"


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    state = published()
    short = {k: v for k, v in state.items() if not k.startswith("features.28")}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(FormatError, match=r"not a VGG16 state dict: 2 tensors missing, 0 unknown"):
        perceptual_loss(vgg_config(tmp_path / "short.safetensors"))
    state["features.0.bias"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(FormatError, match=r"NaN or infinite values in features\.0\.bias"):
        perceptual_loss(vgg_config(tmp_path / "nan.safetensors"))
    save_file(published(), tmp_path / "good.safetensors")
    save_file({"lin0.model.1.weight": torch.ones(1, 3, 1, 1)}, tmp_path / "alex.safetensors")
    with pytest.raises(FormatError, match=r"lin0.model.1.weight is due with shape \(1, 64, 1, 1\)"):
        perceptual_loss(vgg_config(tmp_path / "good.safetensors", tmp_path / "alex.safetensors"))
    with pytest.raises(InputError, match="no such file"):
        perceptual_loss(vgg_config(tmp_path / "gone.safetensors"))


def small_config(path: Path) -> ImageLossConfig:
    return ImageLossConfig(perceptual=1.0, perceptual_net="small", perceptual_weights=str(path))


def test_the_small_net_is_shipped_trained_and_says_so() -> None:
    """Its distance is that of the shipped weights, and not that of an untrained net."""
    loss = perceptual_loss(ImageLossConfig(perceptual=1.0, perceptual_net="small"))
    random = perceptual_loss(ImageLossConfig(perceptual=1.0, perceptual_net="random"))
    assert loss is not None and random is not None
    assert "trained" in loss.label and "random" not in loss.label
    net = SmallFeatures()
    net.load_state_dict({k: v.float() for k, v in load_tensors(SHIPPED).items()})
    x, y = pictures(18)
    torch.testing.assert_close(loss(x, y), PerceptualLoss(net, None, "")(x, y))
    assert abs(float(loss(x, y)) / float(random(x, y)) - 1) > 0.01


def test_our_small_net_says_where_its_weights_are_from(tmp_path: Path) -> None:
    net = SmallFeatures()
    about = {"polyglyph": json.dumps({"origin": "trained on procedural pictures, 7 steps"})}
    save_file(net.state_dict(), tmp_path / SMALL_FILE, about)
    x, y = pictures(18)
    for path in (tmp_path / SMALL_FILE, tmp_path):
        loss = perceptual_loss(small_config(path))
        assert loss is not None and loss.label.endswith("trained on procedural pictures, 7 steps")
        torch.testing.assert_close(loss(x, y), PerceptualLoss(net, None, "")(x, y))
    save_file(net.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(FormatError, match="is not of our small feature net; make one with"):
        perceptual_loss(small_config(tmp_path / "bare.safetensors"))
    with pytest.raises(InputError, match="no such file; make one with polyglyph train"):
        perceptual_loss(small_config(tmp_path / "gone"))


def test_random_features_are_the_same_every_time_and_called_so() -> None:
    config = ImageLossConfig(perceptual=1.0, perceptual_net="random")
    state = torch.get_rng_state()
    one, other = perceptual_loss(config), perceptual_loss(config)
    assert one is not None and other is not None and "random" in one.label
    assert torch.equal(torch.get_rng_state(), state)
    x, y = pictures(17)
    assert torch.equal(one(x, y), other(x, y)) and float(one(x, y)) > 0
    assert perceptual_loss(ImageLossConfig()) is None


def test_a_distance_is_zero_between_equals_has_gradients_and_never_trains() -> None:
    for net in (SmallFeatures(), Vgg16Features()):
        loss = PerceptualLoss(net, None, "")
        x, y = pictures(16)
        assert float(loss(x, x)) == 0
        x = x.requires_grad_()
        loss(x, y).backward()
        assert x.grad is not None and bool(x.grad.isfinite().all()) and float(x.grad.norm()) > 0
        assert not [p for p in loss.parameters() if p.requires_grad]
    grey = torch.zeros(1, 3, 16, 16, requires_grad=True)
    loss(grey, torch.zeros(1, 3, 16, 16)).backward()
    assert grey.grad is not None and bool(grey.grad.isfinite().all())
    with pytest.raises(InputError, match="at least 16 pixels a side, got 12x30"):
        loss(torch.zeros(1, 3, 12, 30), torch.zeros(1, 3, 12, 30))


def test_small_features_see_every_scale() -> None:
    x = torch.from_numpy(np.random.default_rng(0).random((1, 3, 33, 18), np.float32))
    shapes = [tuple(f.shape[1:]) for f in SmallFeatures()(x)]
    assert shapes == [(16, 33, 18), (32, 17, 9), (64, 9, 5), (64, 5, 3)]
