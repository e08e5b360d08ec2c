"""The image codec: a VQ-GAN (Esser et al., arXiv:2012.09841) over RGB pictures of any size.

Pictures are padded at the right and bottom to whole strides by repeating the edge and cropped
again on decoding. Knows nothing of ids, losses' schedules or files of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from polyglyph.config import Config
from polyglyph.errors import InputError
from polyglyph.media import Image
from polyglyph.tokenizers.base import CodeGrid, ImageMeta, SpanSpec, Tokenizer, as_medium
from polyglyph.tokenizers.blocks import (
    Decoder2d,
    Encoder2d,
    LocalEncoder2d,
    SpatialNorm,
    TrunkStyle,
)
from polyglyph.tokenizers.flat import FlatDecoder2d, FlatEncoder2d
from polyglyph.tokenizers.losses import ImageLossConfig, added, image_losses
from polyglyph.tokenizers.neural import RESIDUAL_KINDS, CodecStep, load_net, save_codec
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig
from polyglyph.tokenizers.tiling import decode_tiled, encode_tiled

# Pixels that one forward may hold: 2 M pixels of the tiny codec take about 0.6 GiB. A larger
# picture goes through in tiles.
_PIXELS_PER_BATCH = 1 << 21


class ImageCodecConfig(Config):
    """`[codec]` of an image codec. Stride = patch · 2^(levels - 1).

    local: an encoder whose codes see only the pixels (and frames) that they stand for
    (LocalEncoder2d); the decoder sees everything in any case.
    trunk: "flat" works on the grid of codes alone (flat.py): width base, stride patch, n_res_blocks
    in the encoder and twice that and one in the decoder.
    decoder: "movq" has norms that every code scales and shifts at its own place (SpatialNorm).
    init: folder of a codec of the same shape, or the run that made it, to train on from.
    """

    modality: str = "image"
    span: str = "image"
    base: int = Field(32, ge=4)
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 3), min_length=1)
    n_res_blocks: int = Field(1, ge=1)
    attention: bool = True
    patch: int = Field(2, ge=1)
    local: bool = False
    # Left out of a dump at its default: codecs saved before this field keep their fingerprint.
    decoder: Literal["plain", "movq"] = Field("plain", exclude_if=lambda kind: kind == "plain")
    trunk: Literal["vqgan", "flat"] = added("vqgan")
    quantizer: QuantizerConfig = QuantizerConfig()
    loss: ImageLossConfig = ImageLossConfig()
    init: str | None = added(None)

    @model_validator(mode="after")
    def _flat_is_flat(self) -> ImageCodecConfig:
        plain = (self.multipliers, self.attention, self.local, self.decoder)
        if self.trunk == "flat" and plain != ((1,), False, False, "plain"):
            raise ValueError(
                'trunk "flat" has multipliers = [1], attention = false, local = false and the '
                "plain decoder"
            )
        return self


def make_encoder(config: ImageCodecConfig) -> Encoder2d | LocalEncoder2d | FlatEncoder2d:
    """The 2-D trunk of an image or video encoder."""
    if config.trunk == "flat":
        return FlatEncoder2d(config.base, config.n_res_blocks, config.patch)
    shape = (config.base, config.multipliers, config.n_res_blocks)
    if config.local:
        return LocalEncoder2d(*shape, patch=config.patch)
    return Encoder2d(*shape, config.attention, patch=config.patch)


def make_decoder(config: ImageCodecConfig) -> Decoder2d | FlatDecoder2d:
    """The 2-D trunk of an image or video decoder."""
    if config.trunk == "flat":
        return FlatDecoder2d(config.base, 2 * config.n_res_blocks + 1, config.patch)
    shape = (config.base, config.multipliers, config.n_res_blocks, config.attention)
    style = TrunkStyle()
    if config.decoder == "movq":
        width = config.base * config.multipliers[-1]
        style = TrunkStyle(decoder_norm=lambda channels: SpatialNorm(channels, width))
    return Decoder2d(*shape, patch=config.patch, style=style)


class ImageCodec(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] ↔ codes (B, 1, H/s, W/s)."""

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)
        self.decoder = make_decoder(config)
        self.stride = self.encoder.stride
        self.quantizer = Quantizer(config.quantizer, self.encoder.width)
        if config.trunk == "flat":
            self.quantizer.start_plain()

    @staticmethod
    def batch_tensor(pictures: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) → pixels (B, 3, H, W)."""
        return to_pixels(pictures)

    def vectors(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → what is quantized, (B, hw, D)."""
        return self.encoder(pixels).flatten(2).transpose(1, 2)

    def training_losses(self, batch: Tensor) -> CodecStep:
        """One forward over pixels (B, 3, H, W)."""
        z = self.encoder(batch)  # (B, D, h, w)
        b, d, h, w = z.shape
        latents = z.flatten(2).transpose(1, 2)
        out = self.quantizer(latents)  # (B, hw, D)
        x = self.decoder(out.quantized.transpose(1, 2).reshape(b, d, h, w).to(z.dtype)).float()
        losses = image_losses(x, batch, self.config.loss) | {"quantizer": out.loss}
        return CodecStep(losses, x, out.codes, latents=latents)

    def decoded(self, out: CodecStep) -> Tensor:
        """What the codes of half of the step's pictures stand for, without a gradient."""
        return out.reconstruction[: len(out.reconstruction) // 2].detach()

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradient the adaptive adversarial weight is measured at."""
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def encode(self, pixels: Tensor, n_codebooks: int | None = None) -> Tensor:
        z = self.encoder(pixels.to(self.last_layer.device))
        b, _, h, w = z.shape
        codes = self.quantizer.encode(z.flatten(2).transpose(1, 2), n_codebooks)  # (B, hw, Q)
        return codes.transpose(1, 2).reshape(b, -1, h, w)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        b, q, h, w = codes.shape
        codes = codes.to(self.last_layer.device)
        z = self.quantizer.decode(codes.reshape(b, q, h * w).transpose(1, 2))
        return self.decoder(z.transpose(1, 2).reshape(b, -1, h, w)).clamp(-1, 1)


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 (F, H, W, 3) → float32 (F, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> np.ndarray:
    """float (F, 3, H, W) in [-1, 1] → uint8 (F, H, W, 3), rounded."""
    scaled = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def pad_to_stride(pixels: Tensor, stride: int) -> Tensor:
    """Repeats the last row and column until height and width are whole strides."""
    h, w = pixels.shape[-2:]
    return F.pad(pixels, (0, -w % stride, 0, -h % stride), mode="replicate")


class ImageTokenizer(Tokenizer):
    """encode: `Image` → CodeGrid (1, H/s, W/s); decode: CodeGrid → `Image` of the true size."""

    config_class = ImageCodecConfig
    net_class = ImageCodec

    def __init__(self, net: ImageCodec, fingerprint: str = "") -> None:
        self.net = net.eval()
        self.config: ImageCodecConfig = net.config
        self.modality, self.span = "image", net.config.span
        quantizer = net.config.quantizer
        self.spec = SpanSpec(
            self.span, self.modality, quantizer.codebook_size, quantizer.n_codebooks, 2
        )
        self.is_residual = quantizer.kind in RESIDUAL_KINDS
        self.stride = (net.stride, net.stride)
        self.fingerprint = fingerprint

    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        return self.encode_batch([media], n_codebooks=n_codebooks)[0]

    def encode_batch(
        self, media: Sequence[Any], *, n_codebooks: int | None = None
    ) -> list[CodeGrid]:
        """Pictures of one size go through the net together, in batches of bounded memory."""
        n_books = self.chosen_codebooks(n_codebooks)
        arrays = [self._array(item) for item in media]
        grids: list[CodeGrid | None] = [None] * len(arrays)
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i, array in enumerate(arrays):
            sizes.setdefault(array.shape, []).append(i)
        for (h, w, _), indices in sizes.items():
            n = max(1, _PIXELS_PER_BATCH // (h * w))
            for start in range(0, len(indices), n):
                part = indices[start : start + n]
                codes = self._codes([arrays[i] for i in part], self.asked(n_books))
                for i, code in zip(part, codes, strict=True):
                    grids[i] = CodeGrid(
                        self.modality, code.astype(np.int32), ImageMeta(h, w), self.fingerprint
                    )
        return [grid for grid in grids if grid is not None]

    def _codes(self, arrays: Sequence[np.ndarray], asked: tuple[int, ...]) -> np.ndarray:
        """Codes (B, Q, h, w) of pictures uint8 (H, W, 3) of one size."""
        if arrays[0].shape[0] * arrays[0].shape[1] > _PIXELS_PER_BATCH:
            tiled = (
                encode_tiled(self.net, a, to_pixels, _PIXELS_PER_BATCH, *asked) for a in arrays
            )
            return np.stack(list(tiled))
        pixels = pad_to_stride(to_pixels(np.stack(arrays)), self.net.stride)
        return self.net.encode(pixels, *asked).cpu().numpy()

    def _array(self, media: Any) -> np.ndarray:
        import PIL.Image

        image = as_medium(media, Image, (np.ndarray, PIL.Image.Image))
        return np.asarray(image.pil, dtype=np.uint8)

    def decode(self, grid: CodeGrid) -> Image:
        self.check_fingerprint(grid)
        meta = grid.meta
        assert isinstance(meta, ImageMeta)
        self._check_size(grid, meta)
        full = self.default_meta(grid.shape)
        if full.height * full.width > _PIXELS_PER_BATCH:
            array = decode_tiled(self.net, grid.codes, to_uint8, _PIXELS_PER_BATCH)
        else:
            pixels = self.net.decode(torch.from_numpy(grid.codes.astype(np.int64))[None])
            array = to_uint8(pixels)[0]
        import PIL.Image

        return Image(PIL.Image.fromarray(array[: meta.height, : meta.width]))

    def _check_size(self, grid: CodeGrid, meta: ImageMeta) -> None:
        full = self.default_meta(grid.shape)
        if not (0 < meta.height <= full.height and 0 < meta.width <= full.width):
            raise InputError(
                f"a grid of {grid.shape[0]}x{grid.shape[1]} image codes decodes to at most "
                f"{full.height}x{full.width} pixels, its meta says {meta.height}x{meta.width}"
            )

    def default_meta(self, grid_shape: Sequence[int]) -> ImageMeta:
        return ImageMeta(grid_shape[0] * self.net.stride, grid_shape[1] * self.net.stride)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        save_codec(
            folder, self.net, self.config, modality=self.modality, span=self.span, dtype=dtype
        )

    @classmethod
    def load(cls, folder: str | Path) -> ImageTokenizer:
        return cls(*load_net(ImageCodec, ImageCodecConfig, folder))


__all__ = [
    "ImageCodec",
    "ImageCodecConfig",
    "ImageTokenizer",
    "pad_to_stride",
    "to_pixels",
    "to_uint8",
]
