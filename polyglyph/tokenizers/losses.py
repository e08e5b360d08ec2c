"""Pure reconstruction losses of the image and video codecs, and the weights of all of them.

Pictures are (B, C, H, W) in [-1, 1]; every loss is a mean, so that weights carry over between
sizes. No discriminators, no running state. Knows nothing of codecs or training loops; the spectral
losses of sound are in spectral.py, perceptual nets in features.py.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from polyglyph.config import Config
from polyglyph.errors import InputError


def added(default: Any, **limits: Any) -> Any:
    """A field that is left out of a dump at its default, so that codecs saved before there was
    such a field keep their fingerprint."""
    return Field(default, exclude_if=lambda value: value == default, **limits)


class JudgedLossConfig(Config):
    """What the `[loss]` of every codec says of its discriminator and of how summands are weighed.

    adversarial: weight of the discriminator's hinge term; discriminator_start: the step from which
    it trains and counts; discriminator_width: its filters. adaptive_weight: times the ratio of
    gradient norms at the last layer (2012.09841). lecam: weight of LeCam's regularisation of the
    discriminator (2104.03310). feature_matching: weight of the distance between the
    discriminator's features of a medium and of its reconstruction. balancer: EnCodec's
    (2210.13438): every summand's gradient at the output is brought to its share of the weights.
    steady: weight of the distance, before quantization, between a medium and the same decoded or
    damaged (`[data] noise, shift`): what passed a codec once keeps its codes.
    """

    adversarial: float = Field(0.0, ge=0)
    discriminator_start: int = Field(0, ge=0)
    discriminator_width: int = added(32, ge=8, multiple_of=8)
    adaptive_weight: bool = added(True)
    lecam: float = added(0.0, ge=0)
    feature_matching: float = added(0.0, ge=0)
    balancer: bool = added(False)
    steady: float = added(0.0, ge=0)

    @model_validator(mode="after")
    def _judged_by_something(self) -> JudgedLossConfig:
        for name in ("lecam", "feature_matching"):
            if getattr(self, name) and not self.adversarial:
                raise ValueError(f"{name} needs a discriminator; give adversarial a weight")
        return self


class ImageLossConfig(JudgedLossConfig):
    """`[loss]` of the image and video codecs: the weight of each summand.

    object_weight: how much heavier than the background a pixel weighs that stands out from it.
    structure: weight of the multi-scale gradient loss, the closed-form stand-in for a learned
    perceptual net. discriminator_layers: strided layers of the PatchGAN of train/adversarial.py.

    log_l2: weight of the mean over pictures of ln of each one's mean squared error, which is what a
    mean PSNR counts: a smooth picture's error weighs as much as a busy one's.
    perceptual: weight of the distance between features of a net (LPIPS, 1801.03924).
    perceptual_net: "vgg16" (perceptual_weights names its file, perceptual_heads the file of the
    LPIPS heads), "small" (our own, trained on procedural pictures by the config `features`, as
    shipped; perceptual_weights may name another file or run) or "random" (the same untrained).
    """

    l1: float = Field(1.0, ge=0)
    l2: float = Field(1.0, ge=0)
    object_weight: float = Field(0.0, ge=0)
    structure: float = Field(0.5, ge=0)
    log_l2: float = added(0.0, ge=0)
    discriminator_layers: int = added(2, ge=1, le=6)
    perceptual: float = added(0.0, ge=0)
    perceptual_net: Literal["vgg16", "small", "random"] | None = added(None)
    perceptual_weights: str | None = added(None)
    perceptual_heads: str | None = added(None)

    @model_validator(mode="after")
    def _net_and_weights(self) -> ImageLossConfig:
        net, weights = self.perceptual_net, self.perceptual_weights
        if self.perceptual and net is None:
            raise ValueError('perceptual needs perceptual_net: "vgg16", "small" or "random"')
        if net == "vgg16" and weights is None:
            raise ValueError(
                'perceptual_net "vgg16" needs perceptual_weights, the file of a VGG16 state dict; '
                'features without them are perceptual_net "small"'
            )
        if net == "random" and weights is not None:
            raise ValueError('perceptual_net "random" takes no perceptual_weights')
        if self.perceptual_heads is not None and net != "vgg16":
            raise ValueError('perceptual_heads are of perceptual_net "vgg16"')
        return self


def check_range(x: Tensor, what: str) -> None:
    """InputError unless `x` lies in about [-1, 1], where codecs train; NaN is let through.

    Half of the range beyond it is allowed: sounds may clip a little."""
    low, high = (float(v) for v in x.detach().aminmax())
    if max(-low, high) > 1.5:
        raise InputError(
            f"{what} are due in [-1, 1], these reach from {low:.4g} to {high:.4g}; "
            "divide pixels of 0…255 by 127.5 and subtract 1, 16-bit sound by 32768"
        )


def object_weights(target: Tensor, weight: float) -> Tensor:
    """(B, 1, H, W) pixel weights of mean one: 1 on the background, 1 + weight on what stands out.

    The background is the median colour of each picture. Objects of the built-in world cover some
    8 % of a picture: with a plain mean a codec learns the background first and shapes last.
    """
    if not weight:
        return torch.ones_like(target[:, :1])
    background = target.flatten(2).median(dim=2).values[:, :, None, None]
    away = (target - background).abs().amax(dim=1, keepdim=True)
    # Widened by two pixels: the dark rim just outside an object decides what shape it is.
    away = F.max_pool2d((away > 0.15).to(target.dtype), 5, stride=1, padding=2)
    weights = 1 + weight * away
    return weights / weights.mean()


def structure_loss(x: Tensor, y: Tensor, weights: Tensor, n_scales: int = 3) -> Tensor:
    """L1 between horizontal and vertical differences at several scales, pixel-weighted."""
    total = x.new_zeros(())
    for _ in range(n_scales):
        dx = ((x - y)[..., :, 1:] - (x - y)[..., :, :-1]).abs() * weights[..., :, 1:]
        dy = ((x - y)[..., 1:, :] - (x - y)[..., :-1, :]).abs() * weights[..., 1:, :]
        total = total + dx.mean() + dy.mean()
        x, y, weights = (F.avg_pool2d(t, 2) for t in (x, y, weights))
    return total / n_scales


# Mean squared errors below this one (33 dB) hardly count: flat pictures would rule the rest.
_LOG_FLOOR = 2e-3


def log_l2_loss(x: Tensor, target: Tensor) -> Tensor:
    errors = (x - target).square().flatten(1).mean(1)
    return (errors + _LOG_FLOOR).log().mean()


def image_losses(x: Tensor, target: Tensor, config: ImageLossConfig) -> dict[str, Tensor]:
    """The weighted summands of the reconstruction loss of x (B, 3, H, W) against target."""
    x, target = x.float(), target.float()
    weights = object_weights(target, config.object_weight)
    losses = {
        "l1": config.l1 * ((x - target).abs() * weights).mean(),
        "l2": config.l2 * ((x - target).square() * weights).mean(),
    }
    if config.log_l2:
        losses["log_l2"] = config.log_l2 * log_l2_loss(x, target)
    if config.structure:
        losses["structure"] = config.structure * structure_loss(x, target, weights)
    return losses
