"""The codec loop on nets of a few thousand weights."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyglyph.checkpoint import find_checkpoint, load_tensors, read_manifest
from polyglyph.config import build
from polyglyph.data.sources.shapes import to_media
from polyglyph.errors import ConfigError, FormatError, InputError, PolyglyphError
from polyglyph.tokenizers import load_tokenizer
from polyglyph.train import codec_loop as module
from polyglyph.train import criteria, guards
from polyglyph.train.codec_loop import CodecRun, CodecTraining, make_net, train_codec
from polyglyph.train.runlog import Interrupted, RunFolder
from polyglyph.train.wear import wear

FIGURES = ("step", "loss", "lr", "grad_norm", "losses", "codebooks", "monitors")
TRUNK = {"base": 8, "multipliers": [1, 2], "attention": False, "patch": 4}
CODECS: dict[str, dict[str, Any]] = {
    "image": {"codec": TRUNK},
    "video": {"codec": {**TRUNK, "frames_in_loss": 2}},
    "audio": {
        "codec": {
            "strides": [8, 8, 10],
            "widths": [8, 8, 8],
            "encoder_units": [0, 0, 0],
            "decoder_units": [0, 0, 0],
            "d_latent": 8,
            "taps": 1,
        },
        "quantizer": {"kind": "rvq", "n_codebooks": 2},
        "loss": {"windows": [256]},
        "data": {"batch_size": 3},
    },
}


def run_of(modality: str = "image", **sections: dict[str, Any]) -> CodecRun:
    data: dict[str, dict[str, Any]] = {
        "run": {
            "kind": "codec",
            "name": f"little-{modality}",
            "steps": 4,
            "log_every": 1,
            "dtype": "fp32",
            "threads": 1,
        },
        "codec": {"modality": modality},
        "quantizer": {"codebook_size": 16, "d_code": 4, "threshold_ema_dead_code": 2.0},
        "data": {"batch_size": 2},
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup": 2},
        "checkpoint": {"every": 2},
        "eval": {"every": 3, "n": 2},
    }
    for changes in (CODECS[modality], sections):
        for name, values in changes.items():
            data[name] = {**data.get(name, {}), **values}
    return build(CodecRun, data, "the test")


def figures(out: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in FIGURES} for line in RunFolder(out).lines()]


def at_step(step: int, do: Any) -> Any:
    return lambda line: do() if line["step"] == step else None


def die() -> None:
    raise RuntimeError("killed")


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


ADVERSARIAL = {"loss": {"adversarial": 0.5, "discriminator_start": 1}}
EVERYTHING = {
    "adversarial": 1.0,
    "discriminator_width": 8,
    "discriminator_windows": [128, 64],
    "lecam": 0.1,
    "feature_matching": 1.0,
    "balancer": True,
    "l1": 0.1,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("image", {}),
    "judged": ("image", {"run": {"dtype": "bf16"}, "ema": {"decay": 0.9}, **ADVERSARIAL}),
    "video": ("video", {}),
    "audio": ("audio", {}),
    "balanced": ("audio", {"loss": EVERYTHING, "run": {"steps": 4}}),
}


@pytest.mark.parametrize(("modality", "sections"), VARIANTS.values(), ids=VARIANTS.keys())
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    modality: str, sections: dict[str, Any], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = run_of(modality, **sections)
    train_codec(config, whole)
    with pytest.raises(RuntimeError, match="killed"):
        train_codec(config, cut, on_log=at_step(3, die))
    assert [line["step"] for line in RunFolder(cut).lines()] == [1, 2, 3]
    train_codec(config, cut, resume=True)
    assert figures(cut) == figures(whole) and len(figures(cut)) == 4
    one, other = (RunFolder(path).load_state()[0] for path in (whole, cut))
    assert any("learner" in key for key in one), "the EMA statistics are part of the state"
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_dead_codes_are_restarted_from_the_random_state_that_is_saved() -> None:
    """What the test above rests on: steps do draw random numbers."""
    training = CodecTraining(run_of(quantizer={"threshold_ema_dead_code": 30.0}))
    training.advance()
    before = training.state()[0]["rng"]
    training.advance()
    assert not torch.equal(before, training.state()[0]["rng"])


def test_saving_and_checking_draw_no_random_numbers(tmp_path: Path) -> None:
    training = CodecTraining(run_of())
    training.advance()
    run = RunFolder.create(tmp_path / "r", "", {})
    before = torch.get_rng_state()
    training.write_model(tmp_path / "model")
    module._monitor(training, run)
    assert torch.equal(torch.get_rng_state(), before) and training.net.training


def test_a_log_line_holds_what_the_design_says(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    line = train_codec(run_of(**ADVERSARIAL), tmp_path / "r", on_log=said.append)
    lines = RunFolder(tmp_path / "r").lines()
    assert lines == said and lines[-1] == line
    assert set(line) == {
        "step", "time_s", "loss", "lr", "grad_norm", "data_wait_s", "media_per_s", "peak_bytes",
        "losses", "codebooks", "monitors",
    }  # fmt: skip
    assert set(line["codebooks"][0]) == {"usage", "perplexity", "dead"}
    terms = {"l1", "l2", "structure", "quantizer", "adversarial"}
    assert set(line["losses"]) == terms | {"discriminator"}
    total = sum(value for name, value in line["losses"].items() if name in terms)
    assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert [bool(entry["monitors"]) for entry in lines] == [False, False, True, True]
    assert set(line["monitors"]) == {"scenes_right", "n_scenes"}
    assert sorted(p.name for p in (tmp_path / "r" / "samples").iterdir()) == [
        "step-00000003.png",
        "step-00000004.png",
    ]


def test_what_is_logged_less_often_is_counted_over_all_steps_between(tmp_path: Path) -> None:
    config = run_of(run={"log_every": 3}, eval={"every": 100})
    train_codec(config, tmp_path / "r")
    assert [line["step"] for line in RunFolder(tmp_path / "r").lines()] == [3, 4]


def test_the_checkpoint_is_a_codec_without_what_trained_it(tmp_path: Path) -> None:
    train_codec(run_of(**ADVERSARIAL), tmp_path / "r")
    folder = find_checkpoint(tmp_path / "r")
    manifest = read_manifest(folder, "codec")
    entry = manifest["tokenizers"]["image"]
    tokenizer: Any = load_tokenizer(folder / entry["path"])
    assert tokenizer.fingerprint == entry["fingerprint"]
    tensors = load_tensors(folder / entry["path"] / "weights.safetensors")
    assert {v.dtype for v in tensors.values()} == {torch.bfloat16}
    assert not [key for key in tensors if "learner" in key or "judge" in key]
    state, numbers, _ = RunFolder(tmp_path / "r").load_state()
    assert numbers["step"] == 4 and any(key.startswith("judge.") for key in state)
    for name, value in tokenizer.net.state_dict().items():
        if "codebook" not in name:
            assert torch.equal(value, state[f"net.{name}"].bfloat16().float())
    learned = state["net.quantizer.learner._codebook.embed"]
    torch.testing.assert_close(tokenizer.net.quantizer.codebook, learned, atol=4e-3, rtol=0)
    picture = to_media(("image", np.full((61, 35, 3), 90, np.uint8)))
    assert tokenizer.decode(tokenizer.encode(picture)).pil.size == (35, 61)
    weights = folder / entry["path"] / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(FormatError, match="doesn't match its sha256"):
        read_manifest(folder, "codec")


def test_the_discriminator_joins_at_its_step_and_learns(tmp_path: Path) -> None:
    training = CodecTraining(run_of(**ADVERSARIAL))
    assert training.judge is not None
    before = [p.clone() for p in training.judge.parameters()]
    assert "discriminator" not in training.advance()["losses"]
    assert all(map(torch.equal, before, training.judge.parameters()))
    losses = training.advance()["losses"]
    assert losses["discriminator"] > 0 and losses["adversarial"] != 0
    assert not any(map(torch.equal, before, training.judge.parameters()))
    assert CodecTraining(run_of()).judge is None


def test_row_38_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CodecTraining.tensor_batch
    monkeypatch.setattr(
        CodecTraining,
        "tensor_batch",
        lambda self, step: real(self, step) * (math.nan if step == 3 else 1),
    )
    with pytest.raises(PolyglyphError, match=r"loss became nan at step 4; the last checkpoint is"):
        train_codec(run_of(), tmp_path / "r")
    run = RunFolder(tmp_path / "r")
    folder = run.latest()
    assert folder is not None and folder.name == "step-00000002"
    assert all(torch.isfinite(v.float()).all() for v in run.load_state()[0].values())
    assert not (tmp_path / "r" / "lock.json").exists()


def test_row_38_a_gradient_that_is_not_finite_changes_no_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = CodecTraining(run_of())
    training.advance()
    before = {k: v.clone() for k, v in training.net.named_parameters()}
    training.net.decoder.conv_out.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(PolyglyphError, match=r"gradient norm became (inf|nan) at step 2"):
        training.advance()
    assert all(torch.equal(v, before[k]) for k, v in training.net.named_parameters())


def test_collapse_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "COLLAPSE_STEPS", 3)
    monkeypatch.setattr(guards, "collapsed", lambda codes, size: [True])
    with pytest.raises(PolyglyphError, match="codebook collapse"):
        train_codec(run_of(), tmp_path / "r")
    run = RunFolder(tmp_path / "r")
    assert [line["step"] for line in run.lines()] == [1, 2, 3]
    assert run.latest() is not None, "the checkpoint of step 2 stays"


def test_the_count_of_low_use_survives_a_resume(tmp_path: Path) -> None:
    training = CodecTraining(run_of())
    training.advance()
    training.guards.low_use = 123
    tensors, numbers = training.state()
    other = CodecTraining(run_of())
    other.load_state(tensors, {**numbers, "step": 1})
    assert (other.guards.low_use, other.step) == (123, 1)


def test_row_37_ctrl_c_saves_and_exits_with_130(tmp_path: Path) -> None:
    config = run_of(checkpoint={"every": 100})
    with pytest.raises(Interrupted, match="stopped by SIGINT after step 1; continue") as caught:
        train_codec(config, tmp_path / "r", on_log=at_step(1, ctrl_c))
    assert caught.value.exit_status == 130
    folder = RunFolder(tmp_path / "r").latest()
    assert folder is not None and folder.name == "step-00000001"
    assert not (tmp_path / "r" / "lock.json").exists()
    assert train_codec(config, tmp_path / "r", resume=True)["step"] == 4


def test_a_signal_at_the_last_step_lets_the_run_end(tmp_path: Path) -> None:
    assert train_codec(run_of(), tmp_path / "r", on_log=at_step(4, ctrl_c))["step"] == 4


def test_a_finished_run_resumed_is_still_finished(tmp_path: Path) -> None:
    line = train_codec(run_of(), tmp_path / "r")
    assert train_codec(run_of(), tmp_path / "r", resume=True) == line
    with pytest.raises(InputError, match=r"already exists .* --resume"):
        train_codec(run_of(), tmp_path / "r")
    with pytest.raises(InputError, match="holds no run to resume"):
        train_codec(run_of(), tmp_path / "other", resume=True)


def test_a_video_codec_starts_from_the_trunk_of_an_image_run(tmp_path: Path) -> None:
    config = run_of(run={"steps": 1})
    train_codec(config, tmp_path / "image")
    trained: Any = load_tokenizer(find_checkpoint(tmp_path / "image") / "tokenizers" / "image")
    for path in ("image", "image/checkpoints/step-00000001/model/tokenizers/image"):
        net: Any = make_net(run_of("video", codec={"init": str(tmp_path / path)}))[0]
        for part in ("encoder", "decoder"):
            ours, theirs = getattr(net, part).state_dict(), getattr(trained.net, part).state_dict()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(ConfigError, match=r"image codec has base = 8, this codec 12"):
        make_net(run_of("video", codec={"init": str(tmp_path / "image"), "base": 12}))
    with pytest.raises(ConfigError, match="holds no audio codec"):
        make_net(run_of("audio", codec={"init": str(tmp_path / "image")}))
    with pytest.raises(InputError, match="no such folder"):
        make_net(run_of("video", codec={"init": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ({"modality": "imgae"}, "unknown modality 'imgae'; did you mean 'image'"),
        ({"modality": "text"}, "text has no codec that trains on media"),
        ({"modality": 3}, "codec.modality is missing"),
        ({"bsae": 8}, r"\[codec\].*unknown key 'bsae'; did you mean 'base'"),
        ({"multipliers": []}, r"\[codec\].*multipliers"),
    ],
)
def test_wrong_sections_are_refused_before_anything_is_written(
    codec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train_codec(run_of(codec=codec), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_run_folder_says_what_it_is(tmp_path: Path) -> None:
    train_codec(run_of(run={"steps": 1}), tmp_path / "r")
    said = json.loads((tmp_path / "r" / "run.json").read_text())
    assert said == {"format": 1, "kind": "codec", "name": "little-image"}


def test_two_pictures_are_learned_to_20_db() -> None:
    training = CodecTraining(
        run_of(
            run={"steps": 100},
            codec={"base": 16},
            quantizer={"codebook_size": 64, "d_code": 8, "threshold_ema_dead_code": 0.5},
            loss={"structure": 0.0},
            optimizer={"lr": 5e-3},
            schedule={"warmup": 10},
        )
    )
    batch = training.tensor_batch(0)
    training.tensor_batch = lambda step: batch  # type: ignore[method-assign]
    for _ in range(100):
        training.advance()
    with training.exported() as tokenizer:
        net = tokenizer.net
        error = (net.decode(net.encode(batch)) - batch).square().mean()  # of a range of 2
    assert 10 * math.log10(4 / float(error)) >= 20


# Weights that are averaged -----------------------------------------------------------------


def test_the_average_is_exported_and_the_manifest_says_so(tmp_path: Path) -> None:
    for export, due in (("ema", "ema 0.5"), ("raw", "raw")):
        out = tmp_path / export
        train_codec(run_of(ema={"decay": 0.5, "export": export}, eval={"every": 100}), out)
        folder = find_checkpoint(out)
        assert read_manifest(folder, "codec")["origin"].endswith(f"(weights: {due})")
        assert json.loads((out / "run.json").read_text())["weights"] == due
        state = RunFolder(out).load_state()[0]
        tokenizer: Any = load_tokenizer(folder / "tokenizers" / "image")
        set_ = {"ema": "ema.", "raw": "net."}[export]
        other = {"ema": "net.", "raw": "ema."}[export]
        name = "decoder.conv_out.weight"
        found = tokenizer.net.state_dict()[name]
        assert torch.equal(found, state[set_ + name].bfloat16().float())
        assert not torch.equal(found, state[other + name].bfloat16().float())


# Frozen codes ------------------------------------------------------------------------------


def test_a_decoder_trains_alone_and_every_code_stays_what_it_was(tmp_path: Path) -> None:
    train_codec(run_of(), tmp_path / "first")
    config = run_of(
        codec={"init": str(tmp_path / "first"), "freeze": "encoder"}, optimizer={"lr": 1e-2}
    )
    line = train_codec(config, tmp_path / "second")
    assert "quantizer" not in line["losses"]
    assert len(json.loads((tmp_path / "second" / "run.json").read_text())["frozen"]) == 64
    one, other = (
        load_tokenizer(find_checkpoint(tmp_path / name) / "tokenizers" / "image")
        for name in ("first", "second")
    )
    picture = to_media(("image", np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)))
    codes = one.encode(picture)
    assert codes.same_codes(other.encode(picture))
    decoded = one.decode(codes), other.decode(other.encode(picture))
    assert not np.array_equal(*(image.array for image in decoded)), "the decoder did learn"
    with pytest.raises(FormatError, match=f"{one.fingerprint[:12]}.*{other.fingerprint[:12]}"):
        other.decode(codes)  # equal codes, but another codec by its weights
    train_codec(config, tmp_path / "second", resume=True)


# A teacher of the first codebook -----------------------------------------------------------


class FakeTeacher(torch.nn.Module):
    """Hears the level of every 640th part of a second."""

    width = 3

    def __init__(self, folder: str, sample_rate: int, layer: int | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return sound[:, 0].unflatten(-1, (-1, 640)).std(-1)[..., None] * self.weight


def test_a_teachers_projection_trains_and_resumes_and_the_teacher_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "Teacher", FakeTeacher)
    config = run_of("audio", loss={"semantic": 1.0, "teacher": "hubert"}, eval={"every": 100})
    line = train_codec(config, tmp_path / "whole")
    assert line["losses"]["semantic"] > 0
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["teacher"] == "hubert"
    with pytest.raises(RuntimeError, match="killed"):
        train_codec(config, tmp_path / "cut", on_log=at_step(3, die))
    train_codec(config, tmp_path / "cut", resume=True)
    one, other = (RunFolder(tmp_path / name).load_state()[0] for name in ("whole", "cut"))
    assert {key for key in one if key.startswith("criteria.")} == {
        "criteria.distillation.project.weight",
        "criteria.distillation.project.bias",
    }
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    shown = sorted(path.suffix for path in (tmp_path / "whole" / "samples").iterdir())
    assert shown == [".png", ".wav"]
    frozen = {"init": str(tmp_path / "whole"), "freeze": "encoder"}
    with pytest.raises(ConfigError, match=r"loss\.semantic trains the encoder"):
        CodecTraining(run_of("audio", loss={"semantic": 1.0, "teacher": "h"}, codec=frozen))


# A user's own media ------------------------------------------------------------------------


def test_a_codec_trains_on_a_folder_and_says_which_files_it_left_out(tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (90 + i, 120, 3), np.uint8)
        to_media(("image", pixels)).save(album / f"{i}.png")
    (album / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    config = run_of(data={"source": str(album), "side": 64, "batch_size": 4})
    train_codec(config, tmp_path / "r")
    train_codec(config, tmp_path / "r", resume=True)
    lines = (tmp_path / "r" / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["broken.png"]
    with pytest.raises(ConfigError, match=r"data.side is 68, no multiple .* stride of 8; .* 64"):
        train_codec(run_of(data={"source": str(album), "side": 68}), tmp_path / "s")


def test_row_38_pixels_of_0_to_255_stop_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CodecTraining.tensor_batch
    wrong = lambda self, step: (real(self, step) + 1) * 127.5  # noqa: E731
    monkeypatch.setattr(CodecTraining, "tensor_batch", wrong)
    with pytest.raises(InputError, match=r"due in \[-1, 1\], these reach .* divide pixels"):
        train_codec(run_of(), tmp_path / "r")


@pytest.mark.parametrize("modality", CODECS)
def test_a_steady_codec_brings_decoded_and_damaged_media_to_the_clean_ones(modality: str) -> None:
    damage = {"noise": 0.2, "shift": 0.1}
    training = CodecTraining(run_of(modality, data=damage, loss={"steady": 0.5}))
    net, batch = training.net.train(), training.tensor_batch(0)
    out = net.training_losses(batch)
    found = training.criteria._steady(net, batch, out, 0)
    again = net.decoded(out)
    assert len(again) == len(batch) // 2 and again.shape[1:] == batch.shape[1:]
    worn = wear(torch.cat([again, batch[len(again) :]]), 0.2, 0.1, 0, 0)
    vectors = [net.quantizer.scheme.normed(net.quantizer.project_in(z)) for z in
               (net.vectors(worn), out.latents)]  # fmt: skip
    due = (vectors[0] - vectors[1]).square().sum() / vectors[1].square().sum()
    assert float(found) == pytest.approx(float(due), rel=1e-4) and float(found) > 0
    grads = torch.autograd.grad(found, list(net.encoder.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)
    assert training.advance()["losses"]["steady"] > 0


def test_damage_without_a_steady_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"damage of loss.steady, which has no weight"):
        CodecTraining(run_of(data={"noise": 0.2}))
