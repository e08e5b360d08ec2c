"""The codebook of running means: its update by hand, restarts where vectors are far, the evenness
of what it learns. Half-dead codebooks and two processes: test_quantize_codebooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polyglyph.tokenizers.quantize import QuantizerConfig
from polyglyph.tokenizers.running import RunningCodebook


def codebook_of(k: int, d: int, **options: float) -> RunningCodebook:
    config = QuantizerConfig(kind="running", codebook_size=k, d_code=d, **options)  # type: ignore[arg-type]
    return RunningCodebook(torch.zeros(k, d), config)


def vectors(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(1, n, d, generator=torch.Generator().manual_seed(seed))


def test_an_update_is_the_running_mean_of_each_codes_vectors() -> None:
    torch.manual_seed(0)
    learner = codebook_of(5, 3, decay=0.7, threshold_ema_dead_code=0.0).train()
    learner(vectors(40, 3))  # the first codes are vectors of it
    counts, sums = learner.counts.clone(), learner.sums.clone()
    x = vectors(31, 3, seed=1)
    codes = learner(x)[1][0]
    book = (sums / counts[:, None]).double()
    for i, vector in enumerate(x[0].double()):
        assert int((book - vector).norm(dim=1).argmin()) == int(codes[i])
    for k in range(5):
        mine = x[0][codes == k]
        due = 0.7 * counts[k] + 0.3 * len(mine)
        torch.testing.assert_close(learner.counts[k], due)
        torch.testing.assert_close(learner.sums[k], 0.7 * sums[k] + 0.3 * mine.sum(0))


def test_the_first_batch_gives_all_codes_and_an_empty_codebook_no_gap() -> None:
    torch.manual_seed(0)
    learner = codebook_of(16, 3, threshold_ema_dead_code=0.1).train()
    x = vectors(64, 3)
    quantized, codes, loss = learner(x)
    assert codes.unique().numel() == 16 and torch.isfinite(loss)
    assert float(torch.cdist(quantized[0], x[0]).min(1).values.max()) < 1e-3


def test_fewer_vectors_than_codes_fill_the_codebook_over_several_steps() -> None:
    torch.manual_seed(0)
    learner = codebook_of(16, 3, decay=0.99, threshold_ema_dead_code=0.01).train()
    seen = []
    for step in range(4):
        learner(vectors(5, 3, seed=step))
        seen.append(int((learner.counts > 0).sum()))
    assert seen == [5, 10, 15, 16]


def test_restarts_go_where_vectors_are_far_from_every_code() -> None:
    """Of 300 vectors three lie far out; random restarts would find one of them in 100."""
    torch.manual_seed(0)
    far = torch.tensor([[9.0, 0], [0, 9.0], [-9.0, -9.0]])
    x = torch.cat([0.05 * vectors(297, 2)[0], far])[None]
    learner = codebook_of(6, 2, threshold_ema_dead_code=0.2).train()
    for _ in range(12):
        codes = learner(x)[1]
    own = codes[0, -3:]
    assert own.unique().numel() == 3 and not torch.isin(own, codes[0, :-3]).any()


def test_the_error_falls_near_that_of_k_means() -> None:
    torch.manual_seed(0)
    x = vectors(600, 2, seed=3)
    learner = codebook_of(16, 2, decay=0.9, threshold_ema_dead_code=1.0).train()
    for _ in range(60):
        quantized = learner(x)[0]
    error = float((quantized - x).square().sum(-1).mean())
    centres = x[0, :16].clone()
    for _ in range(60):
        nearest = torch.cdist(x[0], centres).argmin(1)
        for k in range(16):
            if (nearest == k).any():
                centres[k] = x[0][nearest == k].mean(0)
    due = float((x[0] - centres[nearest]).square().sum(-1).mean())
    assert error < 1.15 * due


def test_the_gradient_passes_straight_through_and_commitment_pulls() -> None:
    torch.manual_seed(0)
    learner = codebook_of(4, 3, commitment=0.5).train()
    x = vectors(20, 3).requires_grad_()
    quantized, _, loss = learner(x)
    weights = vectors(20, 3, seed=9)
    (gradient,) = torch.autograd.grad((quantized * weights).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, weights)
    (pull,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(pull, 0.5 * 2 * (x - quantized).detach() / x.numel())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_evaluation_changes_nothing_and_what_is_not_finite_comes_out(bad: float) -> None:
    torch.manual_seed(0)
    learner = codebook_of(4, 3).train()
    learner(vectors(20, 3))
    before = learner.counts.clone(), learner.sums.clone()
    learner.eval()(vectors(20, 3, seed=4))
    assert torch.equal(learner.counts, before[0]) and torch.equal(learner.sums, before[1])
    x = vectors(20, 3)
    x[0, 3, 1] = bad
    quantized, _, loss = learner.train()(x)
    assert not torch.isfinite(quantized.sum() + loss)
