from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from polyglyph.assembly import load_model, load_parts
from polyglyph.checkpoint import find_checkpoint, read_manifest
from polyglyph.config import build
from polyglyph.data.prepare import prepare
from polyglyph.errors import ConfigError, FormatError, InputError, MachineError, PolyglyphError
from polyglyph.kernels.cross_entropy import IGNORE
from polyglyph.media import Region
from polyglyph.sequence.document import Document, Segment
from polyglyph.tokenizers.text import TextTokenizer
from polyglyph.train import model_loop as module
from polyglyph.train.model_loop import (
    ModelRun,
    ModelTraining,
    SlotTable,
    load_sequence,
    train_model,
)
from polyglyph.train.runlog import Interrupted, RunFolder

WORDS = ["left", "right", "high", "low"]
FIGURES = ("loss", "z_loss", "lr", "grad_norm", "n_ids", "modalities", "monitors")


class Places:
    """Words of a place → a box there, and back."""

    name = "places"
    length: int | None = 60

    def get(self, index: int) -> list[Document]:
        rng = np.random.default_rng(index)
        a, b = rng.integers(0, 2, 2)
        words, low = f"{WORDS[a]} {WORDS[2 + b]}", np.array([a, b]) * 0.4 + 0.1
        box = Region(np.concatenate([low, low + 0.3]), "box")
        return [
            Document([Segment("text", words, "prompt", 0.0), Segment("region", box)]),
            Document([Segment("region", box, "prompt", 0.0), Segment("text", words)]),
        ]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a text codec and shards."""
    home = tmp_path_factory.mktemp("home")
    texts = [segment.text for i in range(60) for d in Places().get(i) for segment in d.of("text")]
    TextTokenizer.train(texts, 280).save(home / "text")
    parts = load_sequence(run_of(home).sequence)
    prepare(Places(), parts.tokenizers, parts.grammar, home / "shards")
    return home


def run_of(home: Path, **sections: dict) -> ModelRun:
    data = {
        "run": {"kind": "model", "name": "places", "steps": 6, "log_every": 1, "dtype": "fp32"},
        "sequence": {"codecs": [str(home / "text")], "untrained": ["region"], "n_sizes": 8},
        "model": {"d_model": 32, "n_layers": 2, "d_ff": 48, "context": 64},
        "data": {"shards": str(home / "shards"), "batch_size": 4, "row_length": 61},
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup": 2},
        "checkpoint": {"every": 3},
        "loss": {"full_every": 2},
    }
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return build(ModelRun, data, "the test")


def figures(out: Path) -> list[dict]:
    return [{k: line[k] for k in FIGURES} for line in RunFolder(out).lines()]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return RunFolder(out).load_state()[0]


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(home, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_model(run_of(home), whole)

    def stop_after_four(line: dict) -> None:
        if line["step"] == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_model(run_of(home), cut, on_log=stop_after_four)
    assert [line["step"] for line in RunFolder(cut).lines()] == [1, 2, 3, 4]
    train_model(run_of(home), cut, resume=True)
    assert [line["step"] for line in RunFolder(cut).lines()] == [1, 2, 3, 4, 5, 6]
    assert figures(cut) == figures(whole)
    one, other = weights_of(cut), weights_of(whole)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_it_resumes_bit_for_bit_in_bf16_too(home, tmp_path):
    sections = {"run": {"dtype": "bf16"}, "data": {"prompt_dropout": 0.4}}
    train_model(run_of(home, **sections), tmp_path / "whole")
    config = run_of(home, **sections)
    with pytest.raises(Interrupted):
        train_model(config, tmp_path / "cut", on_log=interrupt_at(2))
    train_model(config, tmp_path / "cut", resume=True)
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")


def interrupt_at(step: int):
    def on_log(line: dict) -> None:
        if line["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_log


def test_ctrl_c_saves_and_exits_with_130(home, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped by SIGINT after step 2; continue") as caught:
        train_model(run_of(home), tmp_path / "r", on_log=interrupt_at(2))
    assert caught.value.exit_status == 130
    assert RunFolder(tmp_path / "r").latest().name == "step-00000002"
    assert not (tmp_path / "r" / "lock.json").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_checkpoint_is_a_model_with_its_codecs_and_its_grammar(home, tmp_path):
    train_model(run_of(home, sampling={"region": {"temperature": 0.5}}), tmp_path / "r")
    folder = find_checkpoint(tmp_path / "r")
    manifest = read_manifest(folder, "model")
    parts = load_parts(folder)
    assert list(parts.tokenizers) == ["text", "region"]
    assert manifest["config"]["sampling"]["region"]["temperature"] == 0.5
    model = load_model(folder, manifest)
    trained = weights_of(tmp_path / "r")
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[f"model.{name}"].to(torch.bfloat16).float())
    assert model.config.vocabulary_size == parts.vocabulary.size
    text = (home / "text" / "text.model").read_bytes()
    assert (folder / "tokenizers" / "text" / "text.model").read_bytes() == text


def test_a_log_line_holds_what_the_design_says(home, tmp_path):
    line = train_model(run_of(home), tmp_path / "r")
    lines = RunFolder(tmp_path / "r").lines()
    assert line == lines[-1]
    assert set(line) == {
        "step", "time_s", "loss", "loss_full", "z_loss", "lr", "grad_norm", "n_ids", "ids_per_s",
        "data_wait_s", "peak_bytes", "mfu", "modalities", "monitors",
    }  # fmt: skip
    assert ["loss_full" in line for line in lines] == [False, True] * 3
    assert set(line["modalities"]) == {"text", "region"}
    parts = [*line["modalities"].values(), line["monitors"]["layout"]]
    weight = sum(part["weight"] for part in parts)
    mean = sum(part["loss"] * part["weight"] for part in parts) / weight
    assert math.isclose(mean, line["loss"], rel_tol=1e-5)
    assert line["modalities"]["region"]["uniform"] == pytest.approx(math.log(64))
    assert line["loss_full"] > line["loss"] and line["mfu"] > 0


def test_a_new_model_knows_the_slot_and_no_more(home):
    training = ModelTraining(run_of(home, loss={"text_head": "sliced"}))
    values = training.advance()
    for part in [*values["modalities"].values(), values["monitors"]["layout"]]:
        assert part["loss"] == pytest.approx(part["uniform"], rel=0.02)


def test_the_loss_is_that_of_a_softmax_over_each_slot(home):
    training = ModelTraining(run_of(home))
    batch = training.loader.sample(0)
    result, _ = training._losses(batch, False)
    logits = training.model(torch.from_numpy(batch.ids), doc_id=torch.from_numpy(batch.doc_id))
    logits = logits @ training.model.head_weight.T
    automaton, total, weight = training.grammar.automaton, 0.0, 0.0
    written = set(training.grammar.slots_of_modality("text").tolist())
    for b, t in np.argwhere((batch.targets != IGNORE) & (batch.weights > 0)):
        slot = int(batch.slots[b, t])
        if automaton.slot_size[slot] < 2:
            continue
        legal = torch.zeros(logits.shape[-1], dtype=torch.bool)
        for start, stop in automaton.slots[slot]:
            legal[start:stop] = True
        if slot in written:
            legal[:] = True
        masked = logits[b, t].masked_fill(~legal, -math.inf)
        total -= float(batch.weights[b, t]) * float(
            masked.detach().log_softmax(0)[batch.targets[b, t]]
        )
        weight += float(batch.weights[b, t])
    z = float(result.z_loss) * training.config.loss.z_loss
    assert float(result.loss.detach()) == pytest.approx(total / weight + z, rel=1e-4)
    assert float(result.normaliser) == pytest.approx(weight)


def test_training_lowers_the_loss(home, tmp_path):
    last = train_model(run_of(home, run={"steps": 40}, optimizer={"lr": 1e-2}), tmp_path / "r")
    region = last["modalities"]["region"]
    assert region["loss"] < 0.6 * region["uniform"]


def test_text_reads_the_whole_head_only_if_asked(home):
    grammar = load_sequence(run_of(home).sequence).grammar
    full = SlotTable(grammar, "full", torch.device("cpu"))
    sliced = SlotTable(grammar, "sliced", torch.device("cpu"))
    written = grammar.slots_of_modality("text")
    assert full.full.nonzero().flatten().tolist() == written.tolist()
    assert not sliced.full.any()
    assert (full.read[written] == grammar.vocabulary.size).all()
    assert (sliced.read == grammar.automaton.slot_size).all()


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(home, tmp_path, monkeypatch):
    real = module.sliced_cross_entropy
    calls = []

    def broken(hidden, *rest, **options):
        calls.append(1)
        return real(hidden * math.nan if len(calls) == 5 else hidden, *rest, **options)

    monkeypatch.setattr(module, "sliced_cross_entropy", broken)
    config = run_of(home, loss={"full_every": 0})
    with pytest.raises(PolyglyphError, match="loss became nan at step 5; the last checkpoint is"):
        train_model(config, tmp_path / "r")
    assert RunFolder(tmp_path / "r").latest().name == "step-00000003"
    assert all(torch.isfinite(v.float()).all() for v in weights_of(tmp_path / "r").values())
    assert not (tmp_path / "r" / "lock.json").exists()


def test_row_40_two_runs_in_one_folder_are_refused(home, tmp_path):
    out = tmp_path / "r"
    with pytest.raises(Interrupted):
        train_model(run_of(home), out, on_log=interrupt_at(1))
    with pytest.raises(InputError, match=r"already exists .* --resume"):
        train_model(run_of(home), out)
    with (
        RunFolder.open(out),
        pytest.raises(InputError, match=f"in use by process {os.getpid()} on"),
    ):
        train_model(run_of(home), out, resume=True)
    assert train_model(run_of(home), out, resume=True)["step"] == 6


def test_row_34_a_disk_without_room_is_found_before_the_first_step(home, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("D", (), {"free": 1000}))
    with pytest.raises(MachineError, match=r"1000 bytes free, the checkpoints need up to \d+"):
        train_model(run_of(home), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_other_shards_than_the_run_began_with_are_refused(home, tmp_path):
    out = tmp_path / "r"
    with pytest.raises(Interrupted):
        train_model(run_of(home), out, on_log=interrupt_at(1))
    parts = load_sequence(run_of(home).sequence)
    prepare(Places(), parts.tokenizers, parts.grammar, tmp_path / "fewer", n=50)
    with pytest.raises(FormatError, match="the run was trained on shards"):
        train_model(run_of(home, data={"shards": str(tmp_path / "fewer")}), out, resume=True)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"d_modle": 32}, r"\[model\]: unknown key 'd_modle'; did you mean 'd_model'"),
        ("model", {"context": 32}, "data.row_length = 61 is beyond model.context = 32"),
        ("model", {"vocabulary_size": 5}, "model.vocabulary_size is 5, the codecs make"),
        ("sequence", {"codecs": []}, "names no codecs"),
        ("sequence", {"checkpoint": "x"}, "exclude each other"),
    ],
)
def test_wrong_sections_are_refused_before_anything_is_written(
    home, tmp_path, section, values, message
):
    with pytest.raises(ConfigError, match=message):
        train_model(run_of(home, **{section: values}), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_run_json_describes_the_corpus(home, tmp_path):
    train_model(run_of(home, run={"steps": 1}), tmp_path / "r")
    said = json.loads((tmp_path / "r" / "run.json").read_text())
    assert said["corpus"]["n_documents"] == 120 and 0 <= said["corpus"]["padding"] < 1
    assert said["n_parameters"] == sum(
        value.numel() for name, value in weights_of(tmp_path / "r").items() if name[:6] == "model."
    )


def test_a_run_begins_from_another_ones_weights(home, tmp_path):
    train_model(run_of(home), tmp_path / "first")
    first = load_model(*loaded(tmp_path / "first"))
    training = ModelTraining(run_of(home, model={"init": str(tmp_path / "first")}))
    state = training.model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in first.state_dict().items())
    train_model(training.config, tmp_path / "second")
    second = load_model(*loaded(tmp_path / "second"))
    assert any(not torch.equal(v, first.state_dict()[k]) for k, v in second.state_dict().items())


def test_a_start_from_another_shape_or_other_codes_is_refused(home, tmp_path):
    train_model(run_of(home, run={"steps": 1}), tmp_path / "first")
    init = {"init": str(tmp_path / "first")}
    with pytest.raises(ConfigError, match=r"model.d_ff is 40, that of model.init 48"):
        ModelTraining(run_of(home, model={**init, "d_ff": 40}))
    wider = run_of(home, model=init, sequence={"n_sizes": 9})
    parts = load_sequence(wider.sequence)
    prepare(Places(), parts.tokenizers, parts.grammar, tmp_path / "shards")
    wider = run_of(
        home, model=init, sequence={"n_sizes": 9}, data={"shards": str(tmp_path / "shards")}
    )
    with pytest.raises(ConfigError, match=r"ids of .* stand for other codes; take its codecs"):
        ModelTraining(wider)


def loaded(run: Path) -> tuple[Path, dict]:
    folder = find_checkpoint(run)
    return folder, read_manifest(folder)
