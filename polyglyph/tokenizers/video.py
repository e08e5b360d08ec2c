"""The video codec: the image codec's 2-D trunk per frame and a causal temporal stack on latents.

Four frames and 8 × 8 pixels become one code. Everything that crosses frames is padded in front
only and every norm is taken per frame, so a code never depends on a later group of frames and a
decoded frame never on a later code (the front-padding rule of Emu3's VisionVQ: the number of
frames is padded to a multiple of four by repeating the last one). With first_frame = "alone" the
first code stands for the first frame only (the 1 + 4n rule of MAGVIT-v2, arXiv:2310.05737): three
more of it are put in front of time. Repeating is done with latents, so that a still picture costs
one frame's work. Knows nothing of ids, sound tracks or containers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from polyglyph.errors import ConfigError, InputError
from polyglyph.media import Image, Video
from polyglyph.tokenizers.base import (
    CodeGrid,
    SpanSpec,
    Tokenizer,
    VideoMeta,
    as_medium,
    check_follows,
    join_codes,
)
from polyglyph.tokenizers.blocks import TemporalDown, TemporalResidual, TemporalUp
from polyglyph.tokenizers.image import (
    ImageCodec,
    ImageCodecConfig,
    make_decoder,
    make_encoder,
    pad_to_stride,
    to_pixels,
    to_uint8,
)
from polyglyph.tokenizers.losses import image_losses
from polyglyph.tokenizers.neural import RESIDUAL_KINDS, CodecStep, load_net, save_codec
from polyglyph.tokenizers.quantize import Quantizer
from polyglyph.tokenizers.tiling import latents_tiled, pixels_tiled

# Pixels of one 2-D forward. A clip with more goes through in windows of whole codes that begin with
# the past they depend on, so the codes stay the same; a frame with more, in tiles.
_PIXELS_PER_BATCH = 1 << 21
# Our own stack reaches back less than ten codes, however often the frames are halved (each halving
# reaches half as far as the next one).
_PAST = 10
# Fields of the configuration that a trunk's shape depends on.
_TRUNK_FIELDS = (
    "base", "multipliers", "n_res_blocks", "attention", "patch", "local", "decoder", "trunk",
)  # fmt: skip


class VideoCodecConfig(ImageCodecConfig):
    """`[codec]` of a video codec: the image trunk's fields and the temporal stack's.

    n_temporal_levels: halvings of the frame count. first_frame: "pad": clips of 4n frames, filled
    up at their end; "alone": clips of 1 + 4n, whose first frame has codes of its own.
    fps: of clips made from generated codes.
    frames_in_loss: frames per clip that training decodes to pixels; the trunk works per frame,
    so a random subset is an unbiased estimate at a fraction of the work.
    init: folder of an image codec whose trunk this one starts from, or of a video codec of the
    same shape to train on from.
    """

    modality: str = "video"
    span: str = "video"
    n_temporal_levels: int = Field(2, ge=1)
    # Left out of a dump at its default: codecs saved before this field keep their fingerprint.
    first_frame: Literal["pad", "alone"] = Field("pad", exclude_if=lambda rule: rule == "pad")
    fps: float = Field(8.0, gt=0)
    frames_in_loss: int = Field(3, ge=1)
    init: str | None = None


class VideoCodec(nn.Module):
    """Pixels (B, F, 3, H, W) in [-1, 1] ↔ codes (B, 1, F/t, H/s, W/s)."""

    starts_from = "image"  # the modality of the codec that `init` names

    @property
    def n_past(self) -> int:
        """Codes before its own that a code, or a decoded group of frames, depends on at most."""
        return _PAST

    def __init__(self, config: VideoCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)
        self.decoder = make_decoder(config)
        self.stride = self.encoder.stride
        self.stride_t = 2**config.n_temporal_levels
        # Latents put before the first frame's: repeats of it.
        self.lead = self.stride_t - 1 if config.first_frame == "alone" else 0
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
        for name in _TRUNK_FIELDS:
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
        n = _PIXELS_PER_BATCH // (frames.shape[-1] * frames.shape[-2])
        if n or torch.is_grad_enabled():
            z = torch.cat([self.encoder(part) for part in frames.split(max(1, n))])
        else:
            z = torch.cat([latents_tiled(self, frame, _PIXELS_PER_BATCH) for frame in frames])
        return z.unflatten(0, (b, f)).transpose(1, 2)

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, H, W) → (B, D, F/t, h, w); F is filled up to whole strides."""
        return self.temporal_encoder(self.filled(self.trunk(pixels), self.lead))

    def filled(self, z: Tensor, lead: int) -> Tensor:
        """(B, D, F, h, w) with `lead` repeats of its first frame before it, and as many of its
        last behind it as make whole strides."""
        tail = -(z.shape[2] + lead) % self.stride_t
        if not lead and not tail:
            return z
        ends = z[:, :, :1].expand(-1, -1, lead, -1, -1), z[:, :, -1:].expand(-1, -1, tail, -1, -1)
        return torch.cat([ends[0], z, ends[1]], 2)

    def n_groups(self, n_frames: int) -> int:
        """Codes in time of a clip of n_frames."""
        return -(-(n_frames + self.lead) // self.stride_t)

    def frames(
        self, z: Tensor, keep: Tensor | None = None, first: int = 0, stop: int | None = None
    ) -> Tensor:
        """(B, D, F/t, h, w) → pixels (B, F, 3, H, W), of decoded frames `first` to `stop` (those
        of `lead` count); only the frames in `keep` (B, n) of these if given."""
        z = self.temporal_decoder(z).transpose(1, 2)[:, first:stop]  # (B, F, D, h, w)
        if keep is not None:
            z = torch.stack([clip[index] for clip, index in zip(z, keep, strict=True)])
        b, f = z.shape[:2]
        n = _PIXELS_PER_BATCH // (z.shape[-1] * z.shape[-2] * self.stride**2)
        z = z.flatten(0, 1)
        if n or torch.is_grad_enabled():
            pixels = torch.cat([self.decoder(part) for part in z.split(max(1, n))])
        else:
            pixels = torch.cat([pixels_tiled(self, part, _PIXELS_PER_BATCH) for part in z])
        return pixels.unflatten(0, (b, f))

    def vectors(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, H, W) → what is quantized, (B, N, D)."""
        return self.latents(pixels).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def decoded(self, out: CodecStep) -> Tensor:
        """What the codes of half of the step's clips stand for, without a gradient."""
        assert out.quantized is not None
        return self.frames(out.quantized[: len(out.quantized) // 2], first=self.lead).float()

    def training_losses(self, batch: Tensor) -> CodecStep:
        """One forward over clips (B, F, 3, H, W)."""
        z = self.latents(batch)
        b, d, f, h, w = z.shape
        latents = z.flatten(2).transpose(1, 2)
        out = self.quantizer(latents)  # (B, fhw, D)
        quantized = out.quantized.transpose(1, 2).reshape(b, d, f, h, w).to(z.dtype)
        n = min(self.config.frames_in_loss, batch.shape[1])
        keep = torch.rand(batch.shape[:2]).argsort(dim=1)[:, :n].to(batch.device)  # (B, n)
        x = self.frames(quantized, keep, self.lead).flatten(0, 1).float()
        target = torch.stack([clip[i] for clip, i in zip(batch, keep, strict=True)]).flatten(0, 1)
        losses = image_losses(x, target, self.config.loss) | {"quantizer": out.loss}
        return CodecStep(losses, x, out.codes, target, latents, quantized)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def encode(self, pixels: Tensor, n_codebooks: int | None = None) -> Tensor:
        """(B, F, 3, H, W) → (B, Q, F/t, h, w)."""
        return self._codes(self.latents(pixels.to(self.last_layer.device)), n_codebooks)

    @torch.no_grad()
    def encode_next(
        self, pixels: Tensor, past: Tensor | None, n_codebooks: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes of the frames that follow those of `past`, and the past of the next ones. Only the
        last frames of a clip may be filled up to a whole stride."""
        z = self.trunk(pixels.to(self.last_layer.device))
        z = self.filled(z, self.lead if past is None else 0)
        whole = z if past is None else torch.cat([past, z], 2)
        n_new = z.shape[2] // self.stride_t
        codes = self._codes(self.temporal_encoder(whole)[:, :, -n_new:], n_codebooks)
        return codes, whole[:, :, -self.n_past * self.stride_t :].clone()

    def _codes(self, z: Tensor, n_codebooks: int | None) -> Tensor:
        b, _, f, h, w = z.shape
        codes = self.quantizer.encode(z.flatten(2).transpose(1, 2), n_codebooks)
        return codes.transpose(1, 2).reshape(b, -1, f, h, w)

    @torch.no_grad()
    def decode(self, codes: Tensor, first: int | None = None, stop: int | None = None) -> Tensor:
        """Pixels of decoded frames `first` (by default the first shown one) to `stop`."""
        b, q, f, h, w = codes.shape
        codes = codes.to(self.last_layer.device)
        z = self.quantizer.decode(codes.reshape(b, q, -1).transpose(1, 2))
        z = z.transpose(1, 2).reshape(b, -1, f, h, w)
        first = self.lead if first is None else first
        return self.frames(z, first=first, stop=stop).clamp(-1, 1)


@dataclass
class _Past:
    """What a stream keeps: of encoding the last latents, of decoding the last codes."""

    latents: Tensor | None = None  # (1, D, F, h, w)
    codes: np.ndarray | None = None  # (Q, F/t, h, w)


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
        self.is_residual = quantizer.kind in RESIDUAL_KINDS
        self.stride = (net.stride_t, net.stride, net.stride)
        self.fingerprint = fingerprint

    # -- encoding --------------------------------------------------------------------------------

    def encode(self, media: Any, *, n_codebooks: int | None = None) -> CodeGrid:
        """A `Video`, or an `Image` as a clip of one frame."""
        return self.encode_batch([media], n_codebooks=n_codebooks)[0]

    def encode_batch(
        self, media: Sequence[Any], *, n_codebooks: int | None = None
    ) -> list[CodeGrid]:
        """Clips of one shape go through the net together, at most 2 M pixels at a time."""
        n_books = self.chosen_codebooks(n_codebooks)
        videos = [self._video(item) for item in media]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, video in enumerate(videos):
            shapes.setdefault(video.frames.shape, []).append(i)
        grids: dict[int, CodeGrid] = {}
        for (n_frames, height, width, _), indices in shapes.items():
            n = _PIXELS_PER_BATCH // (max(1, n_frames) * height * width)
            for start in range(0, len(indices), max(1, n)):
                part = indices[start : start + max(1, n)]
                if n:
                    pixels = torch.stack([self.padded(videos[i].frames) for i in part])
                    codes = self.net.encode(pixels, *self.asked(n_books))
                else:
                    past = _Past()
                    windows = self._encode_next(videos[part[0]].frames, past, n_books)
                    codes = torch.cat(list(windows), 2)
                for i, code in zip(part, codes.cpu().numpy(), strict=True):
                    meta = VideoMeta(n_frames, height, width, float(videos[i].fps))
                    grid = code.astype(np.int32)
                    grids[i] = CodeGrid(self.modality, grid, meta, self.fingerprint)
        return [grids[i] for i in range(len(videos))]

    def _video(self, media: Any) -> Video:
        if isinstance(media, Image):
            return Video(media.array[None], self.config.fps)
        return as_medium(media, Video)

    def _encode_next(self, frames: np.ndarray, past: _Past, n_books: int) -> Iterator[Tensor]:
        """Codes (1, Q, f, h, w) of uint8 (F, H, W, 3), a few groups of frames at a time."""
        n = self._n_groups(frames.shape[1] * frames.shape[2]) * self.net.stride_t
        lead = self.net.lead if past.latents is None else 0
        starts = [0, *range(n - lead, len(frames), n)]
        for start, stop in zip(starts, [*starts[1:], len(frames)], strict=True):
            pixels = self.padded(frames[start:stop])[None]
            codes, past.latents = self.net.encode_next(pixels, past.latents, *self.asked(n_books))
            yield codes

    def _n_groups(self, n_pixels: int) -> int:
        """How many codes' frames of `n_pixels` each go through at once."""
        return max(1, _PIXELS_PER_BATCH // (self.net.stride_t * n_pixels))

    def padded(self, frames: np.ndarray) -> Tensor:
        """uint8 (F, H, W, 3) → (F, 3, H', W'): edges fill whole strides."""
        if not len(frames):
            raise InputError("a clip needs at least one frame, got none")
        return pad_to_stride(to_pixels(frames), self.net.stride)

    def encode_stream(
        self, chunks: Iterable[Any], *, n_codebooks: int | None = None
    ) -> Iterator[CodeGrid]:
        """Whole groups of frames as soon as they are there; the last piece fills up a group.

        chunks: `Video` of any length (or `Image`), all of one size and rate (InputError)."""
        n_books = self.chosen_codebooks(n_codebooks)
        past, t = _Past(), self.net.stride_t
        first: Video | None = None
        waiting = np.zeros((0, 1, 1, 3), np.uint8)
        for chunk in chunks:
            clip = self._video(chunk)
            first = first or clip
            if (clip.frames.shape[1:], clip.fps) != (first.frames.shape[1:], first.fps):
                raise InputError(
                    f"the chunks of one clip have one size and rate; got {first!r}, then {clip!r}"
                )
            waiting = np.concatenate([waiting, clip.frames]) if len(waiting) else clip.frames
            lead = self.net.lead if past.latents is None else 0
            ready = max(0, (len(waiting) + lead) // t * t - lead)
            if ready:
                yield from self._pieces(waiting[:ready], first.fps, past, n_books)
            waiting = waiting[ready:].copy()
        if first is None or (past.latents is None and not len(waiting)):
            raise InputError("a stream of frames needs at least one, got none")
        if len(waiting):
            yield from self._pieces(waiting, first.fps, past, n_books)

    def _pieces(
        self, frames: np.ndarray, fps: float, past: _Past, n_books: int
    ) -> Iterator[CodeGrid]:
        """The frames that follow in a stream, as grids."""
        lead = self.net.lead if past.latents is None else 0
        left = len(frames)
        for codes in self._encode_next(frames, past, n_books):
            grid = codes[0].cpu().numpy().astype(np.int32)
            n_frames = min(left, grid.shape[1] * self.net.stride_t - lead)
            left, lead = left - n_frames, 0
            meta = VideoMeta(n_frames, frames.shape[1], frames.shape[2], float(fps))
            yield CodeGrid(self.modality, grid, meta, self.fingerprint)

    # -- decoding --------------------------------------------------------------------------------

    def decode(self, grid: CodeGrid) -> Video:
        meta = self._checked(grid, self.net.lead)
        frames = np.empty((meta.n_frames, meta.height, meta.width, 3), np.uint8)
        start = 0
        for window in self._decode_next(grid.codes, meta, _Past()):
            frames[start : start + len(window)] = window
            start += len(window)
        return Video(frames, meta.fps)

    def _decode_next(self, codes: np.ndarray, meta: VideoMeta, past: _Past) -> Iterator[np.ndarray]:
        """uint8 (F, H, W, 3) of the codes (Q, F/t, h, w) that follow in a stream."""
        t, s = self.net.stride_t, self.net.stride
        n = self._n_groups(codes.shape[2] * codes.shape[3] * s * s)
        left = meta.n_frames
        for start in range(0, codes.shape[1], n):
            new = codes[:, start : start + n]
            whole = new if past.codes is None else np.concatenate([past.codes, new], 1)
            first = (whole.shape[1] - new.shape[1]) * t
            first += self.net.lead if past.codes is None else 0
            stop = min(whole.shape[1] * t, first + left)
            past.codes = whole[:, -self.net.n_past :]
            left -= stop - first
            if stop > first:
                tensor = torch.from_numpy(whole.astype(np.int64))[None]
                window = self.net.decode(tensor, first, stop)
                yield to_uint8(window[0, :, :, : meta.height, : meta.width])

    def decode_stream(self, pieces: Iterable[CodeGrid]) -> Iterator[Video]:
        """The frames of every piece, in order. InputError where a piece that is cut within a group
        of frames isn't the last, or has another size than the first."""
        past, is_cut = _Past(), False
        first: CodeGrid | None = None
        for piece in pieces:
            first = first or piece
            lead = self.net.lead if past.codes is None else 0
            meta = self._checked(piece, lead)
            check_follows(first, piece)
            if is_cut:
                raise InputError(
                    "a piece of a clip's stream ends within a group of frames; it must be last"
                )
            is_cut = meta.n_frames < piece.shape[0] * self.net.stride_t - lead
            frames = np.concatenate(list(self._decode_next(piece.codes, meta, past)))
            yield Video(frames, meta.fps)

    def join(self, pieces: Sequence[CodeGrid]) -> CodeGrid:
        codes = join_codes(pieces)
        metas = [self._checked(piece, 0 if i else self.net.lead) for i, piece in enumerate(pieces)]
        meta = replace(metas[0], n_frames=sum(meta.n_frames for meta in metas))
        return CodeGrid(self.modality, codes, meta, pieces[0].fingerprint)

    def _checked(self, grid: CodeGrid, lead: int) -> VideoMeta:
        """The meta of a grid that this codec can decode."""
        self.check_fingerprint(grid)
        meta = grid.meta
        assert isinstance(meta, VideoMeta)
        f, h, w = grid.shape
        limits = (f * self.net.stride_t - lead, h * self.net.stride, w * self.net.stride)
        sizes = (meta.n_frames, meta.height, meta.width)
        if not all(0 < size <= limit for size, limit in zip(sizes, limits, strict=True)):
            full = replace(meta, n_frames=limits[0], height=limits[1], width=limits[2])
            raise InputError(f"video codes of {full} can't be cropped to their meta {meta}")
        return meta

    def default_meta(self, grid_shape: Sequence[int]) -> VideoMeta:
        f, h, w = grid_shape
        s = self.net.stride
        return VideoMeta(f * self.net.stride_t - self.net.lead, h * s, w * s, self.config.fps)

    # -- disk ------------------------------------------------------------------------------------

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        save_codec(
            folder, self.net, self.config, modality=self.modality, span=self.span, dtype=dtype
        )

    @classmethod
    def load(cls, folder: str | Path) -> VideoTokenizer:
        return cls(*load_net(VideoCodec, VideoCodecConfig, folder))
