"""Discriminators, hinge losses and the adaptive weight of the adversarial term.

PatchGAN over pictures (Isola et al., 1611.07004, as in VQ-GAN) and a multi-scale STFT
discriminator over sound (EnCodec, 2210.13438, section 3.4). They live in run folders only, never
in a shipped checkpoint. Knows nothing of codecs beyond the tensor they reconstruct.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) → one logit map per scale, each judging overlapping patches."""

    def __init__(self, base: int = 32, n_layers: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, base, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        d = base
        for _ in range(n_layers - 1):
            layers += [nn.Conv2d(d, 2 * d, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * d)]
            layers.append(nn.LeakyReLU(0.2))
            d *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(d, 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


class StftDiscriminator(nn.Module):
    """Sound (B, 1, S) → one logit map per window length, over real and imaginary parts."""

    def __init__(self, base: int = 16, windows: tuple[int, ...] = (1024, 512, 256)) -> None:
        super().__init__()
        self.windows = windows
        self.nets = nn.ModuleList(self._net(base) for _ in windows)

    @staticmethod
    def _net(base: int) -> nn.Sequential:
        norm = parametrizations.weight_norm
        return nn.Sequential(
            norm(nn.Conv2d(2, base, (3, 9), padding=(1, 4))),
            nn.LeakyReLU(0.2),
            norm(nn.Conv2d(base, base, (3, 9), stride=(1, 2), padding=(1, 4))),
            nn.LeakyReLU(0.2),
            norm(nn.Conv2d(base, base, (3, 9), stride=(1, 2), dilation=(2, 1), padding=(2, 4))),
            nn.LeakyReLU(0.2),
            norm(nn.Conv2d(base, 1, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for window, net in zip(self.windows, self.nets, strict=True):
            spectrum = torch.stft(
                x.flatten(0, 1).float(),
                window,
                hop_length=window // 4,
                window=torch.hann_window(window, device=x.device),
                normalized=True,
                return_complex=True,
            )
            maps.append(net(torch.view_as_real(spectrum).permute(0, 3, 2, 1)))  # (B, 2, T, F)
        return maps


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Hinge: real above 1, fake below -1; mean over scales."""
    terms = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return 0.5 * torch.stack(terms).mean()


def generator_loss(fake: list[Tensor]) -> Tensor:
    return -torch.stack([f.mean() for f in fake]).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the gradient norms at the last layer, at most 1e4 (2012.09841, equation 7)."""
    (r,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (a,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (r.norm() / (a.norm() + 1e-4)).clamp(0, 1e4).detach()


DISCRIMINATORS = {"pictures": PatchDiscriminator, "sound": StftDiscriminator}
