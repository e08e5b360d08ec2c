"""Pure reconstruction losses of the image and video codecs. No discriminators, no running state.

Pictures are (B, C, H, W) in [-1, 1]; every loss is a mean, so that weights carry over between
sizes. Knows nothing of codecs or training loops; the spectral losses of sound are in spectral.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from polyglyph.config import Config


class ImageLossConfig(Config):
    """`[loss]` of the image and video codecs: the weight of each summand.

    object_weight: how much heavier than the background a pixel weighs that stands out from it.
    structure: weight of the multi-scale gradient loss, the closed-form stand-in for a learned
    perceptual net. adversarial, discriminator_start: PatchGAN of train/adversarial.py.
    """

    l1: float = Field(1.0, ge=0)
    l2: float = Field(1.0, ge=0)
    object_weight: float = Field(0.0, ge=0)
    structure: float = Field(0.5, ge=0)
    adversarial: float = Field(0.0, ge=0)
    discriminator_start: int = Field(0, ge=0)


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


def image_losses(x: Tensor, target: Tensor, config: ImageLossConfig) -> dict[str, Tensor]:
    """The weighted summands of the reconstruction loss of x (B, 3, H, W) against target."""
    x, target = x.float(), target.float()
    weights = object_weights(target, config.object_weight)
    losses = {
        "l1": config.l1 * ((x - target).abs() * weights).mean(),
        "l2": config.l2 * ((x - target).square() * weights).mean(),
    }
    if config.structure:
        losses["structure"] = config.structure * structure_loss(x, target, weights)
    return losses
