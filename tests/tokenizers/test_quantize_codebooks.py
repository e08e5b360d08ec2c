"""Codebooks that are learned: dead codes, IBQ by its definition, one process and two."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.checkpoint import load_tensors, save_tensors
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig, codebook_use
from polyglyph.tokenizers.quantize_codebooks import far_vectors

KINDS: dict[str, dict[str, Any]] = {
    "vq": {},
    "ema": {},
    "rvq": {"n_codebooks": 2},
    "grouped": {"n_codebooks": 4, "n_groups": 2, "d_code": 2},
    "simvq": {},
    "ibq": {},
    "running": {},
}


def bare(kind: str, **options: Any) -> Quantizer:
    """Without projections: the codebooks' own space, 16 codes of width 4 (grouped: 2 + 2)."""
    torch.manual_seed(1)
    common = {"kind": kind, "codebook_size": 16, "d_code": 4, "kmeans_init": False}
    quantizer = Quantizer(QuantizerConfig(**{**common, **KINDS.get(kind, {}), **options}), 4)
    for layer in (quantizer.project_in, quantizer.project_out):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return quantizer


def latents(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(24, 4, generator=generator) * 2
    pick = torch.randint(24, (n,), generator=generator)
    return (centres[pick] + 0.3 * torch.randn(n, 4, generator=generator))[None]  # (1, N, D)


def half_killed(kind: str, data: Tensor, **options: Any) -> Quantizer:
    """The lower half of each first-level codebook lies among the data, the upper half where no
    vector is."""
    quantizer = bare(kind, **options)
    groups, width = quantizer.scheme.groups, quantizer.config.d_code
    for group in range(groups):
        book = quantizer.codebook[group]
        book[:8] = data[0, :8, group * width : (group + 1) * width]
        book[8:] = -50.0
    quantizer.codebook.copy_(quantizer.scheme.normed(quantizer.codebook))
    quantizer.attach_learner(warm=True)
    return quantizer


def usage(quantizer: Quantizer, codes: Tensor) -> list[float]:
    """Of the codebooks that were half killed."""
    return [use.usage for use in codebook_use(codes, 16)[: quantizer.scheme.groups]]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "restart"), [(k, "random") for k in KINDS] + [(k, "far") for k in KINDS if k != "ibq"]
)
def test_a_codebook_that_is_half_dead_is_alive_again_within_50_steps(
    kind: str, restart: str
) -> None:
    data = latents(400).abs() + 0.1  # all in one orthant
    quantizer = half_killed(kind, data, threshold_ema_dead_code=0.5, restart=restart)
    assert max(usage(quantizer, quantizer.encode(data))) <= 0.5
    for _ in range(50):
        out = quantizer.train()(data)
    assert min(usage(quantizer, out.codes)) >= 0.9
    quantizer.sync()
    assert min(usage(quantizer, quantizer.eval().encode(data))) >= 0.9


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_threshold_dead_codes_stay_dead(kind: str) -> None:
    data = latents(400).abs() + 0.1
    quantizer = half_killed(kind, data, threshold_ema_dead_code=0.0)
    for _ in range(20):
        out = quantizer.train()(data)
    assert max(usage(quantizer, out.codes)) <= 0.5


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vq", "ema", "rvq", "grouped"])
def test_a_restart_sets_running_sum_and_count_together(kind: str) -> None:
    data = latents(400).abs() + 0.1
    quantizer = half_killed(kind, data, threshold_ema_dead_code=2.5, decay=0.5)
    learner: Any = quantizer.learner
    quantizer.train()(data)
    for layer in quantizer.scheme.layers(learner)[: quantizer.scheme.groups]:
        state = layer._codebook
        new = state.cluster_size[0] == 2.5
        assert new[8:].all()
        torch.testing.assert_close(state.embed_avg[0, new], 2.5 * state.embed[0, new])


@torch.no_grad()
def test_more_dead_codes_than_vectors_begin_at_different_vectors() -> None:
    quantizer = bare("ibq", threshold_ema_dead_code=1.5)  # all counts begin at 1
    quantizer.attach_learner()
    data = latents(5)
    quantizer.train()(data)
    quantizer.sync()
    alike = F.normalize(quantizer.codebook[0], dim=-1) @ F.normalize(data[0], dim=-1).t()
    assert alike.argmax(0).unique().numel() == 5 and (alike.amax(0) > 1 - 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vq", "ema", "simvq"])
def test_far_restarts_find_the_rare_where_random_ones_cut_up_the_common(kind: str) -> None:
    ground = 0.02 * torch.randn(1, 380, 4) + torch.tensor([3.0, 0, 0, 0])
    rare = latents(20)
    batch = torch.cat([ground, rare], 1)
    shares = {}
    for restart in ("random", "far"):
        quantizer = half_killed(kind, ground, threshold_ema_dead_code=0.5, restart=restart)
        for _ in range(10):
            quantizer.train()(batch)
        quantizer.sync()
        codes = quantizer.eval().encode(batch)
        shares[restart] = len(codes[0, 380:].unique()), len(codes[0, :380].unique())
    assert shares["far"][0] >= shares["random"][0] + 2
    assert shares["far"][1] < shares["random"][1]


def test_far_vectors_are_never_ones_that_have_a_code_or_were_taken() -> None:
    x = torch.eye(6).repeat(9, 1)
    taken = far_vectors(x, torch.eye(6)[:2], 4)
    assert torch.equal(taken.sum(0), torch.tensor([0.0, 0, 1, 1, 1, 1]))


# IBQ ---------------------------------------------------------------------------------------------


def by_definition(x: Tensor, codebook: Tensor, config: QuantizerConfig) -> tuple[Tensor, Tensor]:
    """Quantized and loss, as section 3.2 of 2412.02692 writes them: with one-hot vectors."""
    logits = x @ codebook.t()
    soft = logits.softmax(-1)
    hard = F.one_hot(soft.argmax(-1), len(codebook)).to(x)
    quantized = (hard - soft.detach() + soft) @ codebook
    chosen = hard @ codebook
    loss = (quantized - x).square().mean() + (chosen.detach() - x).square().mean()
    loss = loss + config.commitment * (chosen - x.detach()).square().mean()
    p = (logits / 0.01).softmax(-1).flatten(0, -2)
    mean = p.mean(0)
    each = -(p * (logits / 0.01).log_softmax(-1).flatten(0, -2)).sum(-1).mean()
    return quantized, loss + config.entropy_weight * (each + (mean * (mean + 1e-5).log()).sum())


def test_ibq_is_its_definition_in_value_and_gradient() -> None:
    quantizer = bare("ibq", entropy_weight=0.05, threshold_ema_dead_code=0.0)
    quantizer.attach_learner()
    learner: Any = quantizer.learner
    x = latents(60).requires_grad_()
    weights = torch.randn(1, 60, 4)
    sides = []
    for run in (learner, lambda x: by_definition(x, learner.embedding, quantizer.config)):
        quantized, *_, loss = run(x)
        gradients = torch.autograd.grad((quantized * weights).sum() + loss, [x, learner.embedding])
        sides.append([quantized, loss, *gradients])
    for ours, due in zip(*sides, strict=True):
        torch.testing.assert_close(ours, due, atol=1e-4, rtol=1e-4)
    assert (sides[0][3].norm(dim=-1) > 0).all(), "every code gets a gradient"


def test_ibq_searches_the_largest_inner_product_however_long_the_codes_are() -> None:
    quantizer = bare("ibq")
    quantizer.codebook *= torch.logspace(-3, 3, 16)[torch.randperm(16)][:, None]
    z = torch.randn(1, 500, 4) * torch.logspace(-4, 4, 500)[:, None]
    products = z[0].double() @ quantizer.codebook[0].double().t()
    assert torch.equal(quantizer.encode(z)[0, :, 0], products.argmax(-1))
    twice = torch.cat([quantizer.codebook, quantizer.codebook], dim=1)[:, ::2]
    quantizer.codebook.copy_(twice)
    assert quantizer.encode(z).max() < 8, "ties go to the lowest code"


def test_ibq_learns_its_codebook() -> None:
    quantizer = bare("ibq", entropy_weight=0.05, threshold_ema_dead_code=0.2)
    quantizer.attach_learner()
    optimizer = torch.optim.Adam(quantizer.parameters(), 2e-2)
    before = (quantizer(latents(400)).quantized - latents(400)).square().mean()
    z = latents(400)
    for _ in range(60):
        out = quantizer.train()(z)
        optimizer.zero_grad()
        ((out.quantized - z).square().mean() + out.loss).backward()
        optimizer.step()
    quantizer.sync()
    after = (quantizer.eval()(z).quantized - z).square().mean()
    assert after < 0.5 * before
    assert codebook_use(quantizer.encode(z), 16)[0].perplexity > 6


# Two processes -----------------------------------------------------------------------------------


def advance(kind: str, data: Tensor, **options: Any) -> dict[str, Tensor]:
    """Four steps of gradient and statistics; what was learned, and the losses."""
    quantizer = bare(kind, entropy_weight=0.05, **options)
    quantizer.attach_learner(warm=not options.get("kmeans_init"))
    quantizer.train()
    assert quantizer.learner is not None
    # What comes before the quantizer learns too: some kinds have nothing else to.
    parameters = [quantizer.project_in.weight, *quantizer.learner.parameters()]
    losses = []
    for z in data:
        out = quantizer(z)
        gradients = torch.autograd.grad(out.loss, parameters)
        shared = [mean_of_processes(g) for g in (out.loss.detach(), *gradients)]
        losses.append(shared[0])
        with torch.no_grad():
            for parameter, gradient in zip(parameters, shared[1:], strict=True):
                parameter -= 0.1 * gradient
    state = {k: v.float() for k, v in quantizer.learner.state_dict().items()}
    return {**state, "losses": torch.stack(losses), "before": quantizer.project_in.weight.detach()}


def mean_of_processes(x: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
        x /= torch.distributed.get_world_size()
    return x


def one_of_two(rank: int, folder: Path, kind: str, data: Tensor, options: dict) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    state = advance(kind, data[:, rank : rank + 1], **options)
    torch.distributed.destroy_process_group()
    save_tensors(folder / f"{rank}.safetensors", state)


def on_two(folder: Path, kind: str, data: Tensor, **options: Any) -> list[dict[str, Tensor]]:
    """What each of two processes ends with, each fed one row of every batch (steps, 2, N, D)."""
    # Forked, so that torch is not imported twice more; no thread of it runs on one core.
    context = multiprocessing.get_context("fork")
    runs = [
        context.Process(target=one_of_two, args=(rank, folder, kind, data, options))
        for rank in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    return [load_tensors(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("kind", [*KINDS, "lfq", "bsq"])
def test_two_processes_learn_what_one_learns(kind: str, tmp_path: Path) -> None:
    data = latents(4 * 2 * 50).reshape(4, 2, 50, 4)
    options = {"threshold_ema_dead_code": 0.0}
    whole = advance(kind, data, **options)
    for state in on_two(tmp_path, kind, data, **options):
        assert state.keys() == whole.keys()
        for key, due in whole.items():
            torch.testing.assert_close(state[key], due, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_restart_the_same_codes_at_the_same_vectors(
    kind: str, tmp_path: Path
) -> None:
    data = latents(4 * 2 * 50).reshape(4, 2, 50, 4)
    options = {"threshold_ema_dead_code": 5.0, "kmeans_init": kind not in ("simvq", "ibq")}
    first, second = on_two(tmp_path, kind, data, **options)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize(("kind", "depth"), [("rvq", 4), ("grouped", 2)])
def test_dropout_share_says_in_how_many_steps_codebooks_are_left_out(kind: str, depth: int) -> None:
    torch.manual_seed(0)
    options = {"n_codebooks": 4, "quantize_dropout": True, "dropout_share": 0.4}
    quantizer = bare(kind, **options, **({"n_groups": 2} if kind == "grouped" else {}))
    quantizer.attach_learner()
    data = latents(200 * 30).reshape(200, 1, 30, -1)
    left_out = [bool((quantizer(x).codes < 0).any()) for x in data]
    due = 0.4 * (1 - 1 / depth)  # one draw in `depth` leaves none out
    assert abs(sum(left_out) / len(left_out) - due) < 0.1
