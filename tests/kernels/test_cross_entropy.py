from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polyglyph.kernels import cross_entropy as module
from polyglyph.kernels.cross_entropy import (
    IGNORE,
    full_cross_entropy,
    sliced_cross_entropy,
)

V, D = 41, 7
TABLE = torch.tensor(
    [
        [[0, 11], [0, 0], [0, 0], [0, 0]],
        [[11, 30], [30, 31], [33, 35], [40, 41]],
        [[5, 6], [0, 0], [0, 0], [0, 0]],
        [[2, 4], [9, 10], [0, 0], [0, 0]],
    ],
    dtype=torch.int32,
)
ALLOWED = torch.zeros(len(TABLE), V, dtype=torch.bool)
for _slot, _ranges in enumerate(TABLE.tolist()):
    for _start, _stop in _ranges:
        ALLOWED[_slot, _start:_stop] = True


def example(n: int = 53, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, D, generator=generator, dtype=dtype)
    weight = torch.randn(V, D, generator=generator, dtype=dtype)
    slots = torch.randint(0, len(TABLE), (n,), generator=generator)
    targets = torch.multinomial(ALLOWED[slots].double(), 1, generator=generator).squeeze(1)
    targets[::9] = IGNORE
    weights = torch.rand(n, generator=generator, dtype=torch.float32)
    weights[::7] = 0.0
    return hidden, weight, targets, slots, weights


def masked_full(
    hidden: Tensor, weight: Tensor, targets: Tensor, slots: Tensor, weights: Tensor,
    z: float, full: set[int],
) -> Tensor:  # fmt: skip
    """The definition: the whole head, -inf outside the slot, one position after the other."""
    total, norm = hidden.new_zeros(()), 0.0
    for i in range(len(hidden)):
        if targets[i] == IGNORE or ALLOWED[slots[i]].sum() == 1 or weights[i] == 0:
            continue
        logits = weight @ hidden[i]
        if int(slots[i]) not in full:
            logits = logits.masked_fill(~ALLOWED[slots[i]], -torch.inf)
        lse = torch.logsumexp(logits, 0)
        total = total + weights[i].double() * (lse - logits[targets[i]] + z * lse**2)
        norm += float(weights[i])
    return total / norm


@pytest.mark.parametrize("full", [set(), {0}, {0, 2, 3}])
def test_sliced_equals_full_with_minus_infinity_outside(
    full: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * V)
    monkeypatch.setattr(module, "TILE_ELEMENTS", 19)
    hidden, weight, targets, slots, weights = example()
    pairs = []
    for function in (masked_full, sliced_cross_entropy):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if function is masked_full:
            loss = masked_full(h, w, targets, slots, weights, 0.01, full)
        else:
            loss = sliced_cross_entropy(
                h, w, targets, slots, TABLE, weights, z_loss=0.01, full_slots=full
            ).loss
        (3.0 * loss).backward()
        pairs.append((loss.detach(), h.grad, w.grad))
    for expected, got in zip(*pairs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_gradcheck_in_fp64() -> None:
    hidden, weight, targets, slots, weights = example(9)

    def loss(h: Tensor, w: Tensor) -> Tensor:
        result = sliced_cross_entropy(
            h, w, targets, slots, TABLE, weights, z_loss=0.1, full_slots=[0]
        )
        return result.loss

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), weight.requires_grad_()))


def test_slot_sums_add_up_to_the_loss() -> None:
    hidden, weight, targets, slots, weights = example()
    result = sliced_cross_entropy(hidden, weight, targets, slots, TABLE, weights, z_loss=0.5)
    mean = result.slot_losses.sum() / result.normaliser
    torch.testing.assert_close(mean + 0.5 * result.z_loss, result.loss)
    carries = (targets != IGNORE) & (slots != 2) & (weights != 0)
    assert result.slot_counts.tolist() == torch.bincount(slots[carries], minlength=4).tolist()
    torch.testing.assert_close(result.normaliser, weights[carries].sum())
    assert result.slot_weights[2] == 0


def test_a_given_normaliser_makes_parts_add_up_to_the_whole() -> None:
    hidden, weight, targets, slots, weights = example()
    whole = sliced_cross_entropy(hidden, weight, targets, slots, TABLE, weights)
    parts = [
        sliced_cross_entropy(
            hidden[p], weight, targets[p], slots[p], TABLE, weights[p], normaliser=whole.normaliser
        ).loss
        for p in (slice(0, 20), slice(20, None))
    ]
    torch.testing.assert_close(sum(parts), whole.loss)


def test_full_head_equals_torch_cross_entropy() -> None:
    hidden, weight, targets, _, _ = example(dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, ignore_index=IGNORE)
    torch.testing.assert_close(full_cross_entropy(hidden, weight, targets).loss, expected)


@pytest.mark.parametrize("n", [0, 5])
def test_no_position_with_loss_gives_zero_and_zero_gradients(n: int) -> None:
    hidden = torch.randn(n, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    targets, slots = torch.full((n,), 5), torch.full((n,), 2)
    result = sliced_cross_entropy(hidden, weight, targets, slots, TABLE, z_loss=1.0)
    result.loss.backward()
    assert result.loss == 0 and result.normaliser == 0 and result.z_loss == 0
    assert weight.grad is not None and not weight.grad.any()
    assert hidden.grad is not None and not hidden.grad.any()


def test_a_target_outside_its_slot_is_named() -> None:
    hidden, weight, targets, slots, _ = example()
    targets[17], slots[17] = 39, 1
    with pytest.raises(ValueError, match="position 17: target 39 lies outside slot 1"):
        sliced_cross_entropy(hidden, weight, targets, slots, TABLE)
    targets[17], slots[17] = 39, 12
    with pytest.raises(ValueError, match="position 17: slot 12"):
        sliced_cross_entropy(hidden, weight, targets, slots, TABLE)


def test_padding_may_name_any_slot_and_strides_do_not_matter() -> None:
    hidden, weight, targets, slots, weights = example()
    expected = sliced_cross_entropy(hidden, weight, targets, slots, TABLE, weights)
    far = torch.where(targets == IGNORE, torch.tensor([-7, 99]).repeat(27)[:53], slots)
    h = hidden.t().contiguous().t().requires_grad_()
    w = weight.t().contiguous().t().requires_grad_()
    found = sliced_cross_entropy(h, w, targets, far, TABLE, weights)
    assert torch.equal(found.loss, expected.loss)
    found.loss.backward()
    assert h.grad is not None and h.grad.shape == h.shape
    assert w.grad is not None and w.grad.shape == w.shape


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    hidden, weight, targets, slots, weights = example()
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    loss = sliced_cross_entropy(*leaves, targets, slots, TABLE, weights, z_loss=0.1).loss
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(2 * loss, leaves)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, other)


def test_wrong_arguments_are_named() -> None:
    hidden, weight, targets, slots, weights = example()
    for argument, wrong in (
        ("hidden", (hidden.long(), weight, targets, slots)),
        ("weight is on meta", (hidden, weight.to("meta"), targets, slots)),
        ("targets must be integers", (hidden, weight, targets.double(), slots)),
        ("slots must be", (hidden, weight, targets, slots[1:])),
        ("width", (hidden[:, 1:], weight, targets, slots)),
    ):
        with pytest.raises(ValueError, match=argument):
            sliced_cross_entropy(*wrong, TABLE, weights)
    with pytest.raises(ValueError, match="slot_table reaches"):
        sliced_cross_entropy(hidden, weight[:-1], targets, slots, TABLE)


def test_autocast_stays_near_fp32_and_keeps_dtypes() -> None:
    hidden, weight, targets, slots, weights = example(dtype=torch.float32)
    h, w = hidden.requires_grad_(), weight.requires_grad_()
    exact = sliced_cross_entropy(h, w, targets, slots, TABLE, weights).loss
    with torch.autocast("cpu", torch.bfloat16):
        result = sliced_cross_entropy(h, w, targets, slots, TABLE, weights)
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    # Logits of size <=10 in bf16 (8 bits) are off by <=0.04 each; the mean over positions by less.
    torch.testing.assert_close(result.loss, exact, rtol=0, atol=0.04)
    assert h.grad is not None and h.grad.dtype == torch.float32
    assert w.grad is not None and w.grad.dtype == torch.float32
