"""Codes that are read off the coordinates, against their definition by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from polyglyph.tokenizers.neural import inference_state
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig

KINDS: dict[str, dict[str, Any]] = {
    "fsq": {"levels": [5, 4, 3]},
    "rfsq": {"levels": [4, 3], "n_codebooks": 3},
    "lfq": {"d_code": 3, "n_codebooks": 2},
    "bsq": {"d_code": 4},
}


def bare(kind: str, **options: Any) -> Quantizer:
    """Without projections: the codes' own space."""
    config = QuantizerConfig(**{"kind": kind, **KINDS[kind], **options})
    quantizer = Quantizer(config, Quantizer(config, 1).scheme.width)
    for layer in (quantizer.project_in, quantizer.project_out):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return quantizer


def test_fsq_rounds_every_coordinate_and_counts_from_the_first() -> None:
    quantizer = bare("fsq")
    far = 20.0  # tanh is 1 there
    z = torch.tensor([[[-far, -far, -far], [far, -far, -far], [-far, far, -far], [0, 0, 0]]])
    codes = quantizer.encode(z)[0, :, 0].tolist()
    assert codes == [0, 4, 3 * 5, 2 + 2 * 5 + 1 * 20]
    decoded = quantizer.decode(torch.tensor([[[0], [4], [15], [32]]]))[0]
    due = [[-1, -1, -1], [1, -1, -1], [-1, 0.5, -1], [0, 0, 0]]  # 4 levels: -1, -½, 0, ½
    assert torch.equal(decoded, torch.tensor(due, dtype=torch.float32))


def test_every_combination_of_levels_is_one_code() -> None:
    books = bare("fsq").codebook[0]
    grid = itertools.product([-1, 0, 1], [-1, -0.5, 0, 0.5], [-1, -0.5, 0, 0.5, 1])
    assert books.tolist() == [[a, b, c] for c, b, a in grid]
    z = torch.randn(1, 5000, 3) * 2
    assert bare("fsq").encode(z).unique().tolist() == list(range(60))


def test_residual_fsq_comes_nearer_with_every_codebook() -> None:
    quantizer = bare("rfsq")
    z = torch.randn(1, 400, 2)
    codes, x = quantizer.encode(z), quantizer.scheme.normed(z)
    for n in (1, 2, 3):
        error = (quantizer.decode(codes[..., :n]) - x).abs().amax(dim=(0, 1))
        # Half a step of the last scale; the bound lies half a step outside the outermost level.
        step = 2 / (torch.tensor([4.0, 3.0]) - 1) / torch.tensor([4.0, 3.0]) ** (n - 1)
        assert (error <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("kind", ["lfq", "bsq"])
def test_signs_are_bits_the_first_coordinate_highest(kind: str) -> None:
    quantizer = bare(kind, d_code=4, n_codebooks=1)
    z = torch.tensor([[[0.1, -3.0, 2.0, -0.2], [-1, -1, -1, -1], [5, 0.01, 7, 9], [0, 0, 0, 0]]])
    codes = quantizer.encode(z)
    assert codes[0, :, 0].tolist() == [0b1010, 0, 0b1111, 0]
    size = 0.5 if kind == "bsq" else 1.0  # of unit length in 4 dimensions
    due = torch.tensor([size, -size, size, -size])
    torch.testing.assert_close(quantizer.decode(codes)[0, 0], due)


def test_codebooks_of_signs_divide_the_vector() -> None:
    quantizer = bare("lfq")
    z = torch.randn(1, 50, 6)
    codes = quantizer.encode(z)
    alone = bare("lfq", n_codebooks=1)
    halves = [alone.encode(half) for half in z.chunk(2, dim=-1)]
    assert torch.equal(codes, torch.cat(halves, dim=-1))
    first = quantizer.decode(codes[..., :1])
    torch.testing.assert_close(first[..., :3], alone.decode(halves[0]))
    assert not first[..., 3:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_decodes_to_what_is_encoded_to_it(kind: str) -> None:
    quantizer = bare(kind)
    z = torch.randn(1, 300, quantizer.scheme.width)
    decoded = quantizer.decode(quantizer.encode(z))
    out = quantizer(z)  # no learner: straight through
    torch.testing.assert_close(out.quantized, decoded)
    if kind in ("lfq", "bsq"):
        assert torch.equal(quantizer.encode(decoded), quantizer.encode(z))


@pytest.mark.parametrize("kind", KINDS)
def test_no_codebook_is_saved_and_the_librarys_state_neither(kind: str) -> None:
    quantizer = bare(kind)
    quantizer.attach_learner(warm=True)
    assert set(inference_state(quantizer)) == {
        f"project_{way}.{what}" for way in ("in", "out") for what in ("weight", "bias")
    }
    before = quantizer.codebook.clone()
    quantizer.train()(torch.randn(1, 50, quantizer.scheme.width))
    quantizer.sync()
    assert torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_learner", [True, False])
def test_the_gradient_reaches_what_comes_before(kind: str, with_learner: bool) -> None:
    quantizer = bare(kind)
    if with_learner:
        quantizer.attach_learner()
    z = torch.randn(1, 200, quantizer.scheme.width, requires_grad=True)
    out = quantizer.train()(z)
    (gradient,) = torch.autograd.grad((out.quantized - z.detach()).square().mean() + out.loss, z)
    assert out.quantized.shape == z.shape and out.loss.ndim == 0
    assert torch.isfinite(gradient).all() and float(gradient.norm()) > 0


@pytest.mark.parametrize("kind", ["lfq", "bsq"])
def test_the_entropy_loss_has_its_weight(kind: str) -> None:
    z = torch.randn(1, 100, 4)
    losses = []
    for weight in (0.0, 0.1, 0.2):
        quantizer = bare(kind, n_codebooks=1, d_code=4, commitment=0.0, entropy_weight=weight)
        quantizer.attach_learner()
        losses.append(float(quantizer.train()(z).loss.detach()))
    assert losses[0] == 0 and losses[1] < 0, "100 random vectors are spread over the codes"
    assert losses[2] == pytest.approx(2 * losses[1], rel=1e-5)
