"""Published weights: every file layout is read, and nothing passes unexplained."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyglyph.checkpoint import save_tensors
from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.importers.weights import (
    QKV,
    WEIGHT_NORM,
    KeyMap,
    Report,
    convert_state,
    read_source,
    read_state,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], v) for k, v in expected.items()
    )


def convert(
    state: dict[str, Tensor], expected: dict[str, Tensor], keys: KeyMap
) -> tuple[dict[str, Tensor], Report]:
    report = Report("toy", "file")
    return convert_state(state, expected, keys, report), report


def test_one_file_shards_and_pickles_give_the_same_tensors(tmp_path: Path) -> None:
    save_tensors(tmp_path / "one" / "weights.safetensors", STATE)
    folder = tmp_path / "shards"
    for i, (key, tensor) in enumerate(STATE.items()):
        save_tensors(folder / f"model-{i}.safetensors", {key: tensor})
    index = {"weight_map": {key: f"model-{i}.safetensors" for i, key in enumerate(STATE)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(STATE, tmp_path / "flat.bin")
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "lightning.ckpt")
    for source in ("one", "one/weights.safetensors", "shards", "flat.bin", "lightning.ckpt"):
        assert same(read_state(tmp_path / source)), source
    assert read_source(tmp_path / "lightning.ckpt").extra == {"epoch": 3}


def test_ema_weights_are_chosen_first_and_the_choice_is_named(tmp_path: Path) -> None:
    other = {key: tensor + 1 for key, tensor in STATE.items()}
    torch.save({"model": other, "ema": STATE, "optimizer": {}}, tmp_path / "a.pt")
    found = read_source(tmp_path / "a.pt")
    assert same(found.state) and found.chosen == "ema" and "model" in found.left
    assert same(read_state(tmp_path / "a.pt", nested=("model",)), other)


def test_a_prefix_is_cut_off_and_the_rest_left_with_a_reason(tmp_path: Path) -> None:
    state = {f"model.vq.{k}": v for k, v in STATE.items()} | {"lm_head": torch.ones(2)}
    save_tensors(tmp_path / "x.safetensors", state)
    found = read_source(tmp_path / "x.safetensors", ["vq.", "model.vq."])
    assert same(found.state) and "model.vq." in found.left["lm_head"]


class Danger:
    def __reduce__(self) -> tuple:
        return (eval, ("1 / 0",))


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"state_dict": Danger()}))
    torch.save({"state_dict": STATE, "callbacks": Danger()}, tmp_path / "zip.ckpt")
    for name in ("bad.pt", "zip.ckpt"):
        with pytest.raises(FormatError) as caught:
            read_state(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_unreadable_sources_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 9)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"hyper": {"lr": 1}}, tmp_path / "none.pt")
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "two").mkdir()
    torch.save(STATE, tmp_path / "two" / "a.pt")
    torch.save(STATE, tmp_path / "two" / "b.pt")
    (tmp_path / "out").mkdir()
    escape = {"weight_map": {"a": "../flat.bin"}}
    (tmp_path / "out" / "pytorch_model.bin.index.json").write_text(json.dumps(escape))
    names = ("absent", "empty", "noise.pt", "list.pt", "none.pt", "text.txt", "two", "out")
    for name in names:
        with pytest.raises(InputError) as caught:
            read_state(tmp_path / name)
        assert "\n" not in str(caught.value), name


def test_cut_and_flipped_pickles_are_refused_or_read(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        at = int(torch.randint(len(data), (1,), generator=generator))
        broken = data[:at] if i % 2 else data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        (tmp_path / "broken.pt").write_bytes(broken)
        try:
            found = read_state(tmp_path / "broken.pt")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(tensor, Tensor) for tensor in found.values())


def test_renames_merges_and_conversions_make_our_tensors() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = {p: torch.randn(3, 3, generator=generator) for p in "qkv"}
    state = {f"attn.{p}.weight": tensor for p, tensor in parts.items()}
    g, v = torch.rand(4, 1, 1, generator=generator), torch.randn(4, 2, 5, generator=generator)
    state |= {"conv.weight_g": g, "conv.weight_v": v, "loss.x": torch.ones(1)}
    keys = KeyMap(
        renames=[
            (r"attn\.([qkv])\.weight", r"qkv.weight@\1"),
            (r"weight_([gv])$", r"weight@\1"),
        ],
        ignored=[(r"loss\.", "training only")],
        merges=[QKV, WEIGHT_NORM],
        converts=[(r"^qkv", lambda t: t[..., None, None])],
    )
    expected = {"qkv.weight": torch.empty(9, 3, 1, 1), "conv.weight": torch.empty(4, 2, 5)}
    ours, report = convert(state, expected, keys)
    assert torch.equal(ours["qkv.weight"][..., 0, 0], torch.cat([parts[p] for p in "qkv"]))
    norms = ours["conv.weight"].flatten(1).norm(dim=1)
    assert torch.allclose(norms, g.flatten())
    assert report.ignored == {"loss.x": "training only"} and len(report.loaded) == 5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"b": None}, "missing"),
        ({"c": torch.ones(1)}, "unexpected"),
        ({"a.weight": torch.ones(2, 4)}, "shape"),
        ({"a.weight": torch.full((2, 3), torch.nan)}, "not finite"),
    ],
)
def test_every_mismatch_is_refused_in_one_line(change: dict[str, Tensor | None], word: str) -> None:
    state = {k: v for k, v in (STATE | change).items() if v is not None}
    with pytest.raises(FormatError, match=word) as caught:
        convert(state, STATE, KeyMap())
    assert "\n" not in str(caught.value)


def test_two_sources_of_one_tensor_are_refused() -> None:
    keys = KeyMap(renames=[(r"^ema_b$", "b")])
    with pytest.raises(FormatError, match="unexpected"):
        convert(STATE | {"ema_b": torch.tensor([3, 4])}, STATE, keys)


def test_half_of_a_merged_tensor_is_missing() -> None:
    keys = KeyMap(renames=[("weight_g", "weight@g")], merges=[WEIGHT_NORM])
    with pytest.raises(FormatError, match="missing"):
        convert({"weight_g": torch.ones(2, 1)}, {"weight": torch.ones(2, 3)}, keys)
