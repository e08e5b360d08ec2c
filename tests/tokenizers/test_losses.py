"""Every summand of the picture losses against its formula, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyglyph.config import build
from polyglyph.errors import ConfigError, InputError
from polyglyph.tokenizers.losses import (
    ImageLossConfig,
    check_range,
    image_losses,
    object_weights,
    structure_loss,
)


def pictures(h: int = 8, w: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.rand(2, 3, h, w, generator=generator) * 2 - 1 for _ in range(2))


def with_object(side: int = 17) -> torch.Tensor:
    """Grey, with a red square of 4 pixels at (6, 7)."""
    x = torch.full((1, 3, side, side), -0.2)
    x[:, :, 6:10, 7:11] = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1)
    return x


def test_identical_pictures_lose_nothing() -> None:
    x, _ = pictures()
    config = ImageLossConfig(object_weight=4.0)
    assert {k: float(v) for k, v in image_losses(x, x, config).items()} == {
        "l1": 0,
        "l2": 0,
        "structure": 0,
    }


def test_pixel_losses_are_weighted_means_times_their_weight() -> None:
    x, y = pictures()
    config = ImageLossConfig(l1=0.5, l2=3.0, object_weight=2.0)
    losses = image_losses(x, y, config)
    away = (x - y).numpy().astype(np.float64)
    weights = object_weights(y, 2.0).numpy()
    assert float(losses["l1"]) == pytest.approx(0.5 * np.mean(np.abs(away) * weights), rel=1e-5)
    assert float(losses["l2"]) == pytest.approx(3.0 * np.mean(away**2 * weights), rel=1e-5)


def test_structure_is_the_difference_of_slopes_at_three_scales() -> None:
    x, y = pictures(8, 12)
    weights = torch.rand(2, 1, 8, 12) + 0.5
    a, b, w = (t.numpy().astype(np.float64) for t in (x, y, weights))
    total = 0.0
    for _ in range(3):
        error = a - b
        total += np.mean(np.abs(np.diff(error, axis=3)) * w[..., 1:])
        total += np.mean(np.abs(np.diff(error, axis=2)) * w[..., 1:, :])
        a, b, w = (
            t[..., : t.shape[2] // 2 * 2, : t.shape[3] // 2 * 2]
            .reshape(*t.shape[:2], t.shape[2] // 2, 2, t.shape[3] // 2, 2)
            .mean((3, 5))
            for t in (a, b, w)
        )
    assert float(structure_loss(x, y, weights)) == pytest.approx(total / 3, rel=1e-5)


def test_structure_does_not_see_a_shift_of_brightness() -> None:
    x, _ = pictures()
    config = ImageLossConfig()
    losses = image_losses(x + 0.25, x, config)
    assert float(losses["structure"]) == pytest.approx(0, abs=1e-6)
    assert float(losses["l1"]) == pytest.approx(0.25, rel=1e-5)


def test_structure_takes_odd_sizes_and_can_be_left_out() -> None:
    x, y = pictures(13, 9)
    assert float(image_losses(x, y, ImageLossConfig())["structure"]) > 0
    assert set(image_losses(x, y, ImageLossConfig(structure=0))) == {"l1", "l2"}


def test_objects_weigh_more_by_their_weight_and_the_mean_is_one() -> None:
    weights = object_weights(with_object(), 4.0)
    assert weights.shape == (1, 1, 17, 17)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-6)
    inside, outside = float(weights[0, 0, 8, 9]), float(weights[0, 0, 0, 0])
    assert inside / outside == pytest.approx(5, rel=1e-6)


def test_the_rim_of_two_pixels_around_an_object_weighs_as_much() -> None:
    weights = object_weights(with_object(), 4.0)[0, 0]
    heavy = (weights > weights[0, 0] * 1.5).nonzero()
    assert heavy.amin(0).tolist() == [4, 5] and heavy.amax(0).tolist() == [11, 12]
    assert len(heavy) == 64


def test_a_faint_difference_is_background_and_no_weight_means_ones() -> None:
    faint = with_object() * 0.1
    assert torch.equal(object_weights(faint, 4.0), torch.ones(1, 1, 17, 17))
    assert torch.equal(object_weights(with_object(), 0.0), torch.ones(1, 1, 17, 17))


def test_an_error_on_an_object_costs_more_than_the_same_beside_it() -> None:
    target = with_object()
    on, beside = target.clone(), target.clone()
    on[:, :, 8, 9] += 0.5
    beside[:, :, 0, 0] += 0.5
    config = ImageLossConfig(object_weight=4.0)
    a, b = image_losses(on, target, config), image_losses(beside, target, config)
    assert float(a["l1"]) == pytest.approx(5 * float(b["l1"]), rel=1e-5)


def test_losses_are_taken_in_fp32() -> None:
    x, y = pictures()
    low = image_losses(x.bfloat16(), y.bfloat16(), ImageLossConfig())
    due = image_losses(x.bfloat16().float(), y.bfloat16().float(), ImageLossConfig())
    assert low == due and low["l1"].dtype == torch.float32


def test_the_weights_of_old_codecs_are_dumped_as_they_were() -> None:
    """Their fingerprint is over the dump: a new field at its default has no place in it."""
    assert set(ImageLossConfig().model_dump()) == {
        "l1", "l2", "object_weight", "structure", "adversarial", "discriminator_start",
    }  # fmt: skip
    assert ImageLossConfig(adversarial=1.0, lecam=0.1).model_dump()["lecam"] == 0.1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"perceptual": 1.0}, 'perceptual needs perceptual_net: "vgg16", "small" or "random"'),
        ({"perceptual": 1.0, "perceptual_net": "vgg16"}, "needs perceptual_weights, the file of"),
        ({"perceptual": 1.0, "perceptual_net": "vgg16"}, 'without them are perceptual_net "small"'),
        ({"perceptual_net": "random", "perceptual_weights": "x"}, "takes no perceptual_weights"),
        ({"perceptual_heads": "x"}, 'are of perceptual_net "vgg16"'),
        ({"lecam": 0.1}, "lecam needs a discriminator"),
        ({"feature_matching": 1.0}, "feature_matching needs a discriminator"),
        ({"discriminator_width": 12}, "multiple of 8"),
    ],
)
def test_a_net_without_weights_is_refused_with_a_sentence(section: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ImageLossConfig, section, "[loss]")


def test_values_far_outside_of_one_are_refused_and_slight_clipping_is_not() -> None:
    check_range(torch.tensor([-1.4, 1.4]), "pictures")
    check_range(torch.tensor([float("nan")]), "pictures")
    for wrong in ([0.0, 255.0], [-32768.0, 0.0]):
        with pytest.raises(InputError, match=r"pictures are due in \[-1, 1\], these reach from"):
            check_range(torch.tensor(wrong), "pictures")
