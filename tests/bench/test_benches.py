"""Benches measure, report and never fail on a missed target."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from polyglyph.bench import cli_start, runner, training
from polyglyph.bench.runner import Bench, BenchResult, list_benches, load_bench, run_benches, table
from polyglyph.errors import InputError, MachineError
from polyglyph.train.config import load_run


def test_every_bench_is_listed_and_has_a_summary() -> None:
    assert list_benches() == ["cli_start", "codecs", "kernels", "training"]
    assert all(load_bench(name).summary for name in list_benches())
    with pytest.raises(InputError, match="did you mean 'training'"):
        load_bench("trainin")


def test_a_missed_target_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = BenchResult("", 2.0, "s", 1.0, at_most=True, summary="slow")
    monkeypatch.setattr(runner, "load_bench", lambda name: Bench("slow", lambda *_: slow))
    (found,) = run_benches(["any"], tmp_path / "bench.json")
    assert not found.met and found.hardware
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["results"][0]["met"] is False and data["results"][0]["value"] == 2.0
    assert table([found]).row_count == 1
    with pytest.raises(InputError, match="exists"):
        run_benches(["any"], tmp_path / "bench.json")


def test_limits_are_read_in_their_direction() -> None:
    assert BenchResult("", 2.0, "×", 1.0, at_most=False, summary="").met
    assert not BenchResult("", 2.0, "s", 1.0, at_most=True, summary="").met


def test_training_measures_both_sides_as_often_and_gives_the_ratio() -> None:
    before = torch.get_num_threads()
    found = run_benches(["training"], quick=True)[0]
    assert torch.get_num_threads() == before
    ours, llama = found.samples["ours_cpu_s"], found.samples["llama_cpu_s"]
    assert len(ours) == len(llama) == 2 and found.value > 0
    counts = found.facts["n_parameters"]
    # Ours has the weights of QK-norm besides: two of d_head in each layer.
    assert counts["ours"] - counts["llama"] == 2 * 2 * 16


def test_rows_are_of_the_shapes_that_the_shipped_configs_make() -> None:
    grids = load_run("tiny").sequence.target_grid
    assert {name: training.GRIDS[name] for name in grids} == grids
    specs = training.make_grammar().specs
    for name in training.GRIDS:
        quantizer = load_run(f"tiny-{name}").quantizer
        made = (specs[name].codebook_size, specs[name].n_codebooks)
        assert made == (quantizer.codebook_size, quantizer.n_codebooks)


def test_a_broken_torchvision_is_hidden_before_the_peer_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look() -> list[str]:
        raise MachineError("looked")

    monkeypatch.setattr("polyglyph.device.check_broken_torchvision", look)
    rows = training.make_rows(training.QUICK)
    with pytest.raises(MachineError, match="looked"):
        training.peer_side(training.QUICK, rows, _fp32)


def test_both_sides_start_near_the_loss_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    rows = training.make_rows(training.QUICK)
    ours = training.our_side(training.QUICK, rows, _fp32).step()
    llama = training.peer_side(training.QUICK, rows, _fp32).step()
    assert llama == pytest.approx(math.log(rows.vocabulary_size), rel=0.05)
    assert ours < llama, "a sliced loss has fewer ids to choose from"


def _fp32() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def test_no_target_leads_from_one_document_into_the_next() -> None:
    rows = training.make_rows(training.QUICK)
    ends = rows.doc_id[:, 1:] != rows.doc_id[:, :-1]
    assert ends.any() and (rows.targets[:, :-1][ends] == -100).all()
    assert (rows.targets == -100).sum() <= ends.sum() + len(rows.ids)


def test_a_start_is_timed_and_one_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_start, "_START", "import sys; assert sys.argv[-1] == '--help'")
    found = run_benches(["cli_start"], quick=True)[0]
    wall, cpu = found.samples["wall_s"], found.samples["cpu_s"]
    assert len(wall) == len(cpu) == 2 and found.value > 0 and found.at_most
    monkeypatch.setattr(cli_start, "_START", "raise SystemExit('no such thing')")
    with pytest.raises(MachineError, match="no such thing"):
        cli_start.start()
