from __future__ import annotations

import pydantic
import pytest
import torch

from polyglyph.model.sampling import Sampling, probabilities, sample

LOGITS = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]]))


def test_draws_follow_the_probabilities() -> None:
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = sample(LOGITS[:1].expand(1000, -1), Sampling(), uniforms)
    assert torch.bincount(drawn, minlength=4).tolist() == [100, 400, 200, 300]


def test_temperature_zero_is_greedy_and_ties_go_to_the_lowest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
    assert sample(logits, Sampling(temperature=0), torch.rand(2)).tolist() == [1, 0]


def test_temperature_divides_the_logits() -> None:
    expected = (LOGITS.double() / 2.5).softmax(-1)
    torch.testing.assert_close(probabilities(LOGITS, Sampling(temperature=2.5)), expected)


def test_top_k_keeps_the_k_most_likely() -> None:
    p = probabilities(LOGITS, Sampling(top_k=2))
    expected = torch.tensor([[0, 4 / 7, 0, 3 / 7], [7 / 8, 1 / 8, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(p, expected, atol=1e-7, rtol=0)
    assert torch.equal(probabilities(LOGITS, Sampling(top_k=9)), probabilities(LOGITS, Sampling()))


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    p = probabilities(LOGITS, Sampling(top_p=0.65))
    expected = torch.tensor([[0, 4 / 7, 0, 3 / 7], [1, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(p, expected, atol=1e-7, rtol=0)
    assert probabilities(LOGITS, Sampling(top_p=1e-9)).max(-1).values.tolist() == [1.0, 1.0]


def test_top_p_measures_what_top_k_left() -> None:
    p = probabilities(LOGITS, Sampling(top_k=2, top_p=0.5))
    assert (p > 0).tolist() == [[False, True, False, False], [True, False, False, False]]


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_impossible_columns_are_never_drawn(u: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    drawn = sample(logits, Sampling(), torch.tensor([u], dtype=torch.float64))
    assert drawn.item() in (1, 3)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}):
        with pytest.raises(pydantic.ValidationError):
            Sampling.model_validate(wrong)
