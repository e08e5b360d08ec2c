"""What a codec run starts from, and what of it stays frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyglyph.config import build
from polyglyph.errors import ConfigError
from polyglyph.lookup import find
from polyglyph.tokenizers import TABLE
from polyglyph.train.codec_loop import CodecRun
from polyglyph.train.starting import frozen_mark, make_net

TRUNK = {"base": 8, "multipliers": [1, 2], "attention": False, "patch": 2}
CODECS: dict[str, dict[str, Any]] = {
    "image": TRUNK,
    "video": {**TRUNK, "n_temporal_levels": 1},
    "audio": {
        "strides": [4, 4],
        "widths": [8, 8],
        "encoder_units": [0, 0],
        "decoder_units": [0, 0],
        "d_latent": 8,
        "taps": 1,
        "decoder_activation": "elu",
    },
}
SHAPES = {"image": (2, 3, 8, 12), "video": (2, 4, 3, 8, 12), "audio": (2, 1, 64)}


def run_of(modality: str, codec: dict[str, Any] | None = None, **sections: Any) -> CodecRun:
    data: dict[str, Any] = {
        "run": {"kind": "codec", "steps": 1},
        "codec": {"modality": modality, **CODECS[modality], **(codec or {})},
        "quantizer": {"codebook_size": 16, "d_code": 4, "kmeans_init": False},
        **sections,
    }
    return build(CodecRun, data, "the test")


def saved(modality: str, folder: Path, seed: int = 5) -> Path:
    net, tokenizer_class = make_net(run_of(modality, run={"kind": "codec", "steps": 1, "seed": 5}))
    torch.manual_seed(seed)
    net.quantizer.sync()
    tokenizer_class(net).save(folder)
    return folder


@pytest.mark.parametrize("modality", CODECS)
def test_a_codec_goes_on_from_one_of_its_kind(modality: str, tmp_path: Path) -> None:
    folder = saved(modality, tmp_path)
    tokenizer_class = find(TABLE, modality, "modality")
    trained = tokenizer_class.load(folder).net
    net, _ = make_net(run_of(modality, {"init": str(folder)}))
    assert net.quantizer.learner is not None
    net.quantizer.sync()
    x = torch.rand(SHAPES[modality], generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = trained.encode(x)
    ours = tokenizer_class(net).net
    assert torch.equal(ours.encode(x), codes)
    torch.testing.assert_close(ours.decode(codes), trained.decode(codes))


@pytest.mark.parametrize("modality", CODECS)
def test_only_what_decodes_trains_when_the_encoder_is_frozen(modality: str, tmp_path: Path) -> None:
    net, tokenizer_class = make_net(
        run_of(modality, {"init": str(saved(modality, tmp_path)), "freeze": "encoder"})
    )
    assert net.quantizer.learner is None
    mark, x = frozen_mark(net), torch.rand(SHAPES[modality]) * 2 - 1
    before = tokenizer_class(net).net.encode(x)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    net.train()
    for _ in range(2):
        optimizer.zero_grad()
        out = net.training_losses(x)
        torch.stack([v for v in out.losses.values() if v.requires_grad]).sum().backward()
        optimizer.step()
    assert all(p.grad is None for n, p in net.named_parameters() if n.startswith("encoder"))
    assert frozen_mark(net) == mark and torch.equal(tokenizer_class(net).net.encode(x), before)
    moved = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None}
    assert {"decoder", "quantizer"} <= moved
    with torch.no_grad():
        next(net.encoder.parameters()).add_(1e-3)
    assert frozen_mark(net) != mark


def test_a_codec_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = str(saved("image", tmp_path))
    with pytest.raises(ConfigError, match=r"codec.init: \d+ weights \(first: .*\) differ"):
        make_net(run_of("image", {"init": folder, "base": 16}))
    other = {"codebook_size": 16, "d_code": 4, "kind": "ema"}
    with pytest.raises(ConfigError, match="the kind of quantizer differ"):
        make_net(run_of("image", {"init": folder}, quantizer=other))
    with pytest.raises(ConfigError, match="holds no video codec"):
        make_net(run_of("video", {"init": folder, "freeze": "encoder"}))


def test_a_freeze_needs_a_codec_and_knows_one_word() -> None:
    with pytest.raises(ConfigError, match=r"codec\.freeze needs codec\.init"):
        make_net(run_of("image", {"freeze": "encoder"}))
    with pytest.raises(ConfigError, match=r'codec\.freeze is "encoder" or left out; got \'all\''):
        make_net(run_of("image", {"freeze": "all"}))
