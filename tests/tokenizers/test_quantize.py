"""The quantizer's own form against the library that trains it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyglyph.config import build
from polyglyph.errors import ConfigError
from polyglyph.tokenizers.neural import inference_state
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig, codebook_use

KINDS: dict[str, dict[str, Any]] = {
    "vq": {"kind": "vq", "codebook_size": 16, "d_code": 4},
    "rvq": {"kind": "rvq", "codebook_size": 16, "n_codebooks": 3, "d_code": 4},
}


def quantizer_of(kind: str, width: int = 6, **options: Any) -> Quantizer:
    torch.manual_seed(1)
    return Quantizer(QuantizerConfig(**{**KINDS[kind], **options}), width)


def bare(kind: str, **options: Any) -> Quantizer:
    """Without projections: the codebooks' own space."""
    quantizer = quantizer_of(kind, width=4, **options)
    for layer in (quantizer.project_in, quantizer.project_out):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return quantizer


def latents(n: int = 200, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(24, width, generator=generator) * 2
    pick = torch.randint(24, (n,), generator=generator)
    return (centres[pick] + 0.3 * torch.randn(n, width, generator=generator))[None]  # (1, N, D)


def trained(kind: str, **options: Any) -> Quantizer:
    quantizer = quantizer_of(kind, **options)
    quantizer.attach_learner()
    quantizer.train()
    for step in range(12):
        quantizer(latents(seed=step))
    quantizer.sync()
    return quantizer.eval()


def assert_same_codes(quantizer: Quantizer, z: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Equal, but for the declared tie: fp64 distances that differ by <1e-6 relative."""
    x, books = quantizer.project_in(z.float()).double(), quantizer.codebook.double()
    for at in (ours != theirs).nonzero():
        b, n, q = at.tolist()
        residual = x[b, n]
        for earlier in range(q):
            residual = residual - books[earlier, ours[b, n, earlier]]
        if quantizer.config.kind == "vq":
            residual = residual / residual.norm()
        near = [(residual - books[q, int(c[b, n, q])]).norm() for c in (ours, theirs)]
        assert abs(near[0] - near[1]) < 1e-6 * near[0]
        ours[b, n, q:] = theirs[b, n, q:]  # what follows a tie belongs to it


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_our_codes_are_the_librarys_on_trained_codebooks(kind: str) -> None:
    quantizer = trained(kind)
    z = latents(500, seed=99)
    ours = quantizer.encode(z)
    assert quantizer.learner is not None
    theirs = quantizer.learner(quantizer.project_in(z))[1].reshape(ours.shape)
    assert ours.shape == (1, 500, quantizer.config.n_codebooks)
    assert (ours != theirs).double().mean() <= 0.001
    assert_same_codes(quantizer, z, ours.clone(), theirs)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_our_decoding_is_the_librarys(kind: str) -> None:
    quantizer = trained(kind)
    codes = torch.randint(16, (2, 7, quantizer.config.n_codebooks))
    lookup = quantizer.learner.get_output_from_indices  # type: ignore[union-attr, operator]
    theirs = lookup(codes[..., 0] if kind == "vq" else codes)
    torch.testing.assert_close(quantizer.decode(codes), quantizer.project_out(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_inference_choose_the_same_codes(kind: str) -> None:
    """The learner searches before it moves its codebooks, so one step's codes are comparable."""
    quantizer = trained(kind, decay=0.99, threshold_ema_dead_code=0.0)
    z = latents(seed=7)
    due = quantizer.encode(z)
    out = quantizer.train()(z)
    assert (out.codes != due).double().mean() <= 0.001


def test_saved_state_holds_no_key_of_the_library() -> None:
    net = nn.ModuleDict({"quantizer": trained("rvq")})
    expected = {f"project_{way}.{what}" for way in ("in", "out") for what in ("weight", "bias")}
    due = {f"quantizer.{key}" for key in expected | {"codebook"}}
    assert set(inference_state(net)) == due
    assert any(".learner." in key for key in net.state_dict()), "a run's state does hold them"
    assert not any("learner" in key for key in inference_state(trained("vq")))


def test_sync_copies_what_was_learned_and_without_a_learner_nothing() -> None:
    quantizer = quantizer_of("vq")
    before = quantizer.codebook.clone()
    quantizer.sync()
    assert torch.equal(quantizer.codebook, before)
    quantizer.attach_learner()
    quantizer.train()(latents())
    assert torch.equal(quantizer.codebook, before)
    quantizer.sync()
    assert not torch.allclose(quantizer.codebook, before)
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(1, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_begins_from_our_codebooks(kind: str) -> None:
    for warm in (True, False):
        quantizer = quantizer_of(kind, threshold_ema_dead_code=0.0)
        z = latents()
        before, due = quantizer.codebook.clone(), quantizer.encode(z)
        quantizer.attach_learner(warm=warm)
        out = quantizer.train()(z)
        assert torch.equal(out.codes, due) == warm
        quantizer.sync()
        kept = (quantizer.codebook - before).norm() / before.norm()
        # One step of EMA from codes that count one vector each moves them, k-means forgets them.
        assert (float(kept) < 0.9) == warm


def test_a_warm_start_stays_where_every_code_is_fed_itself() -> None:
    quantizer = bare("vq")
    before = quantizer.codebook.clone()
    quantizer.attach_learner(warm=True)
    for _ in range(5):
        out = quantizer.train()(before)
        assert out.codes[0, :, 0].tolist() == list(range(16))
    quantizer.sync()
    torch.testing.assert_close(quantizer.codebook, before, atol=1e-4, rtol=0)


def test_a_second_learner_is_not_attached() -> None:
    quantizer = trained("vq")
    learner = quantizer.learner
    quantizer.attach_learner(warm=True)
    assert quantizer.learner is learner


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_dead_codes_are_alive_again_within_50_steps(kind: str) -> None:
    quantizer = bare(kind, threshold_ema_dead_code=0.5, n_codebooks=1, kmeans_init=False)
    data = latents(400, width=4).abs() + 0.1  # all in one orthant
    quantizer.attach_learner(warm=True)
    learner: Any = quantizer.learner
    state = (learner if kind == "vq" else learner.layers[0])._codebook
    alive = data[0, :8]
    state.embed[0, :8] = alive / alive.norm(dim=-1, keepdim=True) if kind == "vq" else alive
    state.embed[0, 8:] = -0.5 if kind == "vq" else -50.0  # where no vector is
    state.embed_avg.copy_(state.embed)
    quantizer.sync()
    assert codebook_use(quantizer.encode(data), 16)[0].usage <= 0.5
    for _ in range(50):
        out = quantizer.train()(data)
    assert codebook_use(out.codes, 16)[0].usage >= 0.9
    quantizer.sync()
    assert codebook_use(quantizer.eval().encode(data), 16)[0].dead <= 0.1


@torch.no_grad()
def test_without_a_threshold_dead_codes_stay_dead() -> None:
    quantizer = bare("rvq", threshold_ema_dead_code=0.0, n_codebooks=1, kmeans_init=False)
    quantizer.codebook[0, 8:] = -50.0
    quantizer.attach_learner(warm=True)
    for _ in range(20):
        out = quantizer.train()(latents(width=4).abs())
    assert codebook_use(out.codes, 16)[0].usage <= 0.5


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_codebooks_vectors_are_decoded_to_themselves(kind: str) -> None:
    quantizer = bare(kind, n_codebooks=1)
    codes = quantizer.encode(quantizer.codebook)
    assert codes[0, :, 0].tolist() == list(range(16))
    torch.testing.assert_close(quantizer.decode(codes), quantizer.codebook)


@torch.no_grad()
def test_residual_codes_add_up_and_fewer_codebooks_are_coarser() -> None:
    quantizer = trained("rvq")
    z = latents(seed=4)
    codes = quantizer.encode(z)
    assert torch.equal(quantizer.encode(z, n_codebooks=2), codes[..., :2])
    x, errors = quantizer.project_in(z), []
    for n in (1, 2, 3):
        total = sum(quantizer.codebook[q][codes[..., q]] for q in range(n))
        torch.testing.assert_close(quantizer.decode(codes[..., :n]), quantizer.project_out(total))
        errors.append(float((x - total).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_the_gradient_passes_straight_through_fixed_codebooks() -> None:
    quantizer = quantizer_of("rvq", commitment=0.0)
    z = latents(5).requires_grad_()
    weights = torch.randn(1, 5, 6)
    out = quantizer(z)
    torch.testing.assert_close(out.quantized, quantizer.decode(out.codes))
    (out.quantized * weights).sum().backward()
    due = weights @ quantizer.project_out.weight @ quantizer.project_in.weight
    assert z.grad is not None
    torch.testing.assert_close(z.grad, due)


@pytest.mark.parametrize("rotation_trick", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_what_comes_before_the_learner(
    kind: str, rotation_trick: bool
) -> None:
    quantizer = quantizer_of(kind, rotation_trick=rotation_trick)
    quantizer.attach_learner()
    z = latents().requires_grad_()
    out = quantizer.train()(z)
    assert out.quantized.shape == z.shape and out.loss.ndim == 0
    (reconstruction,) = torch.autograd.grad(out.quantized.square().mean(), z, retain_graph=True)
    (commitment,) = torch.autograd.grad(out.loss, z)
    assert float(reconstruction.norm()) > 0 and float(commitment.norm()) > 0


def test_commitment_is_the_weighted_distance_to_the_code() -> None:
    quantizer = quantizer_of("vq", commitment=0.3)
    z = latents()
    out = quantizer(z)
    x = nn.functional.normalize(quantizer.project_in(z), dim=-1)
    due = 0.3 * (x - quantizer.codebook[0][out.codes[..., 0]]).square().mean()
    torch.testing.assert_close(out.loss, due)


@torch.no_grad()
def test_autocast_does_not_change_codes() -> None:
    quantizer = trained("rvq")
    z = latents(500, seed=5)
    due = quantizer.encode(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(z).codes, due)


def test_use_of_codebooks_by_hand() -> None:
    codes = torch.tensor([[0, 7], [0, 7], [1, 7], [3, 7]])
    first, second = codebook_use(codes, 8)
    assert (first.usage, first.dead) == (3 / 8, 5 / 8)
    assert first.perplexity == pytest.approx(2**1.5)  # entropy of 1/2, 1/4, 1/4: 1.5 bit
    assert (second.usage, second.dead, second.perplexity) == (1 / 8, 7 / 8, 1)
    even = codebook_use(torch.arange(8).reshape(2, 4, 1), 8)[0]
    assert (even.usage, even.dead) == (1, 0) and even.perplexity == pytest.approx(8)


def test_codebooks_left_out_of_a_step_are_not_counted() -> None:
    codes = torch.tensor([[0, -1], [1, -1]])
    first, second = codebook_use(codes, 4)
    assert first.usage == 0.5 and second.usage == 0 and second.perplexity == 1
    quantizer = quantizer_of("rvq", quantize_dropout=True)
    quantizer.attach_learner()
    seen = torch.cat([quantizer.train()(latents(seed=i)).codes for i in range(8)], dim=1)
    assert (seen[..., 2] == -1).any() and (seen[..., 0] >= 0).all()
    assert math.isfinite(codebook_use(seen, 16)[2].perplexity)


def test_vq_with_two_codebooks_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="kind 'vq' has one codebook; for more take kind 'rvq'"):
        build(QuantizerConfig, {"kind": "vq", "n_codebooks": 2}, "the test")
