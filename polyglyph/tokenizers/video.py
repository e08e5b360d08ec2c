"""The video codec: the image codec's 2-D trunk per frame and a causal temporal stack on latents.

Four frames and 8 × 8 pixels become one code. Everything that crosses frames is padded in front
only and every norm is taken per frame, so a code never depends on a later group of frames and a
decoded frame never on a later code (the front-padding rule of Emu3's VisionVQ: the number of
frames is padded to a multiple of four by repeating the last one, no 1 + 4n rule).
Knows nothing of ids, sound tracks or containers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from polyglyph.config import build
from polyglyph.errors import ConfigError, InputError
from polyglyph.media import Video
from polyglyph.tokenizers.base import CodeGrid, SpanSpec, Tokenizer, VideoMeta
from polyglyph.tokenizers.blocks import (
    Decoder2d,
    TemporalDown,
    TemporalResidual,
    TemporalUp,
)
from polyglyph.tokenizers.image import (
    ImageCodec,
    ImageCodecConfig,
    make_encoder,
    pad_to_stride,
    to_pixels,
    to_uint8,
)
from polyglyph.tokenizers.losses import image_losses
from polyglyph.tokenizers.neural import CodecStep, load_weights, read_codec, save_codec
from polyglyph.tokenizers.quantize import Quantizer

# Pixels of one 2-D forward. A clip with more goes through in windows of whole codes that begin with
# the past they depend on, so the codes stay the same.
_PIXELS_PER_BATCH = 1 << 21
# Codes before its own that a code, or a decoded group of frames, depends on: less than ten, however
# often the frames are halved (each halving reaches half as far as the next one).
_PAST = 10


class VideoCodecConfig(ImageCodecConfig):
    """`[codec]` of a video codec: the image trunk's fields and the temporal stack's.

    n_temporal_levels: halvings of the frame count. fps: of clips made from generated codes.
    frames_in_loss: frames per clip that training decodes to pixels; the trunk works per frame,
    so a random subset is an unbiased estimate at a fraction of the work.
    init: folder of an image codec whose trunk this one starts from.
    """

    modality: str = "video"
    span: str = "video"
    n_temporal_levels: int = Field(2, ge=1)
    fps: float = Field(8.0, gt=0)
    frames_in_loss: int = Field(3, ge=1)
    init: str | None = None


class VideoCodec(nn.Module):
    """Pixels (B, F, 3, H, W) in [-1, 1] ↔ codes (B, 1, F/t, H/s, W/s)."""

    starts_from = "image"  # the modality of the codec that `init` names

    def __init__(self, config: VideoCodecConfig) -> None:
        super().__init__()
        self.config = config
        trunk = (config.base, config.multipliers, config.n_res_blocks, config.attention)
        self.encoder = make_encoder(config)
        self.decoder = Decoder2d(*trunk, patch=config.patch)
        self.stride = self.encoder.stride
        self.stride_t = 2**config.n_temporal_levels
        width = self.encoder.width
        down: list[nn.Module] = []
        up: list[nn.Module] = [TemporalResidual(width)]
        for _ in range(config.n_temporal_levels):
            down += [TemporalDown(width, config.local), TemporalResidual(width, config.local)]
            up += [TemporalUp(width), TemporalResidual(width)]
        self.temporal_encoder = nn.Sequential(*down)
        self.temporal_decoder = nn.Sequential(*up)
        self.quantizer = Quantizer(config.quantizer, width)

    def init_from(self, image: ImageCodec) -> None:
        """Start the trunk from that of an image codec; ConfigError where their shapes differ."""
        for name in ("base", "multipliers", "n_res_blocks", "attention", "patch", "local"):
            ours, theirs = getattr(self.config, name), getattr(image.config, name)
            if ours != theirs:
                raise ConfigError(
                    f"codec.init: the image codec has {name} = {theirs}, this codec {ours}; "
                    "its trunk fits only a codec of the same shape"
                )
        self.encoder.load_state_dict(image.encoder.state_dict())
        self.decoder.load_state_dict(image.decoder.state_dict())

    @staticmethod
    def batch_tensor(clips: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) → pixels (B, F, 3, H, W)."""
        return to_pixels(clips.reshape(-1, *clips.shape[2:])).unflatten(0, clips.shape[:2])

    def trunk(self, pixels: Tensor) -> Tensor:
        """Frame by frame: (B, F, 3, H, W) → (B, D, F, h, w)."""
        b, f = pixels.shape[:2]
        frames = pixels.flatten(0, 1)
        n = max(1, _PIXELS_PER_BATCH // (frames.shape[-1] * frames.shape[-2]))
        z = torch.cat([self.encoder(part) for part in frames.split(n)])
        return z.unflatten(0, (b, f)).transpose(1, 2)

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, H, W) → (B, D, F/t, h, w)."""
        return self.temporal_encoder(self.trunk(pixels))

    def frames(self, z: Tensor, keep: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, D, F/t, h, w) → pixels (B, F, 3, H, W), from frame `first` on; only the frames in
        `keep` (B, n) of these if given."""
        z = self.temporal_decoder(z).transpose(1, 2)[:, first:]  # (B, F, D, h, w)
        if keep is not None:
            z = torch.stack([clip[index] for clip, index in zip(z, keep, strict=True)])
        b, f = z.shape[:2]
        n = max(1, _PIXELS_PER_BATCH // (z.shape[-1] * z.shape[-2] * self.stride**2))
        pixels = torch.cat([self.decoder(part) for part in z.flatten(0, 1).split(n)])
        return pixels.unflatten(0, (b, f))

    def training_losses(self, batch: Tensor) -> CodecStep:
        """One forward over clips (B, F, 3, H, W), F a multiple of the temporal stride."""
        z = self.latents(batch)
        b, d, f, h, w = z.shape
        out = self.quantizer(z.flatten(2).transpose(1, 2))  # (B, fhw, D)
        quantized = out.quantized.transpose(1, 2).reshape(b, d, f, h, w).to(z.dtype)
        n = min(self.config.frames_in_loss, batch.shape[1])
        keep = torch.rand(batch.shape[:2]).argsort(dim=1)[:, :n].to(batch.device)  # (B, n)
        x = self.frames(quantized, keep).flatten(0, 1)
        target = torch.stack([clip[i] for clip, i in zip(batch, keep, strict=True)]).flatten(0, 1)
        losses = image_losses(x, target, self.config.loss) | {"quantizer": out.loss}
        return CodecStep(losses, x.float(), out.codes)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return self._codes(self.latents(pixels.to(self.last_layer.device)))

    @torch.no_grad()
    def encode_next(self, pixels: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes of the frames that follow those of `past`, and the past of the next ones."""
        z = self.trunk(pixels.to(self.last_layer.device))
        whole = z if past is None else torch.cat([past, z], 2)
        n_new = z.shape[2] // self.stride_t
        codes = self._codes(self.temporal_encoder(whole))[:, :, -n_new:]
        return codes, whole[:, :, -_PAST * self.stride_t :].clone()

    def _codes(self, z: Tensor) -> Tensor:
        b, _, f, h, w = z.shape
        codes = self.quantizer.encode(z.flatten(2).transpose(1, 2))
        return codes.transpose(1, 2).reshape(b, -1, f, h, w)

    @torch.no_grad()
    def decode(self, codes: Tensor, first: int = 0) -> Tensor:
        """Pixels from frame `first` on."""
        b, q, f, h, w = codes.shape
        codes = codes.to(self.last_layer.device)
        z = self.quantizer.decode(codes.reshape(b, q, -1).transpose(1, 2))
        z = z.transpose(1, 2).reshape(b, -1, f, h, w)
        return self.frames(z, first=first).clamp(-1, 1)


class VideoTokenizer(Tokenizer):
    """encode: `Video` → CodeGrid (1, F/t, H/s, W/s); decode: CodeGrid → `Video` (no sound)."""

    config_class = VideoCodecConfig
    net_class = VideoCodec

    def __init__(self, net: VideoCodec, fingerprint: str = "") -> None:
        self.net = net.eval()
        self.config: VideoCodecConfig = net.config
        self.modality, self.span = "video", net.config.span
        quantizer = net.config.quantizer
        self.spec = SpanSpec(
            self.span, self.modality, quantizer.codebook_size, quantizer.n_codebooks, 3
        )
        self.stride = (net.stride_t, net.stride, net.stride)
        self.fingerprint = fingerprint

    def encode(self, media: Any) -> CodeGrid:
        return self.encode_batch([media])[0]

    def encode_batch(self, media: Sequence[Any]) -> list[CodeGrid]:
        """Clips of one shape go through the net together, at most 2 M pixels at a time."""
        videos = [item if isinstance(item, Video) else Video(item) for item in media]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, video in enumerate(videos):
            shapes.setdefault(video.frames.shape, []).append(i)
        grids: dict[int, CodeGrid] = {}
        for (n_frames, height, width, _), indices in shapes.items():
            n = _PIXELS_PER_BATCH // (n_frames * height * width)
            for start in range(0, len(indices), max(1, n)):
                part = indices[start : start + max(1, n)]
                if n:
                    pixels = torch.stack([self.padded(videos[i].frames) for i in part])
                    codes = self.net.encode(pixels)
                else:
                    codes = self._encode_long(videos[part[0]].frames)
                for i, code in zip(part, codes.cpu().numpy(), strict=True):
                    meta = VideoMeta(n_frames, height, width, float(videos[i].fps))
                    grid = code.astype(np.int32)
                    grids[i] = CodeGrid(self.modality, grid, meta, self.fingerprint)
        return [grids[i] for i in range(len(videos))]

    def _encode_long(self, frames: np.ndarray) -> Tensor:
        """Codes (1, 1, F/t, h, w) of uint8 (F, H, W, 3), a few groups of frames at a time."""
        n = self._n_groups(frames.shape[1] * frames.shape[2]) * self.net.stride_t
        parts, past = [], None
        for start in range(0, len(frames), n):
            pixels = self.padded(frames[start : start + n])
            codes, past = self.net.encode_next(pixels[None], past)
            parts.append(codes)
        return torch.cat(parts, 2)

    def _n_groups(self, n_pixels: int) -> int:
        """How many codes' frames of `n_pixels` each go through at once."""
        return max(1, _PIXELS_PER_BATCH // (self.net.stride_t * n_pixels))

    def padded(self, frames: np.ndarray) -> Tensor:
        """uint8 (F, H, W, 3) → (F', 3, H', W'): edges and the last frame fill whole strides."""
        if not len(frames):
            raise InputError("a clip needs at least one frame, got none")
        pixels = pad_to_stride(to_pixels(frames), self.net.stride)
        return torch.cat([pixels, pixels[-1:].expand(-len(pixels) % self.net.stride_t, -1, -1, -1)])

    def decode(self, grid: CodeGrid) -> Video:
        self.check_fingerprint(grid)
        meta = grid.meta
        assert isinstance(meta, VideoMeta)
        full = self.default_meta(grid.shape)
        sizes = (meta.n_frames, meta.height, meta.width)
        limits = (full.n_frames, full.height, full.width)
        if not all(0 < size <= limit for size, limit in zip(sizes, limits, strict=True)):
            raise InputError(f"video codes of {full} can't be cropped to their meta {meta}")
        codes = torch.from_numpy(grid.codes.astype(np.int64))[None]
        n, t = self._n_groups(full.height * full.width), self.net.stride_t
        parts = []
        for start in range(0, grid.shape[0], n):
            past = min(start, _PAST)
            window = self.net.decode(codes[:, :, start - past : start + n], first=past * t)
            parts.append(to_uint8(window[0, :, :, : meta.height, : meta.width]))
        frames = np.concatenate(parts)[: meta.n_frames]
        return Video(frames, meta.fps)

    def default_meta(self, grid_shape: Sequence[int]) -> VideoMeta:
        f, h, w = grid_shape
        s = self.net.stride
        return VideoMeta(f * self.net.stride_t, h * s, w * s, self.config.fps)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        save_codec(
            folder, self.net, self.config, modality=self.modality, span=self.span, dtype=dtype
        )

    @classmethod
    def load(cls, folder: str | Path) -> VideoTokenizer:
        data, tensors = read_codec(folder)
        net = VideoCodec(build(VideoCodecConfig, data["config"], f"codec {folder}"))
        load_weights(net, tensors, folder)
        return cls(net, data["fingerprint"])
