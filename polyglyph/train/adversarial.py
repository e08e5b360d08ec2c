"""Discriminators, their losses, and the judge that trains one beside a codec.

PatchGAN over pictures (Isola et al., 1611.07004, as in VQ-GAN) and EnCodec's multi-scale STFT
discriminator over sound (2210.13438, section 3.4); hinge, feature matching, the adaptive weight of
VQ-GAN (2012.09841) and LeCam's regularisation (2104.03310). They live in run folders only, never
in a shipped checkpoint. Knows nothing of codecs beyond the tensor they reconstruct.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from polyglyph.train.optimizer import (
    OptimizerConfig,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    set_rate,
)


@dataclass
class Judgement:
    """What a discriminator says of a batch."""

    maps: list[Tensor]  # logits (B, 1, ...), one map per scale
    features: list[Tensor]  # of its inner layers, all scales


def _run(layers: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output of `layers` and what stands behind each activation."""
    features = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.LeakyReLU):
            features.append(x)
    return x, features


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) → one logit map, each logit judging a patch that overlaps others'."""

    def __init__(self, base: int = 32, n_layers: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, base, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        d = base
        for i in range(1, n_layers):
            d_out = base * min(2**i, 8)
            layers += [nn.Conv2d(d, d_out, 4, stride=2, padding=1), nn.GroupNorm(8, d_out)]
            layers.append(nn.LeakyReLU(0.2))
            d = d_out
        self.layers = nn.Sequential(*layers, nn.Conv2d(d, 1, 3, padding=1))

    def judge(self, x: Tensor) -> Judgement:
        logits, features = _run(self.layers, x)
        return Judgement([logits], features)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.judge(x).maps


class StftDiscriminator(nn.Module):
    """Sound (B, C, S) → one logit map (BC, 1, T, F) per window length, over real and imaginary
    parts: EnCodec's MS-STFTD, with its dilations 1, 2, 4 in time and strides of 2 in frequency."""

    def __init__(
        self, base: int = 32, windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    ) -> None:
        super().__init__()
        self.windows = windows
        self.nets = nn.ModuleList(self._net(base) for _ in windows)

    @staticmethod
    def _net(base: int) -> nn.Sequential:
        norm = parametrizations.weight_norm
        layers = [norm(nn.Conv2d(2, base, (3, 9), padding=(1, 4))), nn.LeakyReLU(0.2)]
        for dilation in (1, 2, 4):
            conv = nn.Conv2d(
                base, base, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4)
            )
            layers += [norm(conv), nn.LeakyReLU(0.2)]
        layers += [norm(nn.Conv2d(base, base, 3, padding=1)), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, norm(nn.Conv2d(base, 1, 3, padding=1)))

    def judge(self, x: Tensor) -> Judgement:
        sound = x.flatten(0, 1).float()
        found = Judgement([], [])
        for window, net in zip(self.windows, self.nets, strict=True):
            spectrum = torch.stft(
                sound,
                window,
                hop_length=window // 4,
                window=torch.hann_window(window, device=x.device),
                pad_mode="constant",  # a sound may be shorter than half a window
                normalized=True,
                return_complex=True,
            )
            parts = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (BC, 2, T, F)
            logits, features = _run(net, parts)
            found.maps.append(logits)
            found.features += features
        return found

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.judge(x).maps


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Hinge: real above 1, fake below -1; mean over scales."""
    terms = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return 0.5 * torch.stack(terms).mean()


def generator_loss(fake: list[Tensor]) -> Tensor:
    return -torch.stack([f.mean() for f in fake]).mean()


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean over layers of the L1 distance of features, relative to the real ones' size."""
    terms = [
        (r.detach() - f).abs().mean() / r.detach().abs().mean().clamp_min(1e-8)
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the gradient norms at the last layer, at most 1e4 (2012.09841, equation 7)."""
    (r,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (a,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (r.norm() / (a.norm() + 1e-4)).clamp(0, 1e4).detach()


class LeCam(nn.Module):
    """Keeps real logits near the running mean of fake ones and the other way round (2104.03310).

    forward(real, fake) → () penalty; the means move first."""

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        for mean, maps in ((self.real, real), (self.fake, fake)):
            now = torch.stack([m.detach().float().mean() for m in maps]).mean()
            mean.lerp_(now, 1 - self.decay)
        terms = [
            F.relu(r - self.fake).square().mean() + F.relu(self.real - f).square().mean()
            for r, f in zip(real, fake, strict=True)
        ]
        return torch.stack(terms).mean()


def _patches(loss: Any) -> nn.Module:
    return PatchDiscriminator(loss.discriminator_width, loss.discriminator_layers)


def _spectra(loss: Any) -> nn.Module:
    return StftDiscriminator(loss.discriminator_width, tuple(loss.discriminator_windows))


# What a codec's `discriminator` names: from its `[loss]` to the net.
DISCRIMINATORS: dict[str, Callable[[Any], nn.Module]] = {"pictures": _patches, "sound": _spectra}


class Judge(nn.Module):
    """A discriminator with its optimizer, trained beside a codec whose `[loss]` is `loss`."""

    def __init__(self, kind: str, loss: Any, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.loss = loss
        self.net = DISCRIMINATORS[kind](loss)
        self.lecam = LeCam() if loss.lecam else None
        self.optimizer = make_optimizer(self.net, optimizer)

    def fool(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The generator's terms, not weighted: "adversarial", and "feature_matching" if due."""
        said = self.net.judge(fake)
        terms = {"adversarial": generator_loss(said.maps)}
        if self.loss.feature_matching:
            with torch.no_grad():
                due = self.net.judge(real)
            terms["feature_matching"] = feature_matching_loss(due.features, said.features)
        return terms

    def learn(self, real: Tensor, fake: Tensor, rate: float) -> dict[str, Tensor]:
        """One step of the discriminator; its losses."""
        set_rate(self.optimizer, rate)
        on_real, on_fake = self.net(real.detach()), self.net(fake.detach())
        losses = {"discriminator": discriminator_loss(on_real, on_fake)}
        if self.lecam is not None:
            losses["lecam"] = self.loss.lecam * self.lecam(on_real, on_fake)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        return losses

    def state(self) -> dict[str, Tensor]:
        """Weights, running means and the optimizer's state, under flat names."""
        tensors = {f"judge.{k}": v for k, v in self.state_dict().items()}
        own = optimizer_tensors(self.optimizer)
        return tensors | {f"judge_optimizer.{k}": v for k, v in own.items()}

    def load_state(self, part: Callable[[str], dict[str, Tensor]]) -> None:
        """Inverse of `state`; part("judge") gives the tensors of that name, without it."""
        self.load_state_dict(part("judge"))
        load_optimizer(self.optimizer, part("judge_optimizer"))
