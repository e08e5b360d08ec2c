"""DAC (2306.06546): Descript's own files and transformers' copy.

Keys and numerics: tokenizers reference 3.7. Weight norm is folded where it is stored. Descript's
files hold their settings beside the weights; transformers' need the config.json, whose defaults
mix two models: the strides come from the kernels, the rate from what is stated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from polyglyph.checkpoint import shown
from polyglyph.errors import FormatError
from polyglyph.tokenizers.dac import Dac, DacConfig, DacTokenizer
from polyglyph.tokenizers.importers.sound import (
    WEIGHT_NORM_NAMES,
    Rename,
    as_config,
    count,
    filled,
    shape_of,
    stack_of,
    stack_of_normed,
)
from polyglyph.tokenizers.importers.weights import WEIGHT_NORM, KeyMap, Report, Source
from polyglyph.tokenizers.steps import phases_of

_CODEBOOKS = r"quantizer\.quantizers\.(\d+)\."


def load(source: Source) -> tuple[DacTokenizer, Report]:
    """The codec of either layout; FormatError where a tensor is missing or unexplained."""
    report = Report("dac", shown(source.path), ignored=dict(source.left))
    config = as_config(DacConfig, _sizes(source, report), report.source)
    names = _layer_names(len(config.strides))
    n = config.n_codebooks

    def layer(match: re.Match[str]) -> str:
        return names.get(match[1], match[1])

    renames: list[Rename] = [
        *WEIGHT_NORM_NAMES,
        (r"^((?:en|de)coder\..*?)(?=\.(?:weight|bias|alpha)(?:@|$))", layer),
        (rf"^{_CODEBOOKS}codebook\.weight$", r"quantizer.codebook@\1"),
        (rf"^{_CODEBOOKS}(in|out)_proj\.(weight|bias)$", r"quantizer.\2_\3@\1"),
        (rf"^{_CODEBOOKS}(in|out)_proj\.weight@([gv])$", r"quantizer.\2_weight@\1.\3"),
    ]
    converts: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (r"\.alpha$", lambda alpha: alpha.flatten()),
        (r"^quantizer\.(in|out)_weight$", lambda w: w.squeeze(3)),
    ]
    for i, stride in enumerate(reversed(config.strides)):
        converts.append((rf"^decoder\.{1 + 4 * i}\.weight$", _phases(stride)))
    # Then all of three axes but the transposed ones, which have become four.
    converts += [
        (r"^(en|de)coder\.\d+(\.wide)?\.weight$", lambda w: w if w.ndim != 3 else w.unsqueeze(2)),
    ]
    units = "|".join(re.escape(name) for name in _units(len(config.strides)))
    converts.append((rf"^(?:{units})\.weight$", lambda w: w.reshape(w.shape[0], w.shape[1])))
    keys = KeyMap(renames, (), [WEIGHT_NORM, stack_of(n), stack_of_normed(n)], converts)
    return filled(Dac, config, source, keys, report), report


def _phases(stride: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: phases_of(weight, stride)


def _units(n: int) -> list[str]:
    """Our names of the residual units' own (last) convolutions."""
    encoder = [f"encoder.{1 + 4 * i + j}" for i in range(n) for j in range(3)]
    return encoder + [f"decoder.{2 + 4 * i + j}" for i in range(n) for j in range(3)]


def _layer_names(n: int) -> dict[str, str]:
    """Their layers, in transformers' names and in Descript's, to ours."""
    found = {
        "encoder.conv1": "encoder.0", "encoder.block.0": "encoder.0",
        "encoder.snake1": f"encoder.{4 * n + 1}.snake", "encoder.conv2": f"encoder.{4 * n + 1}",
        f"encoder.block.{n + 1}": f"encoder.{4 * n + 1}.snake",
        f"encoder.block.{n + 2}": f"encoder.{4 * n + 1}",
        "decoder.conv1": "decoder.0", "decoder.model.0": "decoder.0",
        "decoder.snake1": f"decoder.{4 * n + 1}.snake", "decoder.conv2": f"decoder.{4 * n + 1}",
        f"decoder.model.{n + 1}": f"decoder.{4 * n + 1}.snake",
        f"decoder.model.{n + 2}": f"decoder.{4 * n + 1}",
    }  # fmt: skip
    for i in range(n):
        # transformers counts blocks from 0; Descript's first layer is the 0 of its list.
        theirs = (f"encoder.block.{i}", f"encoder.block.{i + 1}.block")
        found |= _block(*theirs, 4 * i + 1, "encoder", 0)
        found[f"{theirs[0]}.snake1"] = found[f"{theirs[1]}.3"] = f"encoder.{4 * i + 4}.snake"
        found[f"{theirs[0]}.conv1"] = found[f"{theirs[1]}.4"] = f"encoder.{4 * i + 4}"
        theirs = (f"decoder.block.{i}", f"decoder.model.{i + 1}.block")
        found |= _block(*theirs, 4 * i + 2, "decoder", 2)
        found[f"{theirs[0]}.snake1"] = found[f"{theirs[1]}.0"] = f"decoder.{4 * i + 1}.snake"
        found[f"{theirs[0]}.conv_t1"] = found[f"{theirs[1]}.1"] = f"decoder.{4 * i + 1}"
    return found


def _block(copy: str, original: str, first: int, half: str, offset: int) -> dict[str, str]:
    """Three residual units; `first` is ours, `offset` Descript's number of the first."""
    found = {}
    for j in range(3):
        ours = f"{half}.{first + j}"
        parts = {"snake1": ".wide.snake", "conv1": ".wide", "snake2": ".snake", "conv2": ""}
        for k, (part, own) in enumerate(parts.items()):
            found[f"{copy}.res_unit{j + 1}.{part}"] = ours + own
            found[f"{original}.{offset + j}.block.{k}"] = ours + own
    return found


# --- sizes --------------------------------------------------------------------------------------


def _sizes(source: Source, report: Report) -> dict[str, Any]:
    state = source.state
    rate = _rate(source, report)
    is_copy = any(key.startswith("encoder.conv1.") for key in state)
    start, down = ("encoder.conv1", "encoder.block.{}.conv1") if is_copy else (
        "encoder.block.0", "encoder.block.{}.block.4")  # fmt: skip
    width = _weight(state, start, report)[0]
    blocks = r"encoder\.block\.(\d+)\.conv1\." if is_copy else r"decoder\.model\.(\d+)\.block\.0\."
    if is_copy:
        numbers = list(range(count(state, blocks, report.source)))
    else:
        numbers = sorted({int(m[1]) for key in state if (m := re.match(blocks, key))})
    strides = tuple(_weight(state, down.format(i), report)[2] // 2 for i in numbers)
    last = "encoder.conv2" if is_copy else f"encoder.block.{len(strides) + 2}"
    first = "decoder.conv1" if is_copy else "decoder.model.0"
    size, d_code = shape_of(state, "quantizer.quantizers.0.codebook.weight", 2, report.source)
    fields = {
        "sample_rate": rate,
        "strides": strides,
        "width": width,
        "decoder_width": _weight(state, first, report)[0],
        "d_latent": _weight(state, last, report)[0],
        "n_codebooks": count(state, _CODEBOOKS, report.source),
        "codebook_size": size,
        "d_code": d_code,
    }
    said = source.config.get("downsampling_ratios")
    if said not in (None, list(strides), strides):
        raise FormatError(
            f"{report.source}: config.json says downsampling_ratios {said}, the kernels are those "
            f"of {list(strides)}; one of the two is of another checkpoint"
        )
    return fields


def _weight(state: Mapping[str, Tensor], layer: str, report: Report) -> tuple[int, ...]:
    """The shape of a convolution's weight, however it is stored."""
    for name in ("weight", "weight_v", "parametrizations.weight.original1"):
        if f"{layer}.{name}" in state:
            return shape_of(state, f"{layer}.{name}", 3, report.source)
    return shape_of(state, f"{layer}.weight", 3, report.source)


def _rate(source: Source, report: Report) -> int:
    metadata = source.extra.get("metadata")
    kwargs = metadata.get("kwargs", {}) if isinstance(metadata, Mapping) else {}
    rate = source.config.get("sampling_rate", kwargs.get("sample_rate"))
    if not isinstance(rate, int):
        raise FormatError(
            f"{report.source} doesn't say its sample rate; put the config.json that belongs to it "
            f"into its folder"
        )
    return rate


__all__ = ["load"]
