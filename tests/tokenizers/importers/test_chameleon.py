"""Chameleon's VQ: the encoder's half in transformers, both halves in the original file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_codecs import Forward, Spec, make_state, nearest, shaken, some_pixels

from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.importers import import_codec

SPEC = Spec(multipliers=(1, 2, 2), attention=())


@torch.no_grad()
def test_the_original_file_decodes_too(tmp_path: Path) -> None:
    state = make_state(SPEC)
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    tokenizer, report = import_codec(tmp_path / "vqgan.ckpt", "chameleon")
    forward, x = Forward(SPEC, state), some_pixels(1, 3, 12, 16)
    table = state["quantize.embedding.weight"]
    due = nearest(forward.latents(x), table)
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], due)
    expected = forward.pixels(table[due].permute(0, 3, 1, 2)).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)
    assert report.kind == "chameleon" and not report.notes


@torch.no_grad()
def test_transformers_half_gives_its_codes_and_says_that_it_cannot_decode(tmp_path: Path) -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    config = ChameleonVQVAEConfig(
        embed_dim=4,
        num_embeddings=50,
        latent_channels=6,
        resolution=24,
        base_channels=32,
        channel_multiplier=[1, 2, 2],
        num_res_blocks=2,
    )
    model = shaken(ChameleonVQVAE(config))
    model.save_pretrained(tmp_path)
    tokenizer, report = import_codec(tmp_path)
    x = some_pixels(2, 3, 24, 20)
    due = model.encode(x).image_tokens.reshape(2, 6, 5)
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], due) and len(torch.unique(due)) > 5
    assert report.kind == "chameleon" and "no decoder" in report.notes[0]
    with pytest.raises(InputError, match="without a decoder"):
        tokenizer.net.decode(codes)


def test_half_of_a_decoder_is_refused(tmp_path: Path) -> None:
    state = {k: v for k, v in make_state(SPEC).items() if not k.startswith("decoder.up.1")}
    torch.save(state, tmp_path / "vqgan.ckpt")
    with pytest.raises(FormatError, match="missing"):
        import_codec(tmp_path / "vqgan.ckpt", "chameleon")
