"""Discriminators, hinge losses and the adaptive weight, against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.tokenizers.losses import ImageLossConfig
from polyglyph.tokenizers.spectral import AudioLossConfig
from polyglyph.train.adversarial import (
    DISCRIMINATORS,
    Judge,
    LeCam,
    PatchDiscriminator,
    StftDiscriminator,
    adaptive_weight,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from polyglyph.train.optimizer import OptimizerConfig

MEDIA: dict[str, tuple[int, ...]] = {"pictures": (2, 3, 37, 61), "sound": (2, 1, 1501)}
JUDGED = {"adversarial": 1.0, "discriminator_width": 8}
LOSSES = {
    "pictures": ImageLossConfig(**JUDGED),
    "sound": AudioLossConfig(**JUDGED, discriminator_windows=(512, 256, 64)),
}


def test_hinge_asks_for_real_above_one_and_fake_below_minus_one() -> None:
    real = [torch.tensor([2.0, 0.5]), torch.tensor([[-1.0]])]
    fake = [torch.tensor([-3.0, 0.0]), torch.tensor([[0.25]])]
    scales = [(0 + 0.5) / 2 + (0 + 1.0) / 2, 2.0 + 1.25]
    due = 0.5 * (scales[0] + scales[1]) / 2
    assert float(discriminator_loss(real, fake)) == pytest.approx(due)
    assert float(discriminator_loss([torch.ones(3)], [-torch.ones(3)])) == 0


def test_the_generator_wants_high_logits_at_every_scale() -> None:
    fake = [torch.tensor([-3.0, 1.0]), torch.tensor([[0.5]])]
    assert float(generator_loss(fake)) == pytest.approx(-(-1.0 + 0.5) / 2)


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer() -> None:
    last = nn.Parameter(torch.randn(3, 4))
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    weight = adaptive_weight((last * a).sum(), (last * b).sum(), last)
    assert float(weight) == pytest.approx(float(a.norm() / (b.norm() + 1e-4)), rel=1e-5)
    assert not weight.requires_grad and last.grad is None


def test_the_adaptive_weight_is_bounded_where_the_judge_says_nothing() -> None:
    last = nn.Parameter(torch.randn(3))
    assert float(adaptive_weight((9 * last).sum(), (0 * last).sum(), last)) == 1e4
    assert float(adaptive_weight((0 * last).sum(), (2 * last).sum(), last)) == 0


def test_both_graphs_survive_the_adaptive_weight() -> None:
    last = nn.Parameter(torch.randn(3))
    out = last.exp()
    reconstruction, term = out.square().sum(), out.sum()
    total = reconstruction + adaptive_weight(reconstruction, term, last) * term
    total.backward()
    assert last.grad is not None and bool(last.grad.isfinite().all())


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_odd_sizes_give_a_map_per_scale(kind: str) -> None:
    judge = DISCRIMINATORS[kind](LOSSES[kind])
    maps = judge(torch.randn(MEDIA[kind]))
    assert len(maps) == (3 if kind == "sound" else 1)
    assert all(m.shape[:2] == (2, 1) and min(m.shape[2:]) > 1 for m in maps)


@torch.no_grad()
def test_the_judge_of_pictures_sees_patches_not_the_whole() -> None:
    judge = PatchDiscriminator(base=8, n_layers=1)
    x = torch.randn(1, 3, 48, 48)
    changed = x.clone()
    changed[..., 40:, 40:] += 1
    a, b = judge(x)[0], judge(changed)[0]
    moved = (a - b).abs()[0, 0] > 1e-6
    assert not moved[:16, :].any() and moved[-3:, -3:].all()


@torch.no_grad()
def test_the_judge_of_sound_has_a_window_per_net() -> None:
    judge = StftDiscriminator(base=4, windows=(64, 256))
    maps = judge(torch.randn(1, 1, 2048))
    assert [m.shape[2] for m in maps] == [2048 // 16 + 1, 2048 // 64 + 1]  # hops of a quarter


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_few_steps_teach_a_judge_to_tell_real_from_fake(kind: str) -> None:
    judge = DISCRIMINATORS[kind](LOSSES[kind])
    real = torch.randn(MEDIA[kind])
    fake = (0.1 * torch.randn(MEDIA[kind])).requires_grad_()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    losses: list[float] = []

    def maps(x: Tensor) -> list[Tensor]:
        return judge(x.detach())

    for _ in range(12):
        loss = discriminator_loss(maps(real), maps(fake))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(1, abs=0.15), "a new judge has no opinion"
    assert losses[-1] < 0.8 * losses[0]
    assert fake.grad is None
    generator_loss(judge(fake)).backward()
    assert fake.grad is not None and float(fake.grad.norm()) > 0


def test_the_judge_of_sound_is_encodecs_net() -> None:
    """Section 3.4: five windows, dilations 1, 2, 4 in time, strides of 2 in frequency."""
    judge = StftDiscriminator()
    assert judge.windows == (2048, 1024, 512, 256, 128)
    convs = [layer for layer in judge.nets[0] if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [32, 32, 32, 32, 32, 1]
    assert [c.stride for c in convs[:4]] == [(1, 1), (1, 2), (1, 2), (1, 2)]
    assert [c.dilation for c in convs[1:4]] == [(1, 1), (2, 1), (4, 1)]
    assert [c.kernel_size for c in convs] == [(3, 9)] * 4 + [(3, 3)] * 2


@torch.no_grad()
def test_both_channels_of_a_stereo_sound_are_judged_each_by_itself() -> None:
    judge = StftDiscriminator(base=8, windows=(64,))
    x = torch.randn(2, 2, 300)
    both, mono = judge(x)[0], judge(x[:, 1:])[0]
    assert len(both) == 4
    torch.testing.assert_close(both[1::2], mono)


def test_features_are_matched_relative_to_the_size_of_the_real_ones() -> None:
    real = [torch.full((2, 3), 4.0), torch.full((1, 5), -2.0)]
    fake = [torch.full((2, 3), 3.0, requires_grad=True), torch.full((1, 5), 2.0)]
    loss = feature_matching_loss(real, fake)
    assert float(loss.detach()) == pytest.approx((1 / 4 + 4 / 2) / 2)
    scaled = feature_matching_loss([10 * r for r in real], [10 * f for f in fake])
    assert float(scaled.detach()) == pytest.approx(float(loss.detach()))
    loss.backward()
    assert fake[0].grad is not None
    silent = feature_matching_loss([torch.zeros(2)], [torch.zeros(2)])
    assert float(silent) == 0


def test_lecam_penalises_logits_beyond_the_running_mean_of_the_other_kind() -> None:
    lecam = LeCam(decay=0.5)
    real, fake = [torch.tensor([1.0, 3.0])], [torch.tensor([-2.0, 0.0])]
    mean_real, mean_fake = 1.0, -0.5  # half-way from 0 to 2 and to -1
    due = F.relu(real[0] - mean_fake).square().mean() + F.relu(mean_real - fake[0]).square().mean()
    assert float(lecam(real, fake)) == pytest.approx(float(due))
    assert (float(lecam.real), float(lecam.fake)) == (mean_real, mean_fake)
    assert float(LeCam(1.0)([torch.full((3,), -1.0)], [torch.ones(3)])) == 0


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_judge_goes_on_from_its_saved_state(kind: str) -> None:
    loss = LOSSES[kind].model_copy(update={"lecam": 0.3, "feature_matching": 1.0})
    torch.manual_seed(0)
    one = Judge(kind, loss, OptimizerConfig())
    real, fake = torch.randn(MEDIA[kind]), torch.randn(MEDIA[kind])
    first = one.learn(real, fake, 1e-3)
    assert set(first) == {"discriminator", "lecam"}
    assert set(one.fool(real, fake)) == {"adversarial", "feature_matching"}
    saved = {k: v.detach().clone() for k, v in one.state().items()}
    assert {k.split(".")[0] for k in saved} == {"judge", "judge_optimizer"}
    other = Judge(kind, loss, OptimizerConfig())
    other.load_state(
        lambda n: {k[len(n) + 1 :]: v for k, v in saved.items() if k.startswith(f"{n}.")}
    )
    for judge in (one, other):
        judge.learn(real, fake, 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert one.lecam is not None and other.lecam is not None
    assert torch.equal(one.lecam.real, other.lecam.real)
