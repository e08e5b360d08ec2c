"""The quantizer's own form against the library that trains it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from polyglyph.config import build, dump, load
from polyglyph.errors import ConfigError, InputError, PolyglyphError
from polyglyph.tokenizers.neural import inference_state
from polyglyph.tokenizers.quantize import (
    SCHEMES,
    Quantizer,
    QuantizerConfig,
    codebook_use,
    collapsed,
)

KINDS: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 16, "d_code": 4},
    "ema": {"codebook_size": 16, "d_code": 4},
    "rvq": {"codebook_size": 16, "n_codebooks": 3, "d_code": 4},
    "grouped": {"codebook_size": 16, "n_codebooks": 4, "n_groups": 2, "d_code": 3},
    "fsq": {"levels": [5, 4, 3]},
    "rfsq": {"levels": [4, 3], "n_codebooks": 3},
    "lfq": {"d_code": 3, "n_codebooks": 2},
    "bsq": {"d_code": 4},
    "simvq": {"codebook_size": 16, "d_code": 4},
    "ibq": {"codebook_size": 16, "d_code": 4},
    "running": {"codebook_size": 16, "d_code": 4},
}
CLASSES = {
    "vq": "VectorQuantize",
    "ema": "VectorQuantize",
    "rvq": "ResidualVQ",
    "grouped": "GroupedResidualVQ",
    "fsq": "FSQ",
    "rfsq": "ResidualFSQ",
    "lfq": "LFQ",
    "bsq": "LFQ",
    "simvq": "SimVQ",
}
EMA = ["vq", "ema", "rvq", "grouped"]
SEVERAL = ["rvq", "grouped", "rfsq", "lfq"]
FREE = ["fsq", "rfsq", "lfq", "bsq"]


def quantizer_of(kind: str, width: int = 6, **options: Any) -> Quantizer:
    torch.manual_seed(1)
    return Quantizer(QuantizerConfig(**{"kind": kind, **KINDS[kind], **options}), width)


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


@torch.enable_grad()
def trained(kind: str, **options: Any) -> Quantizer:
    """After 12 steps of reconstruction, with projections and codebooks moved."""
    quantizer = quantizer_of(kind, **options)
    quantizer.attach_learner()
    quantizer.train()
    optimizer = torch.optim.Adam(quantizer.parameters(), 3e-3)
    for step in range(12):
        z = latents(seed=step)
        out = quantizer(z)
        optimizer.zero_grad()
        ((out.quantized - z).square().mean() + out.loss).backward()
        optimizer.step()
    quantizer.sync()
    return quantizer.eval()


def library(quantizer: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """What the learner alone makes of z: quantized (B, N, W), codes (B, N, Q)."""
    learner: Any = quantizer.learner
    quantized, codes = learner.eval()(quantizer.project_in(z))[:2]
    if quantizer.config.kind == "grouped":
        codes = torch.cat([group[..., None] for group in codes], -1).flatten(2)
    return quantized, codes.reshape(*z.shape[:2], -1)


def scores(quantizer: Quantizer, x: Tensor, codes: Tensor, q: int) -> Tensor:
    """In fp64, (K,): how far every code q is from what the codes before it left of x (W,)."""
    books, scheme = quantizer.codebook.double(), quantizer.scheme
    if quantizer.config.kind == "ibq":
        return -books[0] @ x
    part = scheme.normed(x).chunk(scheme.groups)[q % scheme.groups]
    for earlier in range(q % scheme.groups, q, scheme.groups):
        part = part - books[earlier, codes[earlier]]
    return (books[q] - part).norm(dim=-1)


def assert_same_codes(quantizer: Quantizer, z: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Equal, but for the declared tie: fp64 distances that differ by <1e-6 relative."""
    x = quantizer.project_in(z.float()).double()
    for at in (ours != theirs).nonzero():
        b, n, q = at.tolist()
        near = scores(quantizer, x[b, n], ours[b, n], q)
        mine, other = (near[int(codes[b, n, q])] for codes in (ours, theirs))
        assert abs(mine - other) < 1e-6 * abs(mine)
        ours[b, n, q:] = theirs[b, n, q:]  # what follows a tie belongs to it


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_our_codes_are_the_librarys_on_trained_weights(kind: str) -> None:
    quantizer = trained(kind)
    z = latents(500, seed=99)
    ours = quantizer.encode(z)
    theirs = library(quantizer, z)[1]
    assert ours.shape == (1, 500, quantizer.config.n_codebooks)
    assert ours.unique().numel() >= 6 and ours.dtype == torch.int64
    assert (ours != theirs).double().mean() <= 0.001
    assert_same_codes(quantizer, z, ours.clone(), theirs)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_our_codes_are_the_nearest_of_the_codebook(kind: str) -> None:
    quantizer = trained(kind)
    z = latents(40, seed=98)
    codes, x = quantizer.encode(z)[0], quantizer.project_in(z)[0].double()
    for vector, found in zip(x, codes, strict=True):
        for q, code in enumerate(found.tolist()):
            near = scores(quantizer, vector, found, q)
            assert near[code] <= near.min() + 1e-6 * near.min().abs()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_our_decoding_is_the_librarys(kind: str) -> None:
    quantizer = trained(kind)
    z = latents(50, seed=97)
    quantized, codes = library(quantizer, z)
    torch.testing.assert_close(quantizer.decode(codes), quantizer.project_out(quantized))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vq", "rvq"])
def test_our_decoding_of_any_codes_is_the_librarys(kind: str) -> None:
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
    torch.testing.assert_close(out.quantized, quantizer.eval()(z).quantized)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_kind_is_trained_by_its_class_of_the_library(kind: str) -> None:
    import vector_quantize_pytorch as library_module

    switches = {"threshold_ema_dead_code": 0.7, "rotation_trick": False}
    quantizer = quantizer_of(kind, **switches)
    quantizer.attach_learner()
    assert type(quantizer.learner) is getattr(library_module, CLASSES[kind])
    layers = [
        m
        for m in quantizer.learner.modules()
        if type(m) in (library_module.VectorQuantize, library_module.SimVQ)
    ]
    assert len(layers) == (0 if kind in FREE else quantizer.config.n_codebooks)
    for layer in layers:
        assert layer.rotation_trick is False
        if kind != "simvq":
            assert layer._codebook.threshold_ema_dead_code == 0.7
            assert layer.use_cosine_sim == (kind == "vq")
    if kind in ("lfq", "bsq"):
        assert quantizer.learner.spherical == (kind == "bsq")


def test_every_kind_has_a_scheme_and_ours_alone_are_ibq_and_running() -> None:
    kinds = set(get_args(QuantizerConfig.model_fields["kind"].annotation))
    assert kinds == set(KINDS) == set(SCHEMES) == set(CLASSES) | {"ibq", "running"}


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


@pytest.mark.parametrize("kind", EMA)
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
@pytest.mark.parametrize("kind", ["vq", "ema", "rvq", "simvq"])
def test_a_codebooks_vectors_are_decoded_to_themselves(kind: str) -> None:
    quantizer = bare(kind, n_codebooks=1)
    codes = quantizer.encode(quantizer.codebook)
    assert codes[0, :, 0].tolist() == list(range(16))
    torch.testing.assert_close(quantizer.decode(codes), quantizer.codebook)


@torch.no_grad()
@pytest.mark.parametrize("kind", SEVERAL)
def test_fewer_codebooks_are_the_prefix_and_their_sum(kind: str) -> None:
    quantizer = trained(kind)
    z = latents(seed=4)
    codes, scheme = quantizer.encode(z), quantizer.scheme
    x = scheme.normed(quantizer.project_in(z))
    errors = [float(x.square().mean())]
    for n in range(1, quantizer.config.n_codebooks + 1):
        assert torch.equal(quantizer.encode(z, n_codebooks=n), codes[..., :n])
        parts = list(torch.zeros_like(x).chunk(scheme.groups, dim=-1))
        for q in range(n):
            parts[q % scheme.groups] = (
                parts[q % scheme.groups] + quantizer.codebook[q][codes[..., q]]
            )
        total = torch.cat(parts, dim=-1)
        torch.testing.assert_close(quantizer.decode(codes[..., :n]), quantizer.project_out(total))
        errors.append(float((x - total).square().mean()))
    if kind != "lfq":  # whose latents are not held near their codes
        assert errors == sorted(errors, reverse=True)


def test_a_number_of_codebooks_that_is_not_there_is_refused() -> None:
    quantizer = quantizer_of("rvq")
    for n in (0, 4, -1):
        with pytest.raises(InputError, match=f"has 3 codebooks; n_codebooks is 1 to 3, got {n}"):
            quantizer.encode(latents(3), n_codebooks=n)


@pytest.mark.parametrize("kind", ["rvq", "grouped", "rfsq"])
def test_quantizer_dropout_trains_with_the_first_codebooks(kind: str) -> None:
    quantizer = trained(kind, quantize_dropout=True)
    lengths = set()
    for step in range(12):
        quantizer.sync()
        out = quantizer.train()(latents(seed=step))
        left_out = (out.codes == -1).flatten(0, 1)
        assert torch.equal(left_out.any(0), left_out.all(0))
        n = int((~left_out[0]).sum())
        assert not left_out[0, :n].any() and torch.isfinite(out.loss)
        lengths.add(n)
        due = quantizer.decode(out.codes[..., :n])
        torch.testing.assert_close(out.quantized, due)
        torch.testing.assert_close(quantizer.decode(out.codes), due)
    assert len(lengths) > 1 and max(lengths) == quantizer.config.n_codebooks


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
@pytest.mark.parametrize("kind", ["vq", "ema", "rvq", "grouped", "simvq"])
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


def test_collapse_is_judged_by_what_could_have_been_used() -> None:
    even = torch.arange(64).repeat(4)[:, None]
    assert collapsed(even, 64) == [False]
    assert collapsed(even % 3, 64) == [True]  # perplexity 3
    assert collapsed(even % 5, 64) == [True]  # 5 of 64 codes
    assert collapsed(even, 65536) == [False], "256 codes can't fill 10 % of a large codebook"
    assert collapsed(even % 5, 65536) == [True]
    assert collapsed(even % 2, 2) == [False], "a perplexity of 4 is out of reach"
    assert collapsed(even * 0, 4) == [True]
    both = torch.stack([even[:, 0], torch.full((256,), -1)], dim=-1)
    assert collapsed(both, 64) == [False, False], "left out by dropout, not collapsed"


@pytest.mark.parametrize("kind", KINDS)
def test_use_is_told_of_every_kind(kind: str) -> None:
    quantizer = trained(kind)
    codes = quantizer.encode(latents(500, seed=11))
    uses = codebook_use(codes, quantizer.config.codebook_size)
    assert len(uses) == len(collapsed(codes, 16)) == quantizer.config.n_codebooks
    for q, use in enumerate(uses):
        assert use.usage == codes[..., q].unique().numel() / quantizer.config.codebook_size
        assert use.usage + use.dead == 1 and 1 <= use.perplexity <= quantizer.config.codebook_size


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_are_not_finite_are_refused_or_poison_the_loss(kind: str) -> None:
    quantizer = trained(kind)
    for bad in (math.nan, math.inf):
        z = latents(9)
        z[0, 3, 1] = bad
        with pytest.raises(PolyglyphError, match="latents hold NaN or infinite values; check"):
            quantizer.encode(z)
    z = latents().index_fill(1, torch.tensor([3]), math.nan)
    out = quantizer.train()(z)  # the training loop refuses a loss that is not finite
    assert not torch.isfinite(out.quantized.sum() + out.loss)


# Configuration -----------------------------------------------------------------------------------


def test_what_was_saved_before_the_other_kinds_came_keeps_its_dump() -> None:
    old = {
        "kind": "rvq",
        "codebook_size": 256,
        "n_codebooks": 4,
        "d_code": 32,
        "decay": 0.95,
        "commitment": 0.25,
        "threshold_ema_dead_code": 0.2,
        "rotation_trick": True,
        "kmeans_init": True,
        "quantize_dropout": False,
    }
    assert list(QuantizerConfig(**old).model_dump(mode="json").items()) == list(old.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_comes_back_from_toml_and_its_weights_load(
    kind: str, tmp_path: Path
) -> None:
    quantizer = trained(kind)
    (tmp_path / "q.toml").write_text(dump(quantizer.config), "utf-8")
    again = Quantizer(load(QuantizerConfig, tmp_path / "q.toml"), 6)
    assert again.config == quantizer.config
    state = inference_state(quantizer)
    assert ("codebook" in state) == (kind not in FREE)
    again.load_state_dict(state)
    z = latents(30, seed=5)
    codes = quantizer.encode(z)
    assert torch.equal(again.encode(z), codes)
    assert torch.equal(again.decode(codes), quantizer.decode(codes))


def test_sizes_follow_from_levels_and_bits() -> None:
    fsq = build(QuantizerConfig, {"kind": "fsq", "levels": [8, 5, 5, 5]}, "the test")
    assert (fsq.codebook_size, fsq.d_code, fsq.groups) == (1000, 4, 1)
    bits = build(QuantizerConfig, {"kind": "bsq", "codebook_size": 4096}, "the test")
    assert bits.d_code == 12
    assert QuantizerConfig(kind="lfq", d_code=5, n_codebooks=3).codebook_size == 32
    assert QuantizerConfig(kind="lfq").d_code == 10


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"kind": "fsq"}, r"takes levels of at least 3, such as \[8, 5, 5, 5\]; got \[\]"),
        ({"kind": "fsq", "levels": [8, 2]}, "levels of at least 3"),
        ({"kind": "vq", "levels": [8]}, "levels are of kinds fsq and rfsq"),
        ({"kind": "rfsq", "levels": [4, 4], "codebook_size": 8}, "make codebook_size 16"),
        ({"kind": "lfq", "codebook_size": 1000}, r"2\^d_code codes, a power of two; got d_code 9"),
        ({"kind": "bsq", "codebook_size": 16, "d_code": 8}, "leave one of them out"),
        ({"kind": "rvq", "n_groups": 2, "n_codebooks": 4}, "n_groups is of kind 'grouped'"),
        ({"kind": "grouped", "n_groups": 2, "n_codebooks": 3}, "a multiple of n_groups .2., got 3"),
        ({"kind": "ibq", "n_codebooks": 2}, "kind 'ibq' has one codebook"),
        ({"kind": "vq", "quantize_dropout": True}, "quantize_dropout is of kinds rvq, grouped"),
        ({"kind": "fsk"}, "kind"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_a_sentence(wrong: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(QuantizerConfig, wrong, "the test")
