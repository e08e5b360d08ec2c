"""EnCodec (2210.13438): the `encodec` package's files, transformers' copy in both its layouts.

Keys and numerics: tokenizers reference 3.6. Weight norm is folded; the codebooks' statistics of
training are left out. The package's files carry no config: the 24 and 48 kHz models are known by
their sizes, any other needs a config.json beside it (transformers' names).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from polyglyph.checkpoint import shown
from polyglyph.errors import FormatError
from polyglyph.tokenizers.encodec import Encodec, EncodecConfig, EncodecTokenizer
from polyglyph.tokenizers.importers.sound import (
    as_config,
    count,
    filled,
    seanet_keys,
    shape_of,
    stack_of,
)
from polyglyph.tokenizers.importers.weights import Report, Source

# Ours → transformers' name in config.json.
_NAMES = {
    "sample_rate": "sampling_rate",
    "channels": "audio_channels",
    "codebook_size": "codebook_size",
    "d_code": "hidden_size",
    "width": "num_filters",
    "ratios": "upsampling_ratios",
    "n_units": "num_residual_layers",
    "kernel": "kernel_size",
    "last_kernel": "last_kernel_size",
    "unit_kernel": "residual_kernel_size",
    "dilation_growth": "dilation_growth_rate",
    "compress": "compress",
    "n_lstm": "num_lstm_layers",
    "causal": "use_causal_conv",
    "mode": "pad_mode",
    "conv_skip": "use_conv_shortcut",
    "normalize": "normalize",
    "chunk_s": "chunk_length_s",
    "overlap": "overlap",
}
_NORMS = {"weight_norm": "weight", "time_group_norm": "group"}
_IGNORED = (
    (r"quantizer\..*\.(inited|cluster_size|embed_avg)$", "statistics of the codebook's training"),
)
# What the package's files don't say, of the two models that it publishes.
_MONO = {"sample_rate": 24_000, "causal": True, "norm": "weight", "normalize": False}
_STEREO = {
    "sample_rate": 48_000, "causal": False, "norm": "group", "normalize": True,
    "chunk_s": 1.0, "overlap": 0.01,
}  # fmt: skip
_CODEBOOK = "quantizer.codebook"
_WEIGHT = r"(?:conv\.)?conv\.(?:weight_v|.*original1|weight)$"


def load(source: Source) -> tuple[EncodecTokenizer, Report]:
    """The codec of any layout; FormatError where a tensor is missing or unexplained."""
    report = Report("encodec", shown(source.path), ignored=dict(source.left))
    layer = r"quantizer\.(?:vq\.)?layers\.(\d+)\."
    fields: dict[str, Any] = {"n_codebooks": count(source.state, layer, report.source)}
    is_stated = _config(source).get("upsampling_ratios") is not None
    fields |= _stated(source, report) if is_stated else _inferred(source, report)
    config = as_config(EncodecConfig, fields, report.source)
    keys = seanet_keys(config.shape())
    keys = replace(
        keys,
        renames=[
            *keys.renames,
            (r"^quantizer\.(?:vq\.)?layers\.(\d+)\.(?:_?codebook)\.embed$", _CODEBOOK + r"@\1"),
        ],
        ignored=_IGNORED,
        merges=[*keys.merges, stack_of(config.n_codebooks)],
    )
    return filled(Encodec, config, source, keys, report), report


def _config(source: Source) -> dict[str, Any]:
    """The codec's part of config.json; MusicGen's holds it as `audio_encoder`."""
    part = source.config.get("audio_encoder", source.config)
    return part if isinstance(part, dict) else {}


def _stated(source: Source, report: Report) -> dict[str, Any]:
    """What config.json says."""
    stated = _config(source)
    fields = {ours: stated[theirs] for ours, theirs in _NAMES.items()
              if stated.get(theirs) is not None}  # fmt: skip
    norm = stated.get("norm_type", "weight_norm")
    width = stated.get("codebook_dim") or fields.get("d_code")
    if norm not in _NORMS or width != fields.get("d_code", width):
        raise FormatError(
            f"{report.source}: config.json has norm_type {norm!r} and codebook_dim {width}; "
            f"expected one of {', '.join(_NORMS)} and the hidden_size"
        )
    if stated.get("trim_right_ratio", 1.0) != 1.0:
        raise FormatError(f"{report.source}: a trim_right_ratio other than 1.0 is no EnCodec's")
    return fields | {"norm": _NORMS[norm]}


def _inferred(source: Source, report: Report) -> dict[str, Any]:
    """The sizes off the shapes, the rest from the one published model that has them."""
    state = source.state
    first = _first(state, rf"encoder\.(?:layers|model)\.0\.{_WEIGHT}", report.source)
    width, channels, kernel = shape_of(state, first, 3, report.source)
    downs = _downs(state, width)
    table = _first(state, r"quantizer\..*layers\.0\..*\.embed$", report.source)
    size, d_code = shape_of(state, table, 2, report.source)
    stereo = channels == 2
    ratios = tuple(reversed([k // 2 for k in downs]))
    normed = any(".norm." in key for key in state)
    if stereo != normed or ratios != (8, 5, 4, 2):
        raise FormatError(
            f"{report.source} is neither the 24 kHz nor the 48 kHz EnCodec; put the config.json "
            f"that belongs to it into its folder"
        )
    report.notes.append(
        f"no config.json: taken for the {48 if stereo else 24} kHz model by its {channels} channels"
    )
    return {
        "channels": channels, "width": width, "kernel": kernel, "last_kernel": kernel,
        "ratios": ratios, "codebook_size": size, "d_code": d_code,
        **(_STEREO if stereo else _MONO),
    }  # fmt: skip


def _first(state: dict[str, Any], pattern: str, source: str) -> str:
    for key in state:
        if re.match(pattern, key):
            return key
    raise FormatError(f"{source} holds no tensor like {pattern.split('(')[0]!r}; it is no EnCodec")


def _downs(state: dict[str, Any], width: int) -> list[int]:
    """Kernels of the encoder's strided convolutions, in order: each doubles the channels."""
    pattern = re.compile(rf"encoder\.(?:layers|model)\.(\d+)\.{_WEIGHT}")
    found = sorted((int(m[1]), t.shape) for key, t in state.items() if (m := pattern.match(key)))
    shapes = [shape for _, shape in found if len(shape) == 3 and shape[0] == 2 * shape[1]]
    return [shape[2] for shape in shapes if shape[1] >= width]


__all__ = ["load"]
