"""SBER-MoVQGAN: spatial norms, and two sets of weights that are never mixed up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_codecs import Forward, Spec, State, make_state, nearest, some_pixels

from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers import load_tokenizer
from polyglyph.tokenizers.importers import import_codec

SPEC = Spec(multipliers=(1, 2), attention=(1,), z=4, d=4, spatial=True)


def averages(state: State) -> State:
    """LitEma's twins of `state`: the part's name, and the rest without its dots."""
    twins: State = {}
    for key, tensor in state.items():
        part, name = key.split(".", 1)
        twins[f"ema_{part}.{name.replace('.', '')}"] = tensor
        twins[f"ema_{part}.decay"] = torch.tensor(0.999)
        twins[f"ema_{part}.num_updates"] = torch.tensor(-1)
    return twins


def write(folder: Path, state: State, name: str = "movq.ckpt") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize("conv", [False, True])
@torch.no_grad()
def test_codes_and_pixels_are_those_of_the_original_layout(conv: bool, tmp_path: Path) -> None:
    spec = Spec(multipliers=(1, 2), attention=(1,), z=4, d=4, spatial=True, spatial_conv=conv)
    state = make_state(spec)
    tokenizer, report = import_codec(write(tmp_path, state))
    forward, x = Forward(spec, state), some_pixels(2, 3, 8, 14)
    table = state["quantize.embedding.weight"]
    due = nearest(forward.latents(x), table)
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], due)
    expected = forward.pixels(table[due].permute(0, 3, 1, 2)).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)
    assert report.kind == "movq" and set(report.loaded) == set(state)


@torch.no_grad()
def test_of_two_sets_the_named_one_is_taken(tmp_path: Path) -> None:
    raw, averaged = make_state(SPEC), make_state(Spec(**{**vars(SPEC), "seed": 4}))
    path = write(tmp_path, raw | averages(averaged))
    with pytest.raises(InputError, match="'movq-ema'"):
        import_codec(path)
    x = some_pixels(1, 3, 8, 14)
    for kind, state in (("movq", raw), ("movq-ema", averaged)):
        tokenizer, report = import_codec(path, kind)
        due = nearest(Forward(SPEC, state).latents(x), state["quantize.embedding.weight"])
        assert torch.equal(tokenizer.net.encode(x)[:, 0], due)
        assert len(report.loaded) == len(state) < len(report.ignored)
        assert all(key.startswith("ema_") == (kind == "movq-ema") for key in report.loaded)


def test_averages_that_are_not_there_are_refused(tmp_path: Path) -> None:
    state = make_state(SPEC)
    with pytest.raises(FormatError, match="no moving averages"):
        import_codec(write(tmp_path, state), "movq-ema")
    twins = averages(state)
    del twins["ema_decoder.midblock_1norm1conv_yweight"]
    with pytest.raises(FormatError, match="missing"):
        import_codec(write(tmp_path, state | twins), "movq-ema")


def test_a_plain_decoder_is_no_movq(tmp_path: Path) -> None:
    state = make_state(Spec(multipliers=(1, 2), attention=(1,)))
    with pytest.raises(FormatError, match="plain"):
        import_codec(write(tmp_path, state), "movq")
    spatial = make_state(SPEC)
    del spatial["decoder.mid.block_1.norm1.conv_b.bias"]
    with pytest.raises(FormatError, match="missing"):
        import_codec(write(tmp_path, spatial))


@torch.no_grad()
def test_an_imported_codec_is_a_folder_of_ours(tmp_path: Path) -> None:
    tokenizer, _ = import_codec(write(tmp_path, make_state(SPEC)))
    tokenizer.save(tmp_path / "codec")
    again = load_tokenizer(tmp_path / "codec")
    assert again.fingerprint == tokenizer.fingerprint != ""
    grid = tokenizer.encode((some_pixels(11, 9, 3).numpy() * 127 + 128).astype("uint8"))
    assert grid.shape == (6, 5) and again.encode(again.decode(grid)).shape == (6, 5)
    assert (again.decode(grid).array == tokenizer.decode(grid).array).all()
    assert again.decode(grid).array.shape == (11, 9, 3)
