"""Pictures in tiles: codes and pixels are those of the whole, and no forward is large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyglyph.media import Image, Video
from polyglyph.tokenizers import blocks, image, tiling, video
from polyglyph.tokenizers.blocks import Decoder2d, SpatialAttention
from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig, ImageTokenizer
from polyglyph.tokenizers.video import VideoCodec, VideoCodecConfig, VideoTokenizer


def tokenizer(**options: Any) -> ImageTokenizer:
    torch.manual_seed(3)
    small = {"base": 8, "multipliers": (1, 2), "quantizer": {"codebook_size": 64, "d_code": 4}}
    net = ImageCodec(ImageCodecConfig(**{**small, **options}))
    for module in net.modules():  # every norm does something of its own
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    return ImageTokenizer(net, "mark")


def scene(h: int, w: int) -> np.ndarray:
    """A picture whose parts differ: sky, texture, edges, a dark corner."""
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    texture = np.random.default_rng(0).standard_normal((h, w)) * 40 * (y > 0.5)
    shape = 120 * ((x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.05) + 60 * (np.sin(40 * x) > 0.4)
    channels = [90 + 100 * y + texture, 60 + shape, 200 * x + 0.5 * texture]
    picture = np.stack(channels, -1) * (0.2 + 0.8 * (x + y > 0.2))[..., None]
    return picture.clip(0, 255).astype(np.uint8)


def in_tiles(monkeypatch: pytest.MonkeyPatch, limit: int, margin: int = 12) -> list[int]:
    """Lowers the limit of a forward, in pixels; the list gets the pixels of every forward."""
    monkeypatch.setattr(image, "_PIXELS_PER_BATCH", limit)
    monkeypatch.setattr(blocks, "_WINDOW", 8)
    monkeypatch.setattr(tiling, "MARGIN", margin)
    monkeypatch.setattr(tiling, "SAMPLE", 8)
    sizes: list[int] = []
    encode, decode = ImageCodec.encode, ImageCodec.decode

    def counted_encode(self: ImageCodec, pixels: torch.Tensor, *n: int) -> torch.Tensor:
        sizes.append(pixels.numel() // 3)
        return encode(self, pixels, *n)

    def counted_decode(self: ImageCodec, codes: torch.Tensor) -> torch.Tensor:
        sizes.append(codes[:, 0].numel() * self.stride**2)
        return decode(self, codes)

    monkeypatch.setattr(ImageCodec, "encode", counted_encode)
    monkeypatch.setattr(ImageCodec, "decode", counted_decode)
    return sizes


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b).mean())))


@pytest.mark.parametrize("core", [1, 3, 64])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (7, 3), (12, 6)])
def test_cores_cover_every_cell_once_and_margins_stay_inside(h: int, w: int, core: int) -> None:
    seen = np.zeros((h, w), int)
    for tile in tiling.tiles(h, w, core, 2):
        assert 0 <= tile.top < tile.bottom <= h and 0 <= tile.left < tile.right <= w
        box = seen[tile.top : tile.bottom, tile.left : tile.right]
        kept = tile.of(box)
        kept += 1
        rows, columns = tile.core
        assert tile.top == 0 or rows.start == 2
        assert tile.right == w or box.shape[1] - columns.stop == 2
        assert tile.of(np.zeros((3 * box.shape[0], 3 * box.shape[1])), 3).shape == (
            3 * kept.shape[0],
            3 * kept.shape[1],
        )
    assert (seen == 1).all()


def test_a_local_encoder_gives_exactly_the_codes_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    t = tokenizer(local=True)
    picture = Image(scene(101, 87))
    whole = t.encode(picture)
    sizes = in_tiles(monkeypatch, 40 * 40)
    assert t.encode(picture) == whole and len(np.unique(whole.codes)) > 10
    assert len(sizes) == 9 and max(sizes) <= 40 * 40
    assert t.encode_batch([picture, picture]) == [whole, whole]


@pytest.mark.parametrize("attention", [False, True])
def test_tiles_decode_to_the_whole_without_seams(
    monkeypatch: pytest.MonkeyPatch, attention: bool
) -> None:
    t = tokenizer(local=True, attention=attention)
    grid = t.encode(Image(scene(190, 253)))
    sizes = in_tiles(monkeypatch, 1 << 21)
    whole = t.decode(grid).array
    assert sizes == [192 * 256]
    in_tiles(monkeypatch, 160 * 160)
    tiled = t.decode(grid).array
    assert len(sizes) > 10 and max(sizes[1:]) <= 160 * 160
    assert psnr(tiled, whole) >= 40
    core = 4 * tiling.core_size((160 // 4) ** 2, 12, 8 if attention else 0)
    for axis in (0, 1):
        due, found = (_seam_ratio(picture, axis, core) for picture in (whole, tiled))
        assert found <= 1.05 * due


def _seam_ratio(picture: np.ndarray, axis: int, core: int) -> float:
    """Mean gradient across the lines where tiles meet, over that across other edges of cells: a
    codec's own picture has steps there."""
    steps = np.abs(np.diff(picture.astype(float), axis=axis)).mean((1 - axis, 2))
    seams = np.arange(core - 1, len(steps), core)
    assert len(seams) > 1
    return float(
        steps[seams].mean() / steps[np.setdiff1d(np.arange(3, len(steps), 4), seams)].mean()
    )


def test_without_shared_statistics_tiles_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    t = tokenizer(local=True, attention=False)
    grid = t.encode(Image(scene(200, 220)))
    whole = t.decode(grid).array
    in_tiles(monkeypatch, 128 * 128)
    part = t.decode(t.encode(Image(scene(200, 220)[100:, 108:]))).array
    assert psnr(part[50:, 60:], whole[150:, 168:]) < 35
    assert psnr(t.decode(grid).array, whole) >= 40


def test_an_encoder_that_sees_the_whole_picture_gives_nearly_its_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    t = tokenizer()
    picture = Image(scene(230, 190))
    in_tiles(monkeypatch, 1 << 21)
    whole = t.encode(picture)
    sizes = in_tiles(monkeypatch, 160 * 160)
    grid = t.encode(picture)
    assert len(sizes) > 5 and max(sizes) <= 160 * 160 and grid.meta == whole.meta
    assert (grid.codes == whole.codes).mean() > 0.97


def test_a_sample_of_everything_is_what_a_group_norm_does() -> None:
    norm = nn.GroupNorm(3, 12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 5 + 3 * torch.randn(1, 12, 6, 10)
    view = tiling._View()
    shared = tiling._SharedNorm(norm, view)
    torch.testing.assert_close(shared(x), norm(x), rtol=1e-4, atol=1e-4)
    # A sample of a part, corrected by a pass over the tiles, is the norm of the whole.
    shared(x[..., :4])
    view.measures = True
    for tile in tiling.tiles(6, 10, 4, 1):
        view.tile = tile
        shared(x[..., tile.top : tile.bottom, tile.left : tile.right])
    shared.correct()
    view.tile, view.measures = None, False
    shared(x[..., :4])
    view.tile = next(iter(tiling.tiles(6, 10, 10, 0)))
    torch.testing.assert_close(shared(x), norm(x), rtol=1e-3, atol=1e-3)


def test_windows_of_attention_stay_in_place_in_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_WINDOW", 4)
    attention = SpatialAttention(8)
    attention.norm = nn.Identity()
    x = torch.randn(1, 8, 9, 14)
    whole = attention(x)
    attention.origin = (4, 6)
    part = attention(x[..., 4:, 6:])
    assert blocks._cuts(6, 8) == [2, 4, 2] and blocks._cuts(4, 5) == [4, 1]
    torch.testing.assert_close(part[..., 2:], whole[..., 4:, 8:])
    assert not torch.allclose(part[..., :2], whole[..., 4:, 6:8])


@pytest.mark.parametrize("attention", [False, True])
def test_frames_beyond_the_limit_go_through_in_tiles_too(
    monkeypatch: pytest.MonkeyPatch, attention: bool
) -> None:
    torch.manual_seed(3)
    small = {"base": 8, "multipliers": (1, 2), "quantizer": {"codebook_size": 64, "d_code": 4}}
    t = VideoTokenizer(VideoCodec(VideoCodecConfig(**small, local=True, attention=attention)))
    clip = Video(np.stack([scene(150, 190), scene(150, 190)[:, ::-1]]), 8.0)
    in_tiles(monkeypatch, 1 << 21)
    whole = t.encode(clip)
    shown = t.decode(whole).frames
    monkeypatch.setattr(video, "_PIXELS_PER_BATCH", 160 * 160)
    sizes: list[int] = []
    forward = Decoder2d.forward
    monkeypatch.setattr(
        Decoder2d, "forward", lambda self, z: sizes.append(z[:, 0].numel()) or forward(self, z)
    )
    assert t.encode(clip) == whole
    assert psnr(t.decode(whole).frames, shown) >= 40
    assert len(sizes) > 20 and max(sizes) <= 40**2


def test_the_net_itself_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    t = tokenizer()
    picture = Image(scene(64, 72))
    before = t.encode(picture)
    in_tiles(monkeypatch, 32 * 32, 2)
    twin = tiling.TiledNet(t.net, "decoder")
    assert twin.norms and twin.attentions
    ours, theirs = dict(t.net.named_parameters()), dict(twin.net.named_parameters())
    assert all(theirs[name] is value for name, value in ours.items())
    t.decode(t.encode(picture))
    assert not any("forward" in vars(module) for module in t.net.modules())
    assert all(m.origin == (0, 0) for m in t.net.modules() if isinstance(m, SpatialAttention))
    monkeypatch.setattr(image, "_PIXELS_PER_BATCH", 1 << 21)
    monkeypatch.setattr(blocks, "_WINDOW", 64)
    assert t.encode(picture) == before
    x = torch.randn(1, 16, 3, 3)
    assert torch.equal(F.group_norm(x, 4), nn.GroupNorm(4, 16, affine=False)(x))
