"""The nets of published image codecs: what their configuration means, and their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyglyph.errors import InputError
from polyglyph.tokenizers.blocks import SpatialNorm
from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig, ImageTokenizer
from polyglyph.tokenizers.vqgan import CodebookConfig, FixedCodebook, Vqgan, VqganConfig


def config(**options: object) -> VqganConfig:
    small = {
        "base": 8,
        "multipliers": (1, 2),
        "n_res_blocks": 1,
        "z_channels": 6,
        "n_groups": 4,
        "quantizer": {"codebook_size": 30, "d_code": 5},
    }
    return VqganConfig(**{**small, **options})


def random_net(**options: object) -> Vqgan:
    torch.manual_seed(0)
    net = Vqgan(config(**options)).eval()
    net.quantizer.codebook.normal_()
    return net


def test_every_kind_of_codebook_chooses_its_own_way() -> None:
    torch.manual_seed(1)
    z, table = torch.randn(2, 7, 5), torch.randn(1, 30, 5)
    due = {
        "euclidean": torch.cdist(z, table).argmin(-1),
        "cosine": (F.normalize(z, dim=-1) @ F.normalize(table[0], dim=-1).T).argmax(-1),
    }
    for kind, codes in due.items():
        book = FixedCodebook(CodebookConfig(kind=kind, codebook_size=30, d_code=5))
        book.codebook.copy_(table)
        assert torch.equal(book.encode(z)[..., 0], codes)
    assert torch.allclose(book.decode(codes[..., None]).norm(dim=-1), torch.ones(2, 7))
    scored = FixedCodebook(CodebookConfig(kind="logits", codebook_size=30, d_code=5))
    assert scored.score is not None
    assert torch.equal(scored.encode(z)[..., 0], scored.score(z).argmax(-1))


def test_scores_of_many_vectors_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyglyph.tokenizers import vqgan

    torch.manual_seed(2)
    book = FixedCodebook(CodebookConfig(kind="logits", codebook_size=30, d_code=5))
    z = torch.randn(1, 50, 5)
    whole = book.encode(z)
    monkeypatch.setattr(vqgan, "CHUNK_ELEMENTS", 100)
    assert torch.equal(book.encode(z), whole)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_spatial_norm_scales_and_shifts_by_the_enlarged_codes(
    conv: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(3)
    norm = SpatialNorm(8, 3, lambda c: nn.GroupNorm(4, c, eps=1e-6), conv)
    for p in norm.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 8, 12, 20).contiguous(memory_format=layout)
    zq = torch.randn(2, 3, 3, 5)
    large = zq.repeat_interleave(4, 2).repeat_interleave(4, 3)
    large = norm.conv(large) if norm.conv is not None else large
    due = norm.norm(x) * norm.scale(large) + norm.shift(large)
    torch.testing.assert_close(norm(x, zq), due, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_movq_decoder_hears_the_codes_a_second_time() -> None:
    net = random_net(decoder="movq")
    codes = torch.randint(30, (1, 1, 3, 4))
    other = codes.clone()
    other[0, 0, 0, 0] = (other[0, 0, 0, 0] + 1) % 30
    for p in (net.conv_in.weight, net.conv_in.bias):
        p.zero_()  # nothing of the codes passes the trunk's own door
    assert not torch.equal(net.decode(codes), net.decode(other))
    plain = random_net()
    plain.conv_in.weight.zero_()
    assert torch.equal(plain.decode(codes), plain.decode(other))


def test_an_encoder_without_its_half_refuses_to_decode() -> None:
    net = random_net(decoder="none")
    codes = net.encode(torch.zeros(1, 3, 8, 8))
    assert codes.shape == (1, 1, 4, 4)
    with pytest.raises(InputError, match="without a decoder"):
        net.decode(codes)


@torch.no_grad()
def test_pictures_of_one_batch_are_coded_as_alone() -> None:
    net = random_net(attention_levels=(1,))
    x = torch.rand(3, 3, 10, 14) * 2 - 1
    codes = net.encode(x)
    assert codes.shape == (3, 1, 5, 7)
    for i in range(3):
        assert torch.equal(net.encode(x[i : i + 1])[0], codes[i])


def test_our_own_codecs_may_have_a_movq_decoder(tmp_path: Path) -> None:
    torch.manual_seed(4)
    small = {"base": 8, "multipliers": (1, 2), "quantizer": {"codebook_size": 16, "d_code": 4}}
    plain = ImageCodec(ImageCodecConfig(**small))
    net = ImageCodec(ImageCodecConfig(**small, decoder="movq"))
    assert "decoder" not in plain.config.model_dump(mode="json"), "saved codecs keep their mark"
    norms = [m for m in net.modules() if isinstance(m, SpatialNorm)]
    assert norms and not any(isinstance(m, SpatialNorm) for m in plain.modules())
    step = net.training_losses(torch.rand(2, 3, 8, 8) * 2 - 1)
    torch.stack(list(step.losses.values())).sum().backward()
    assert all(float(norm.scale.weight.grad.abs().sum()) > 0 for norm in norms)
    tokenizer = ImageTokenizer(net)
    tokenizer.save(tmp_path / "codec")
    again = ImageTokenizer.load(tmp_path / "codec")
    codes = torch.randint(16, (1, 1, 2, 3))
    assert torch.equal(again.net.decode(codes), net.eval().decode(codes))
