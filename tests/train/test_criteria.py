"""Losses that need a net of their own: built from [loss], weighted, said in the run folder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyglyph.data.media_batches import MediaDataConfig
from polyglyph.tokenizers.features import perceptual_loss
from polyglyph.tokenizers.losses import ImageLossConfig
from polyglyph.tokenizers.neural import CodecStep
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig
from polyglyph.tokenizers.spectral import AudioLossConfig
from polyglyph.train import criteria as module
from polyglyph.train.criteria import Criteria


def net_of(loss: Any, **more: Any) -> Any:
    config = SimpleNamespace(loss=loss, sample_rate=16_000, d_latent=6)
    return SimpleNamespace(config=config, **more)


def test_a_perceptual_loss_is_taken_of_what_was_reconstructed() -> None:
    loss = ImageLossConfig(perceptual=0.5, perceptual_net="random")
    net = net_of(loss)
    criteria = Criteria(net, MediaDataConfig(), 0)
    x, y, batch = (torch.rand(2, 3, 16, 16) for _ in range(3))
    distance = perceptual_loss(loss)
    assert distance is not None
    for target, due in ((None, batch), (y, y)):
        out = CodecStep({}, x, torch.zeros(1), target=target)
        found = criteria.losses(net, batch, out, 0)
        assert set(found) == {"perceptual"}
        assert float(found["perceptual"]) == pytest.approx(0.5 * float(distance(x, due)))
    assert criteria.labels() == {"perceptual_net": "small net, random weights"}
    assert not list(criteria.parameters()) and not criteria.state_dict()


class FakeTeacher(nn.Module):
    """As wide as three features; says what the sound is."""

    width = 3

    def __init__(self, folder: str, sample_rate: int, layer: int | None) -> None:
        super().__init__()
        assert (folder, sample_rate, layer) == ("there", 16_000, 4)

    def forward(self, sound: Tensor) -> Tensor:
        return sound[:, 0, :27].reshape(-1, 9, 3)


def test_a_teacher_trains_the_encoder_through_the_first_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "Teacher", FakeTeacher)
    loss = AudioLossConfig(semantic=2.0, teacher="there", teacher_layer=4)
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(kind="rvq", codebook_size=8, n_codebooks=2, d_code=4), 6)
    net = net_of(loss, quantizer=quantizer)
    criteria = Criteria(net, MediaDataConfig(), 0)
    latents = torch.randn(2, 9, 6, requires_grad=True)
    codes = quantizer.encode(latents)
    sound = torch.randn(2, 1, 40)
    found = criteria.losses(net, sound, CodecStep({}, sound, codes, latents=latents), 0)
    found["semantic"].backward()
    assert latents.grad is not None and float(latents.grad.norm()) > 0
    assert {k for k, p in criteria.named_parameters() if p.grad is not None} == {
        "distillation.project.weight",
        "distillation.project.bias",
    }
    assert criteria.labels() == {"teacher": "there"}
    half = net_of(loss.model_copy(update={"semantic": 1.0}), quantizer=quantizer)
    other = Criteria(half, MediaDataConfig(), 0)
    other.load_state_dict(criteria.state_dict())
    again = other.losses(half, sound, CodecStep({}, sound, codes, latents=latents), 0)
    assert float(again["semantic"].detach()) == pytest.approx(float(found["semantic"].detach()) / 2)


def test_no_weight_means_no_net() -> None:
    for loss in (ImageLossConfig(), AudioLossConfig()):
        criteria = Criteria(net_of(loss), MediaDataConfig(), 0)
        assert criteria.labels() == {} and not criteria.losses(None, torch.ones(1), None, 0)  # type: ignore[arg-type]
