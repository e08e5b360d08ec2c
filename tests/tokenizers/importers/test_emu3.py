"""Emu3's VisionVQ: both layouts give transformers' codes and pixels, for stills and clips."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from published_codecs import State, shaken, some_pixels
from torch import Tensor, nn

from polyglyph.checkpoint import save_tensors
from polyglyph.errors import FormatError
from polyglyph.media import Video
from polyglyph.tokenizers import load_tokenizer
from polyglyph.tokenizers.importers import import_codec

# What transformers' conversion renamed, undone: its keys to the original ones.
BACK = (
    (r"^(encoder|decoder)\.(down|up)_block\.", r"\1."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.attn_norms\.(\d)\.", r".attn.\1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
)


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    config = Emu3VQVAEConfig(
        codebook_size=60,
        embed_dim=4,
        latent_channels=4,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=2,
        attn_resolutions=[1],
        hidden_size=64,
    )
    model = shaken(Emu3VQVAE(config), 1)
    with torch.no_grad():  # a table where the latents are, so that many codes occur
        z = (
            latents(model, some_pixels(1, 8, 3, 32, 32, seed=8))
            .permute(0, 1, 3, 4, 2)
            .flatten(0, 3)
        )
        rows = torch.randperm(len(z), generator=torch.Generator().manual_seed(3))[:60]
        model.quantize.embedding.weight.copy_(z[rows])
    return model


def latents(peer: nn.Module, x: Tensor) -> Tensor:
    """What transformers quantizes: (B, F, 3, H, W) → (B, F/4, d, h, w)."""
    hidden = peer.encoder(x).permute(0, 2, 1, 3, 4)
    return peer.quant_conv(hidden).permute(0, 2, 1, 3, 4)


def original(state: State) -> State:
    """The state dict in Emu3's own layout: other names, linear layers as 1×1 convolutions."""
    renamed: State = {}
    for key, tensor in state.items():
        linear = re.search(r"(_proj)\.weight$", key)
        for pattern, replacement in BACK:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor[:, :, None, None] if linear else tensor
    return renamed


@pytest.fixture(scope="module")
def folders(peer: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("emu3")
    peer.save_pretrained(root / "transformers")
    save_tensors(root / "original" / "model.safetensors", original(dict(peer.state_dict())))
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("layout", ["transformers", "original"])
@torch.no_grad()
def test_a_still_has_the_codes_and_pixels_of_transformers(
    layout: str, peer: nn.Module, folders: dict[str, Path]
) -> None:
    tokenizer, report = import_codec(folders[layout])
    x = some_pixels(2, 3, 16, 28)
    sizes = torch.tensor([[16, 28]] * 2)
    due = torch.stack(peer.encode(x, image_sizes=sizes).image_tokens)
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], due) and len(torch.unique(due)) > 10
    expected = peer.decode(due).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)
    n_counters = sum("num_batches" in key for key in peer.state_dict())
    assert report.kind == "emu3" and len(report.ignored) == n_counters
    assert len(report.loaded) == len(peer.state_dict()) - n_counters


@torch.no_grad()
def test_a_clip_has_the_codes_and_frames_of_transformers(
    peer: nn.Module, folders: dict[str, Path]
) -> None:
    tokenizer, _ = import_codec(folders["original"], "emu3-video")
    x = some_pixels(1, 8, 3, 12, 8)
    due = peer.quantize(latents(peer, x))
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], due) and due.shape == (1, 2, 6, 4)
    expected = peer.decode(due).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_long_clip_in_windows_is_the_clip_in_one(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyglyph.tokenizers import video

    tokenizer, _ = import_codec(folders["original"], "emu3-video")
    rng = np.random.default_rng(2)
    clip = Video(rng.integers(0, 256, (74, 4, 6, 3), np.uint8), 8.0)
    grid = tokenizer.encode(clip)
    frames = tokenizer.decode(grid).frames
    assert grid.shape == (19, 2, 3) and frames.shape == (74, 4, 6, 3)
    monkeypatch.setattr(video, "_PIXELS_PER_BATCH", 4 * 4 * 6)  # one code in time per window
    assert (tokenizer.encode(clip).codes == grid.codes).all()
    assert np.abs(tokenizer.decode(grid).frames.astype(int) - frames).max() <= 1
    reach = tokenizer.net.n_past
    assert reach == 12
    monkeypatch.setattr(type(tokenizer.net), "n_past", 4)  # too little: the past does matter
    assert (tokenizer.encode(clip).codes != grid.codes).any()


def test_the_codec_is_a_folder_of_ours_for_either_medium(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    marks = set()
    for kind, modality in (("emu3", "image"), ("emu3-video", "video")):
        tokenizer, _ = import_codec(folders["original"], kind)
        tokenizer.save(tmp_path / kind)
        again = load_tokenizer(tmp_path / kind)
        assert again.fingerprint == tokenizer.fingerprint and again.modality == modality
        assert again.spec == tokenizer.spec and again.stride == tokenizer.stride
        marks.add(again.fingerprint)
    assert len(marks) == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"encoder.time_res_stack.1.norm2.running_var": None}, "missing"),
        ({"encoder.time_conv.1.conv.conv.weight": None}, "missing"),
        ({"decoder.up.1.attn.2.norm.conv_y.weight": None}, "missing"),
        ({"quantize.embedding.weight": torch.ones(60, 5)}, "width 5"),
        ({"decoder.temporal.weight": torch.ones(2)}, "unexpected"),
        ({"post_quant_conv.conv.weight": torch.ones(4, 4, 1, 1, 1)}, "shape"),
    ],
)
def test_a_changed_checkpoint_is_refused_in_one_line(
    change: dict[str, Tensor | None], word: str, peer: nn.Module, tmp_path: Path
) -> None:
    state = original(dict(peer.state_dict())) | change
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "emu3.pt")
    with pytest.raises(FormatError, match=word) as caught:
        import_codec(tmp_path / "emu3.pt", "emu3")
    assert "\n" not in str(caught.value)
