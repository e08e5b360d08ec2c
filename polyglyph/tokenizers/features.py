"""Perceptual distance between pictures: nets whose features are compared, and where they are from.

LPIPS (Zhang et al., 1801.03924): features of several depths, brought to unit length at every
place, squared differences weighed per channel, mean over places, sum over depths. The net is
VGG16 (1409.1556) with weights that the user names, or a small one of ours, trained on procedural
pictures by train/feature_loop.py, or the same untrained, which has to be asked for by name. Knows
nothing of codecs or training loops; holds no library of vision models.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.checkpoint import PACKAGED, load_tensors, read_tensor_metadata, shown
from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.importers.weights import read_state
from polyglyph.tokenizers.losses import ImageLossConfig

SMALL_FILE = "features.safetensors"
SHIPPED = PACKAGED / "features" / SMALL_FILE  # docs/reproduce.md says how it was made
LEAST_SIDE = 16  # pixels; below it the deepest features of VGG16 are nothing

# Convolutions of VGG16 by their number in its published state dict, "M" where pixels are pooled.
_VGG16 = (0, 2, "M", 5, 7, "M", 10, 12, 14, "M", 17, 19, 21, "M", 24, 26, 28)
_VGG16_WIDTHS = (64, 128, 256, 512, 512)
# What the published weights were trained on: LPIPS's constants, for pictures in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Vgg16Features(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] → features after the last convolution of five depths.

    The convolutions of VGG16, under the names of its published state dict (`features.0.weight`).
    """

    widths = _VGG16_WIDTHS

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        d_in, depth = 3, 0
        for entry in _VGG16:
            if isinstance(entry, str):
                depth += 1
                continue
            layers[str(entry)] = nn.Conv2d(d_in, _VGG16_WIDTHS[depth], 3, padding=1)
            d_in = _VGG16_WIDTHS[depth]
        self.features = nn.ModuleDict(layers)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = (x - self.shift) / self.scale
        depths = []
        for entry in _VGG16:
            if isinstance(entry, str):
                depths.append(x)
                x = F.max_pool2d(x, 2)
            else:
                x = F.relu(self.features[str(entry)](x))
        return [*depths, x]


class SmallFeatures(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] → features (B, C, H / 2^i, W / 2^i) of four depths."""

    widths = (16, 32, 64, 64)

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, *self.widths)
        self.layers = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], 3, stride=1 + (i > 0), padding=1)
            for i in range(len(self.widths))
        )
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        depths = []
        for layer in self.layers:
            x = F.relu(layer(x))
            depths.append(x)
        return depths


class PerceptualLoss(nn.Module):
    """forward(x, target), pictures (B, 3, H, W) in [-1, 1] → () mean distance; never trains.

    heads: weights per channel of every depth, (C,) each; None: all alike, 1 / C.
    label: which net with which weights, in words for the log.
    """

    def __init__(self, net: nn.Module, heads: list[Tensor] | None, label: str) -> None:
        super().__init__()
        self.net, self.label = net, label
        for i, width in enumerate(net.widths):  # type: ignore[arg-type]
            head = torch.full((width,), 1.0 / width) if heads is None else heads[i]
            self.register_buffer(f"head{i}", head)
        self.eval().requires_grad_(False)

    def distance(self, x: Tensor, target: Tensor) -> Tensor:
        """(B,) of pictures (B, 3, H, W)."""
        if min(x.shape[-2:]) < LEAST_SIDE:
            raise InputError(
                f"a perceptual loss needs pictures of at least {LEAST_SIDE} pixels a side, got "
                f"{x.shape[-2]}x{x.shape[-1]}; set loss.perceptual = 0"
            )
        with torch.no_grad():
            due = self.net(target)
        total = x.new_zeros(len(x), dtype=torch.float32)
        for i, (a, b) in enumerate(zip(self.net(x), due, strict=True)):
            apart = (_unit(a.float()) - _unit(b.float())).square()  # (B, C, h, w)
            head = getattr(self, f"head{i}")
            total = total + (apart * head[:, None, None]).sum(1).mean((1, 2))
        return total

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.distance(x, target).mean()


def _unit(features: Tensor) -> Tensor:
    """Of unit length at every place; the 1e-10 keeps the gradient finite where all are 0."""
    return features / ((features.square().sum(1, keepdim=True) + 1e-10).sqrt())


def perceptual_loss(config: ImageLossConfig) -> PerceptualLoss | None:
    """What `config` asks for; None without a weight. InputError, FormatError for wrong files."""
    if not config.perceptual:
        return None
    if config.perceptual_net == "vgg16":
        return _vgg16_loss(str(config.perceptual_weights), config.perceptual_heads)
    if config.perceptual_net == "small":
        return _small_loss(config.perceptual_weights or str(SHIPPED))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PerceptualLoss(SmallFeatures(), None, "small net, random weights")


def _vgg16_loss(weights: str, heads: str | None) -> PerceptualLoss:
    net = Vgg16Features()
    state = read_state(weights)
    # The classifier is of no use here; some files hold the bare layers.
    state = {k: v.float() for k, v in state.items() if not k.startswith("classifier.")}
    if state and all(k[0].isdigit() for k in state):
        state = {f"features.{k}": v for k, v in state.items()}
    _load_strictly(net, state, f"perceptual_weights {shown(weights)}", "a VGG16 state dict")
    if heads is None:
        return PerceptualLoss(net, None, f"VGG16 of {Path(weights).name}, channels alike")
    label = f"VGG16 of {Path(weights).name}, LPIPS heads of {Path(heads).name}"
    return PerceptualLoss(net, _lpips_heads(heads), label)


def _lpips_heads(path: str) -> list[Tensor]:
    """`lin0.model.1.weight` (1, C, 1, 1) to lin4, as published with LPIPS."""
    state = read_state(path)
    found = []
    for i, width in enumerate(_VGG16_WIDTHS):
        head = state.get(f"lin{i}.model.1.weight", state.get(f"lins.{i}.model.1.weight"))
        if head is None or tuple(head.shape) != (1, width, 1, 1):
            got = "nothing" if head is None else f"shape {tuple(head.shape)}"
            raise FormatError(
                f"perceptual_heads {shown(path)}: lin{i}.model.1.weight is due with shape "
                f"(1, {width}, 1, 1), got {got}; name the heads that LPIPS has for VGG16"
            )
        found.append(head.float().flatten())
    return found


def _small_loss(path: str) -> PerceptualLoss:
    file = _small_file(path)
    about = read_tensor_metadata(file).get("polyglyph")
    if about is None:
        raise FormatError(
            f"perceptual_weights {shown(path)} is not of our small feature net; make one with "
            "polyglyph train --config features"
        )
    net = SmallFeatures()
    state = {k: v.float() for k, v in load_tensors(file).items()}
    _load_strictly(net, state, f"perceptual_weights {shown(path)}", "our small feature net")
    return PerceptualLoss(net, None, f"small net, {json.loads(about)['origin']}")


def _small_file(path: str) -> Path:
    """A file, or the newest one in the run that made it."""
    if Path(path).is_file():
        return Path(path)
    found = sorted(Path(path).glob(f"checkpoints/*/model/{SMALL_FILE}"))
    found += sorted(Path(path).glob(SMALL_FILE))
    if not found:
        raise InputError(
            f"perceptual_weights {shown(path)}: no such file; make one with "
            "polyglyph train --config features"
        )
    return found[-1]


def _load_strictly(net: nn.Module, state: dict[str, Tensor], what: str, due: str) -> None:
    expected = net.state_dict()
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    wrong = [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
    if missing or extra or wrong:
        first = sorted([*missing, *extra, *wrong])[0]
        raise FormatError(
            f"{what} is not {due}: {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(wrong)} of other shape (first: {first})"
        )
    bad = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if bad:
        raise FormatError(f"{what} holds NaN or infinite values in {bad[0]}; get a fresh copy")
    net.load_state_dict(state)
