"""Losses of a codec run that are not of one forward: perceptual, semantic, and steadiness.

The nets of the first two are built from the codec's `[loss]` and live beside the codec, never in
it. Knows nothing of files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polyglyph.data.media_batches import MediaDataConfig
from polyglyph.tokenizers.features import perceptual_loss
from polyglyph.tokenizers.losses import ImageLossConfig
from polyglyph.tokenizers.neural import CodecStep
from polyglyph.tokenizers.semantic import Distillation, Teacher, first_codebook
from polyglyph.train.wear import wear


class Criteria(nn.Module):
    """losses(net, batch, what came of it, step) → summands, weighted; its parameters train with
    the codec."""

    def __init__(self, net: Any, data: MediaDataConfig, seed: int) -> None:
        super().__init__()
        self.loss = net.config.loss
        self.data, self.seed = data, seed
        # Behind a tuple: what never trains is no part of the saved state.
        self._perceptual = (
            perceptual_loss(self.loss) if isinstance(self.loss, ImageLossConfig) else None,
        )
        self.distillation: Distillation | None = None
        if getattr(self.loss, "semantic", 0.0):
            teacher = Teacher(self.loss.teacher, net.config.sample_rate, self.loss.teacher_layer)
            self.distillation = Distillation(teacher, net.config.d_latent)

    def to(self, device: torch.device) -> Criteria:  # type: ignore[override]
        for part in (*self._perceptual, self.distillation):
            if part is not None:
                part.to(device)
        return self

    def losses(self, net: Any, batch: Tensor, out: CodecStep, step: int) -> dict[str, Tensor]:
        found = {}
        perceptual = self._perceptual[0]
        if perceptual is not None:
            due = batch if out.target is None else out.target
            found["perceptual"] = self.loss.perceptual * perceptual(out.reconstruction, due)
        if self.distillation is not None:
            assert out.latents is not None
            first = first_codebook(net.quantizer, out.latents, out.codes)
            found["semantic"] = self.loss.semantic * self.distillation(batch, first)
        if self.loss.steady:
            found["steady"] = self.loss.steady * self._steady(net, batch, out, step)
        return found

    def _steady(self, net: Any, batch: Tensor, out: CodecStep, step: int) -> Tensor:
        """How far decoded (half of them) and damaged media lie from where the clean ones do.

        Damage alone, given to the encoder in place of the clean medium, took the share of codes
        that decoding and encoding keep from 46 to 57 % only: it is edges that decoding changes."""
        assert out.latents is not None
        decoded = net.decoded(out)
        again = torch.cat([decoded.to(batch), batch[len(decoded) :]])
        worn = wear(again, self.data.noise, self.data.shift, self.seed, step)
        return net.quantizer.distance(net.vectors(worn), out.latents)

    def labels(self) -> dict[str, str]:
        """What a run folder says of the nets that judged its codec."""
        said = {}
        if self._perceptual[0] is not None:
            said["perceptual_net"] = self._perceptual[0].label
        if self.distillation is not None:
            said["teacher"] = str(self.loss.teacher)
        return said
