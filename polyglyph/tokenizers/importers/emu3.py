"""Emu3's VisionVQ (2409.18869) in its own layout and in transformers' (Emu3VQVAE).

Layouts: tokenizers reference 3.4. The same weights code pictures ("emu3") and clips
("emu3-video"). `attn_resolutions` of its configuration are levels, not pixels; here they are read
off the keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from polyglyph.checkpoint import shown
from polyglyph.errors import FormatError
from polyglyph.tokenizers.image import ImageTokenizer
from polyglyph.tokenizers.importers.trunk import (
    as_config,
    check_stated,
    codebook_shape,
    count,
    filled_net,
    infer_trunk,
    trunk_keys,
)
from polyglyph.tokenizers.importers.weights import KeyMap, Report, Source
from polyglyph.tokenizers.neural import codec_fingerprint, inference_state
from polyglyph.tokenizers.video import VideoTokenizer
from polyglyph.tokenizers.visionvq import VisionVq, VisionVqConfig

# transformers' names to the original ones.
_ORIGINAL = (
    (r"^(encoder|decoder)\.(?:down|up)_block\.", r"\1."),
    (r"^(encoder|decoder)\.middle_block\.", r"\1.mid."),
    (r"\.mid\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.(q|k|v)_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
)


def load_image(source: Source) -> tuple[ImageTokenizer, Report]:
    """The codec for pictures."""
    net, mark, report = _load(source, "image", "emu3")
    return ImageTokenizer(net, mark), report  # type: ignore[arg-type]


def load_video(source: Source) -> tuple[VideoTokenizer, Report]:
    """The codec for clips."""
    net, mark, report = _load(source, "video", "emu3-video")
    return VideoTokenizer(net, mark), report


def _load(source: Source, modality: str, kind: str) -> tuple[VisionVq, str, Report]:
    report = Report(kind, shown(source.path), ignored=dict(source.left))
    original = KeyMap(renames=_ORIGINAL)
    state = {original.rename(key): tensor for key, tensor in source.state.items()}
    fields: dict[str, Any] = infer_trunk(state, report.source)
    size, d_code = codebook_shape(state, "quantize.embedding.weight", report.source)
    levels = count(state, r"encoder\.time_conv\.(\d+)\.", report.source)
    if fields["decoder"] != "movq" or levels == 0:
        raise FormatError(
            f"{report.source} has no temporal layers or no spatial norms; it is no {kind} codec"
        )
    if d_code != fields["z_channels"]:
        raise FormatError(
            f"{report.source}: codes of width {d_code} and latents of {fields['z_channels']} can't "
            "share the decoder's temporal layers; it is damaged"
        )
    fields |= {
        "modality": modality,
        "span": modality,
        "n_temporal_levels": levels,
        "quantizer": {"codebook_size": size, "d_code": d_code},
    }
    config = as_config(VisionVqConfig, fields, report.source)
    check_stated(config, source.config, report.source)
    net = filled_net(VisionVq, config, source.state, _keys(config), report)
    report.notes.append("a picture is coded as four equal frames and decoded as the first of four")
    return net, codec_fingerprint(inference_state(net), config), report


def _keys(config: VisionVqConfig) -> KeyMap:
    keys = trunk_keys(config)
    n_levels, n_blocks = config.n_temporal_levels, config.n_res_blocks
    places = {"encoder": (0, n_levels), "decoder": (n_blocks, 0)}  # of time_conv, time_res_stack

    def in_time(match: Any) -> str:
        side, kind, index = match[1], match[2], int(match[3])
        return f"temporal_{side}.{places[side][kind == 'res_stack'] + index}."

    temporal = (
        (r"^(encoder|decoder)\.time_(conv|res_stack)\.(\d+)\.", in_time),
        (r"^(temporal_\w+\.\d+)\.conv\.conv\.", r"\1.conv."),
        (r"^quant_conv\.", f"temporal_encoder.{n_levels + n_blocks}."),
        (r"^(temporal_.*\.norm[12])\.running_(mean|var)$", r"\1.\2"),
    )
    ignored = (*keys.ignored, (r".*\.num_batches_tracked$", "a counter of training"))
    return replace(
        keys,
        renames=[*_ORIGINAL, *keys.renames, *temporal],
        ignored=ignored,
        converts=[*keys.converts, (r"\.(qkv|out)\.weight$", _as_1x1)],
    )


def _as_1x1(weight: Tensor) -> Tensor:
    """transformers' linear layers over channels as the convolutions that they were."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight
