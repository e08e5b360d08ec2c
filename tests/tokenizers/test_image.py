"""The image codec with untrained weights: sizes, batches, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyglyph.errors import FormatError, InputError
from polyglyph.media import Image
from polyglyph.tokenizers import image as module
from polyglyph.tokenizers.base import CodeGrid, ImageMeta, SpanSpec
from polyglyph.tokenizers.image import (
    ImageCodec,
    ImageCodecConfig,
    ImageTokenizer,
    pad_to_stride,
    to_pixels,
    to_uint8,
)
from polyglyph.tokenizers.losses import image_losses


def codec() -> ImageCodec:
    torch.manual_seed(2)
    quantizer = {"codebook_size": 16, "d_code": 4}
    loss = {"object_weight": 2.0}
    return ImageCodec(
        ImageCodecConfig(base=8, multipliers=(1, 2), patch=2, quantizer=quantizer, loss=loss)
    )


@pytest.fixture
def tokenizer() -> ImageTokenizer:
    return ImageTokenizer(codec(), "mark")


def picture(h: int, w: int, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8))


def array(image: Image) -> np.ndarray:
    return np.asarray(image.pil)


def test_the_codec_says_what_its_codes_are(tokenizer: ImageTokenizer) -> None:
    assert tokenizer.spec == SpanSpec("image", "image", 16, 1, 2)
    assert tokenizer.stride == (4, 4)
    assert tokenizer.default_meta((3, 5)) == ImageMeta(12, 20)


@pytest.mark.parametrize("base", [8, 12])
@pytest.mark.parametrize(
    ("multipliers", "patch", "stride"),
    [((1, 1, 2), 2, 8), ((1, 1, 2, 2), 2, 16), ((1, 1, 1, 2, 2), 1, 16)],
)
def test_f8_and_f16_come_in_any_width(
    multipliers: tuple[int, ...], patch: int, stride: int, base: int
) -> None:
    torch.manual_seed(3)
    quantizer = {"codebook_size": 16, "d_code": 4}
    net = ImageCodec(
        ImageCodecConfig(base=base, multipliers=multipliers, patch=patch, quantizer=quantizer)
    )
    tokenizer = ImageTokenizer(net)
    grid = tokenizer.encode(picture(33, 50))
    assert tokenizer.stride == (stride, stride)
    assert grid.shape == (-(-33 // stride), -(-50 // stride))
    assert array(tokenizer.decode(grid)).shape == (33, 50, 3)
    assert net.encoder.width == base * multipliers[-1]


@pytest.mark.parametrize(("h", "w"), [(61, 35), (4, 4), (1, 1), (3, 50), (64, 64)])
def test_any_size_comes_back_as_it_was(tokenizer: ImageTokenizer, h: int, w: int) -> None:
    grid = tokenizer.encode(picture(h, w))
    assert grid.shape == (-(-h // 4), -(-w // 4)) and grid.n_codebooks == 1
    assert grid.meta == ImageMeta(h, w) and grid.fingerprint == "mark"
    assert grid.codes.dtype == np.int32 and 0 <= grid.codes.min() <= grid.codes.max() < 16
    assert array(tokenizer.decode(grid)).shape == (h, w, 3)


def test_padding_repeats_the_edge_and_is_cut_off_again(tokenizer: ImageTokenizer) -> None:
    small = picture(6, 7)
    padded = Image(np.pad(array(small), ((0, 2), (0, 1), (0, 0)), mode="edge"))
    a, b = tokenizer.encode(small), tokenizer.encode(padded)
    assert np.array_equal(a.codes, b.codes)
    assert np.array_equal(array(tokenizer.decode(a)), array(tokenizer.decode(b))[:6, :7])
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert pad_to_stride(x, 4)[0, 0].tolist() == [[0, 1, 2, 2]] + 3 * [[3, 4, 5, 5]]


def test_a_batch_of_any_sizes_equals_one_by_one_in_order(
    tokenizer: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(12, 9), (8, 8), (12, 9), (5, 21), (12, 9)]
    pictures = [picture(h, w, i) for i, (h, w) in enumerate(sizes)]
    due = [tokenizer.encode(p) for p in pictures]
    assert tokenizer.encode_batch(pictures) == due
    monkeypatch.setattr(module, "_PIXELS_PER_BATCH", 150)  # one picture of 12 x 9 at a time
    assert tokenizer.encode_batch(pictures) == due
    assert tokenizer.encode_batch([]) == []


def test_files_and_pixels_are_taken_too(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    p = picture(9, 10)
    p.save(tmp_path / "p.png")
    assert tokenizer.encode(tmp_path / "p.png") == tokenizer.encode(p)
    assert tokenizer.encode(p.pil) == tokenizer.encode(p)


def test_encoding_again_what_was_saved_gives_the_same_codes(
    tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "c")
    loaded = ImageTokenizer.load(tmp_path / "c")
    assert loaded.encode(picture(9, 10)).same_codes(tokenizer.encode(picture(9, 10)))
    with pytest.raises(FormatError, match="codes were made by codec mark"):
        loaded.decode(tokenizer.encode(picture(9, 10)))


def test_codes_that_can_not_be_decoded_are_refused(tokenizer: ImageTokenizer) -> None:
    codes = np.zeros((1, 2, 3), np.int32)
    for meta in (ImageMeta(9, 12), ImageMeta(8, 13), ImageMeta(0, 12)):
        with pytest.raises(InputError, match="decodes to at most 8x12 pixels, its meta says"):
            tokenizer.decode(CodeGrid("image", codes, meta))
    with pytest.raises(FormatError, match="image code 16"):
        tokenizer.decode(CodeGrid("image", codes + 16, ImageMeta(8, 12)))
    with pytest.raises(FormatError, match="expected image codes, got video codes"):
        tokenizer.decode(CodeGrid("video", codes, ImageMeta(8, 12)))


def test_pixels_and_bytes_are_inverse() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = to_pixels(values)
    assert pixels.shape == (1, 3, 16, 16)
    assert (float(pixels.min()), float(pixels.max())) == (-1, 1)
    assert np.array_equal(to_uint8(pixels), values)
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.001]).reshape(1, 3, 1, 1)).tolist() == [
        [[[0, 255, 128]]]
    ]


def test_decoded_pixels_stay_in_range() -> None:
    net = codec().eval()
    with torch.no_grad():
        net.last_layer.mul_(100)
    pixels = net.decode(torch.randint(16, (2, 1, 3, 2)))
    assert pixels.shape == (2, 3, 12, 8)
    assert float(pixels.min()) == -1 and float(pixels.max()) == 1


def test_a_training_forward_is_what_encoding_and_decoding_give() -> None:
    net = codec()
    batch = net.batch_tensor(np.stack([array(picture(8, 12, i)) for i in range(2)]))
    step = net.training_losses(batch)
    codes = step.codes.reshape(2, 2, 3, 1).permute(0, 3, 1, 2)
    assert torch.equal(codes, net.encode(batch))
    torch.testing.assert_close(step.reconstruction.clamp(-1, 1), net.decode(codes))
    due = image_losses(step.reconstruction, batch, net.config.loss)
    assert set(step.losses) == {*due, "quantizer"}
    for name, value in due.items():
        torch.testing.assert_close(step.losses[name], value)
    torch.stack(list(step.losses.values())).sum().backward()
    unmoved = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unmoved == []


@pytest.mark.gpu
def test_a_codec_on_a_gpu_takes_media_and_gives_them_back(tokenizer: ImageTokenizer) -> None:
    due = tokenizer.encode(picture(9, 10))
    other = ImageTokenizer(codec().cuda(), "mark")
    assert (other.encode(picture(9, 10)).codes == due.codes).mean() > 0.9
    a, b = (array(t.decode(due)).astype(int) for t in (tokenizer, other))
    assert abs(a - b).max() <= 2
