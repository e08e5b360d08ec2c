"""What the importers of audio codecs share: SEANet's keys, sizes read off shapes, filling a net.

EnCodec's package, transformers and Moshi number the layers of one and the same net alike; under
the number they differ in names and in how weight norm is stored. Knows no publisher's config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from polyglyph.config import Config
from polyglyph.errors import FormatError
from polyglyph.tokenizers.importers.weights import (
    WEIGHT_NORM,
    KeyMap,
    Merge,
    Report,
    Source,
    convert_state,
    weight_normed,
)
from polyglyph.tokenizers.neural import codec_fingerprint, inference_state
from polyglyph.tokenizers.seanet_fixed import SeanetShape
from polyglyph.tokenizers.steps import phases_of

C = TypeVar("C", bound=Config)
Rename = tuple[str, str | Callable[[re.Match[str]], str]]

# Weight norm in three spellings, to "weight@g" and "weight@v".
WEIGHT_NORM_NAMES: tuple[Rename, ...] = (
    (r"\.weight_g$", ".weight@g"),
    (r"\.weight_v$", ".weight@v"),
    (r"\.parametrizations\.weight\.original0$", ".weight@g"),
    (r"\.parametrizations\.weight\.original1$", ".weight@v"),
)


def seanet_keys(shape: SeanetShape) -> KeyMap:
    """Keys `encoder.layers.3.…` or `encoder.model.3.…` (and of the decoder) to ours."""
    names = _layer_names(shape)

    def layer(match: re.Match[str]) -> str:
        return names.get((match[1], match[2] or ""), match[0]) + "."

    renames: list[Rename] = [
        (r"\.(?:conv|convtr)\.(?:conv|convtr)\.", ".conv."),
        (r"\.(?:conv|convtr)\.norm\.", ".norm."),
        (r"\.convtr\.", ".conv."),
        (r"^((?:encoder|decoder)\.(?:layers|model)\.\d+)\.(?:(block\.[13]|shortcut)\.)?", layer),
        (r"^((?:encoder|decoder)\.(?!lstm).*?)\.conv\.", r"\1."),
        *WEIGHT_NORM_NAMES,
    ]
    converts: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (rf"^decoder\.stages\.{i}\.up\.weight$", _phases(ratio))
        for i, ratio in enumerate(shape.ratios)
    ]
    plain = r"^(?:en|de)coder\.(?!lstm).*\.?(?:start|end|down|narrow|widen|skip)\.weight$"
    converts.append((plain, lambda w: w.unsqueeze(2)))
    return KeyMap(renames, merges=[WEIGHT_NORM], converts=converts)


def _phases(stride: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: phases_of(weight, stride)


def _layer_names(shape: SeanetShape) -> dict[tuple[str, str], str]:
    """(numbered layer, part within it) of `layers` and `model` → our name."""
    encoder, decoder = ["start"], ["start"]
    for i in range(len(shape.ratios)):
        units = [f"stages.{i}.units.{j}" for j in range(shape.n_units)]
        encoder += [*units, "", f"stages.{i}.down"]  # "": an activation
        decoder += ["", f"stages.{i}.up", *units]
    lstm = ["lstm"] if shape.n_lstm else []
    encoder += [*lstm, "", "end"]
    decoder = [decoder[0], *lstm, *decoder[1:], "", "end"]
    parts = {"block.1": "narrow", "block.3": "widen", "shortcut": "skip"}
    found: dict[tuple[str, str], str] = {}
    for half, layers in (("encoder", encoder), ("decoder", decoder)):
        for word in ("layers", "model"):
            for i, name in enumerate(layers):
                start = f"{half}.{word}.{i}"
                found[start, ""] = f"{half}.{name}"
                if ".units." in name:
                    found |= {(start, theirs): f"{half}.{name}.{ours}"
                              for theirs, ours in parts.items()}  # fmt: skip
    return found


# --- tensors that are one of a stack ------------------------------------------------------------


def stack_of(n: int, convert: Callable[[Tensor], Tensor] | None = None) -> Merge:
    """Tensors `name@0` … `name@{n-1}` as one, stacked."""
    return Merge(
        tuple(str(i) for i in range(n)),
        lambda *parts: torch.stack([convert(p) if convert else p for p in parts]),
    )


def stack_of_pairs(n: int, words: tuple[str, str], join: Callable[..., Tensor]) -> Merge:
    """Tensors `name@0.a`, `name@0.b`, … as one: `join(a, b)` of every pair, stacked."""
    parts = tuple(f"{i}.{word}" for i in range(n) for word in words)

    def joined(*tensors: Tensor) -> Tensor:
        return torch.stack([join(*tensors[i : i + 2]) for i in range(0, len(tensors), 2)])

    return Merge(parts, joined)


def stack_of_normed(n: int) -> Merge:
    """Weight-normed tensors `name@0.g`, `name@0.v`, … as one."""
    return stack_of_pairs(n, ("g", "v"), weight_normed)


# --- sizes --------------------------------------------------------------------------------------


def count(state: Mapping[str, Tensor], pattern: str, source: str) -> int:
    """How many indices `pattern` finds in the keys; they are 0, 1, 2 … without a gap, and some."""
    found = {int(m[1]) for key in state if (m := re.match(pattern, key))}
    if not found or found != set(range(len(found))):
        raise FormatError(
            f"{source}: its keys lack an index of {pattern.split('(')[0]!r}; it is damaged or of "
            f"another kind"
        )
    return len(found)


def shape_of(state: Mapping[str, Tensor], key: str, rank: int, source: str) -> tuple[int, ...]:
    """The shape of a tensor that has to be there, of that rank."""
    if key not in state:
        raise FormatError(f"{source} lacks {key}: it is no codec of this kind, or it is damaged")
    shape = tuple(state[key].shape)
    if len(shape) != rank or not all(shape):
        raise FormatError(f"{source}: {key} has shape {shape}; expected {rank} sizes from 1")
    return shape


def as_config(config_class: type[C], fields: Mapping[str, Any], source: str) -> C:
    """The config of these fields; FormatError where they make no codec."""
    try:
        return config_class.model_validate(dict(fields))
    except ValueError as error:
        reason = str(error).strip().splitlines()
        raise FormatError(f"{source}: its sizes make no codec ({' '.join(reason[1:3])})") from error


def filled(
    net_class: type[nn.Module], config: Config, source: Source, keys: KeyMap, report: Report
) -> Any:  # fmt: skip
    """The tokenizer of a net with every tensor from `source`; FormatError where one doesn't fit."""
    try:
        with torch.device("meta"):  # no memory, whatever sizes a damaged file states
            net = net_class(config)
    except (RuntimeError, ValueError, ZeroDivisionError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(f"{report.source}: no net has its sizes ({reason})") from error
    tensors = convert_state(source.state, net.state_dict(), keys, report)
    net.load_state_dict(tensors, assign=True)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().as_tokenizer(codec_fingerprint(inference_state(net), config))
