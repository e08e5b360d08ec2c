"""The flat trunk: begins as an orthonormal transform, looks no further than its blocks reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyglyph.config import build
from polyglyph.errors import ConfigError
from polyglyph.media import Image
from polyglyph.tokenizers.flat import FlatDecoder2d, FlatEncoder2d, cosine_transform
from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig, ImageTokenizer

FLAT: dict[str, Any] = {
    "trunk": "flat", "base": 50, "multipliers": (1,), "n_res_blocks": 1, "attention": False,
    "patch": 4, "quantizer": {"kind": "running", "codebook_size": 32, "d_code": 12},
}  # fmt: skip


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def shaken(net: nn.Module) -> nn.Module:
    """With blocks that do something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        with torch.no_grad():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


@pytest.mark.parametrize("patch", [2, 3, 8])
def test_the_transform_is_orthonormal_and_begins_with_mean_brightness(patch: int) -> None:
    rows = cosine_transform(patch)
    n = 3 * patch**2
    assert rows.shape == (n, n)
    torch.testing.assert_close(rows @ rows.t(), torch.eye(n), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[0], torch.full((n,), n**-0.5))
    # Constant colours come before the finest waves of brightness.
    constant = [i for i, row in enumerate(rows.view(n, 3, -1)) if float(row.std(-1).max()) < 1e-5]
    assert len(constant) == 3 and max(constant) < n // 2


@torch.no_grad()
def test_an_untrained_trunk_loses_nothing() -> None:
    x = pixels(2, 3, 12, 20)
    encoder, decoder = FlatEncoder2d(50, 2, 4), FlatDecoder2d(50, 3, 4)
    z = encoder(x)
    assert z.shape == (2, 50, 3, 5) and encoder.stride == 4
    torch.testing.assert_close(decoder(z), x, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_untrained_codec_keeps_what_its_codes_can_of_each_patch() -> None:
    """With the latents themselves as codes: the projection onto the first d_code rows."""
    net = ImageCodec(ImageCodecConfig(**FLAT)).eval()
    x = pixels(1, 3, 8, 8)
    cells = net.vectors(x)
    z = net.quantizer.project_out(net.quantizer.project_in(cells))
    result = net.decoder(z.transpose(1, 2).reshape(1, 50, 2, 2))
    rows = cosine_transform(4)[:12]
    for y, i in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cut = (slice(None), slice(4 * y, 4 * y + 4), slice(4 * i, 4 * i + 4))
        due = rows.t() @ (rows @ x[0][cut].flatten())
        torch.testing.assert_close(result[0][cut].flatten(), due, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_latent_and_a_pixel_see_no_further_than_one_cell_per_block() -> None:
    encoder, decoder = shaken(FlatEncoder2d(50, 2, 4)), shaken(FlatDecoder2d(50, 1, 4))
    x = pixels(1, 3, 36, 36)
    changed = x.clone()
    changed[..., 16:20, 16:20] *= -1  # the cell (4, 4)
    differs = (encoder(x) != encoder(changed)).any(1)[0].nonzero()
    assert differs.min() == 2 and differs.max() == 6
    z = encoder(x)
    other = z.clone()
    other[..., 4, 4] += 1
    differs = (decoder(z) != decoder(other)).any(1)[0].nonzero()
    assert differs.min() == 12 and differs.max() == 23


def test_a_codec_with_a_flat_trunk_learns_and_comes_back_from_disk(tmp_path: Any) -> None:
    torch.manual_seed(0)
    net = ImageCodec(ImageCodecConfig(**FLAT)).train()
    net.quantizer.attach_learner()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    batch = torch.nn.functional.interpolate(pixels(4, 3, 6, 6), (24, 24), mode="bilinear")
    errors = []
    for _ in range(60):
        out = net.training_losses(batch)
        optimizer.zero_grad()
        torch.stack(list(out.losses.values())).sum().backward()
        optimizer.step()
        errors.append(float((out.reconstruction - batch).square().mean()))
    assert errors[-1] < 0.7 * errors[5]
    net.quantizer.sync()
    tokenizer = ImageTokenizer(net)
    tokenizer.save(tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    picture = Image(np.arange(19 * 13 * 3, dtype=np.uint8).reshape(19, 13, 3))
    grid = tokenizer.encode(picture)
    assert grid.shape == (5, 4) and np.array_equal(loaded.encode(picture).codes, grid.codes)
    assert np.array_equal(loaded.decode(loaded.encode(picture)).array, tokenizer.decode(grid).array)


@pytest.mark.parametrize(
    "wrong", [{"attention": True}, {"multipliers": (1, 2)}, {"local": True}, {"decoder": "movq"}]
)
def test_what_a_flat_trunk_does_not_have_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match='trunk "flat" has multipliers'):
        build(ImageCodecConfig, {**FLAT, **wrong}, "the test")
    with pytest.raises(ValueError, match="at least as wide as a patch has values, 48; got 40"):
        FlatEncoder2d(40, 1, 4)


def test_configs_without_a_flat_trunk_are_dumped_as_before() -> None:
    assert "trunk" not in ImageCodecConfig().model_dump(mode="json")
    assert ImageCodecConfig(**FLAT).model_dump(mode="json")["trunk"] == "flat"
