"""The training row: both sides begin as one net, and the figure is read off the curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from polyglyph.bench.codec_rows import training
from polyglyph.bench.codec_rows.training import OURS, PEER, QUICK, Curve
from polyglyph.errors import PolyglyphError

TURNS = (("ours", 1e-3), ("peer", 1e-3), ("ours", 2e-3), ("peer", 2e-3))


def test_all_runs_are_made_in_turn_and_shown() -> None:
    said: list[str] = []
    (row,) = training.rows(True, said.append)
    assert [what.rsplit(": ", 1)[1] for what in said[1:]] == [f"{s} at {r:g}" for s, r in TURNS]
    assert row.value is not None and row.value > 0 and row.at_most and row.target == 2 / 3
    for side in (OURS, PEER):
        for curve in row.facts["curves"][side]:
            assert curve["steps"] == [2, 4, 6] and curve["cpu_s"] == sorted(curve["cpu_s"])
            assert all(8 < psnr < 40 for psnr in curve["psnr"])


def test_both_sides_begin_with_the_same_weights_and_the_peer_has_the_library_s_defaults() -> None:
    ours, peer = (training.make(side, 1e-3, QUICK) for side in (OURS, PEER))
    weights = [dict(side.net.named_parameters()) for side in (ours, peer)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for left, right in zip(ours.judge.net.parameters(), peer.judge.net.parameters(), strict=True):
        assert torch.equal(left, right)
    assert ours.net.config.loss == peer.net.config.loss
    learner = peer.net.quantizer.learner
    assert learner._codebook.embed.shape == (1, 32, 8)
    assert (learner._codebook.decay, learner.commitment_weight) == (0.8, 1.0)
    assert learner._codebook.threshold_ema_dead_code == 0 and learner._codebook.initted
    (adam,) = peer.optimizer.parts
    assert adam.param_groups[0]["betas"] == (0.5, 0.9)
    assert all(group["weight_decay"] == 0 for group in adam.param_groups)


def test_the_peer_s_rate_is_constant_and_ours_falls() -> None:
    batches, _ = training.draw_pictures(QUICK)
    rates = {}
    for side in (OURS, PEER):
        made = training.make(side, 1e-3, QUICK)
        made.batches = training.Drawn(batches)
        rates[side] = [made.advance()["lr"] for _ in range(3)]
    assert rates[PEER] == [1e-3] * 3
    assert rates[OURS][0] < 1e-3


def test_pictures_held_out_are_none_of_those_trained_on() -> None:
    batches, held_out = training.draw_pictures(QUICK)
    assert len(batches) == QUICK.n_batches and held_out.shape == (2, 16, 16, 3)
    drawn = np.concatenate(batches)
    assert not any((drawn == picture).all((1, 2, 3)).any() for picture in held_out)
    assert training.Drawn(batches).batch(5) is batches[1]


def test_the_checked_pictures_go_through_the_peer_s_own_codes() -> None:
    """Against the library's forward in evaluation."""
    made = training.make(PEER, 1e-3, QUICK)
    batches, held_out = training.draw_pictures(QUICK)
    curve = training.run(made, replace(QUICK, n_steps=2), 1e-3, batches, held_out)
    pixels = made.net.batch_tensor(held_out)
    quantizer = made.net.quantizer
    with torch.no_grad():
        x = quantizer.project_in(made.net.eval().vectors(pixels))
        vectors = quantizer.project_out(quantizer.learner.eval()(x)[0])
        side = pixels.shape[-1] // made.net.stride
        out = made.net.decoder(vectors.transpose(1, 2).reshape(len(pixels), -1, side, side))
    level = ((out.clamp(-1, 1) + 1) * 127.5).round()
    error = (level - (pixels + 1) * 127.5).square().mean((1, 2, 3))
    due = float((10 * torch.log10(255**2 / error)).mean())
    assert curve.psnr[-1] == pytest.approx(due, abs=0.02)


def test_a_run_that_diverges_ends_its_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    made = training.make(PEER, 1e-3, QUICK)
    batches, held_out = training.draw_pictures(QUICK)
    advance = made.advance

    def diverges() -> None:
        if made.step == 3:
            raise PolyglyphError("loss became nan")
        advance()

    monkeypatch.setattr(made, "advance", diverges)
    assert training.run(made, QUICK, 1e-3, batches, held_out).steps == [2]


def curve(rate: float, *psnr: float) -> Curve:
    return Curve(rate, [5, 10, 15], [1.0, 2.0, 3.0], list(psnr))


def test_the_figure_is_our_time_to_the_peer_s_best_over_its_own() -> None:
    curves = {
        OURS: [curve(1e-3, 20.0, 23.0, 24.0), curve(2e-3, 23.5, 23.6, 23.7)],
        PEER: [curve(1e-3, 21.0, 21.5, 21.51), curve(2e-3, 19.0, 22.0, 22.01)],
    }
    row = training.result("training", curves)
    assert row.value == 2.0 / 2.0, "theirs is within 0.02 dB by then"
    assert "22.01 dB: 2.0 s against 2.0 s" in row.summary and "0.001 and 0.002" in row.summary


def test_a_goal_that_is_never_reached_is_missed() -> None:
    curves = {OURS: [curve(1e-3, 20.0, 20.0, 20.0)], PEER: [curve(1e-3, 21.0, 21.0, 22.0)]}
    row = training.result("training", curves)
    assert row.value == 1.0 and not row.met and "not in 3.0 s" in row.summary
