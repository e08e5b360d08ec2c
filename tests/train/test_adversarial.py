"""Discriminators, hinge losses and the adaptive weight, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polyglyph.train.adversarial import (
    DISCRIMINATORS,
    PatchDiscriminator,
    StftDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)

MEDIA: dict[str, tuple[int, ...]] = {"pictures": (2, 3, 37, 61), "sound": (2, 1, 1501)}


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
    judge = DISCRIMINATORS[kind]()
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
    judge = DISCRIMINATORS[kind](base=8)
    real = torch.randn(MEDIA[kind])
    fake = (0.1 * torch.randn(MEDIA[kind])).requires_grad_()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    losses: list[float] = []

    def maps(x: Tensor) -> list[Tensor]:
        return judge(x.detach())

    for _ in range(8):
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
