"""LlamaGen's and Janus's VQ: the original layout, transformers' copy, and what they share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from published_codecs import LLAMAGEN, Forward, Spec, make_state, nearest, shaken, some_pixels

from polyglyph.checkpoint import save_tensors
from polyglyph.errors import FormatError
from polyglyph.tokenizers.importers import import_codec

SPEC = Spec(LLAMAGEN, multipliers=(1, 2, 2), attention=(2,), d=3, size=50)


@torch.no_grad()
def test_the_original_layout_gives_normalised_codes_and_their_pixels(tmp_path: Path) -> None:
    state = make_state(SPEC)
    other = {key: tensor + 1 for key, tensor in state.items()}
    used = {"quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": other, "ema": state | used, "steps": 9}, tmp_path / "vq.pt")
    tokenizer, report = import_codec(tmp_path / "vq.pt")
    forward, x = Forward(SPEC, state), some_pixels(2, 3, 12, 20)
    table = F.normalize(state["quantize.embedding.weight"], dim=-1)
    due = nearest(F.normalize(forward.latents(x), dim=1), table)
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], due) and len(torch.unique(due)) > 5
    expected = forward.pixels(table[due].permute(0, 3, 1, 2)).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)
    assert report.kind == "llamagen" and "statistic" in report.ignored["quantize.codebook_used"]
    assert "model" in report.ignored


def janus(n_patches: int = 6) -> torch.nn.Module:
    from transformers import JanusVQVAE, JanusVQVAEConfig

    config = JanusVQVAEConfig(
        embed_dim=3,
        num_embeddings=50,
        latent_channels=6,
        base_channels=32,
        channel_multiplier=[1, 2, 2],
        num_res_blocks=1,
        num_patches=n_patches,
    )
    model = shaken(JanusVQVAE(config))
    # Rows of length one: where transformers, which doesn't normalise them, means the same codes.
    table = model.quantize.embedding.weight
    with torch.no_grad():
        table.copy_(F.normalize(table, dim=-1))
    return model


@torch.no_grad()
def test_transformers_copy_gives_its_codes_and_pixels(tmp_path: Path) -> None:
    model = janus()
    model.save_pretrained(tmp_path)
    tokenizer, report = import_codec(tmp_path)
    x = some_pixels(2, 3, 24, 24)
    due = model.encode(x).image_tokens.reshape(2, 6, 6)
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], due) and len(torch.unique(due)) > 5
    expected = model.decode(due.reshape(2, -1)).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)
    assert report.kind == "llamagen" and len(report.loaded) == len(model.state_dict())


def test_transformers_copy_is_found_by_its_keys_and_inside_janus(tmp_path: Path) -> None:
    state = dict(janus().state_dict())
    save_tensors(tmp_path / "keys" / "model.safetensors", state)
    inside = {f"model.vqmodel.{k}": v for k, v in state.items()} | {"lm_head": torch.ones(3)}
    save_tensors(tmp_path / "inside" / "model.safetensors", inside)
    marks = {import_codec(tmp_path / name)[0].fingerprint for name in ("keys", "inside")}
    assert len(marks) == 1


def test_the_levels_order_is_not_mistaken(tmp_path: Path) -> None:
    state = dict(janus().state_dict())
    save_tensors(tmp_path / "model.safetensors", state)
    with pytest.raises(FormatError):
        import_codec(tmp_path, "taming")
    torch.save(make_state(SPEC), tmp_path / "original.pt")
    with pytest.raises(FormatError):
        import_codec(tmp_path / "original.pt", "taming")


def test_a_config_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    janus().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["channel_multiplier"] = [1, 2, 4]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="channel_multiplier"):
        import_codec(tmp_path)
