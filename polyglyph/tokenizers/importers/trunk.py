"""The published trunks' keys in ours, and the architecture read off the shapes of the tensors.

taming's names are the common ones here: `down.{i}` and `up.{i}` with 0 the finest level, `mid`,
`norm1`, `q` `k` `v` `proj_out`. The other publishers' names are first turned into them. Knows no
publisher and no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from polyglyph.errors import FormatError
from polyglyph.tokenizers.importers.weights import QKV, KeyMap, Replacement, Report, convert_state
from polyglyph.tokenizers.vqgan import VqganConfig, channels_last

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound=VqganConfig)

CODEBOOK = "quantizer.codebook"
IGNORED = (
    (r"loss\.", "losses and discriminator: training only"),
    (r"(global_step|epoch)$", "a counter of training"),
)
_WITHIN = (  # inside one block, after its own name has become ours
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.norm_layer\.", ".norm."),
    (r"\.conv_y\.", ".scale."),
    (r"\.conv_b\.", ".shift."),
    (r"\.(q|k|v)\.(weight|bias)$", r".qkv.\2@\1"),
    (r"\.proj_out\.", ".out."),
)


def trunk_keys(config: VqganConfig) -> KeyMap:
    """taming's keys of encoder, decoder and what lies between to ours."""
    names = _block_names(config)

    def block(match: re.Match[str]) -> str:
        return names.get(match[0], match[0])

    pattern = (
        r"^(encoder|decoder)\.(conv_in|conv_out|norm_out|mid\.\w+|"
        r"(down|up)\.\d+\.((block|attn)\.\d+|downsample|upsample))"
    )
    renames: list[tuple[str, Replacement]] = [(pattern, block), *_WITHIN]
    renames.append((r"^quantize\.embedding\.weight$", CODEBOOK))
    return KeyMap(renames, IGNORED, [QKV], [(rf"^{CODEBOOK}$", lambda table: table[None])])


def _block_names(config: VqganConfig) -> dict[str, str]:
    """taming's names of the blocks to ours, as Encoder2d and Decoder2d line them up."""
    n_levels, attention = len(config.multipliers), config.attention_levels
    order = ["encoder.conv_in"]
    for level in range(n_levels):
        order += _level("encoder.down", level, config.n_res_blocks, level in attention)
        order += [f"encoder.down.{level}.downsample"] if level < n_levels - 1 else []
    names = {theirs: f"encoder.layers.{i}" for i, theirs in enumerate(order, 1)}
    names |= _middle("encoder", f"encoder.layers.{len(order) + 1}")
    names["encoder.norm_out"] = f"encoder.layers.{len(order) + 2}"
    names["encoder.conv_out"] = "conv_out"
    order = []
    for level in reversed(range(n_levels)):
        order += _level("decoder.up", level, config.n_res_blocks + 1, level in attention)
        order += [f"decoder.up.{level}.upsample"] if level else []
    names |= {theirs: f"decoder.layers.{i}" for i, theirs in enumerate(order, 1)}
    names |= _middle("decoder", "decoder.layers.0")
    names["decoder.norm_out"] = f"decoder.layers.{len(order) + 1}"
    return names | {"decoder.conv_in": "conv_in"}  # decoder.conv_out has the same name


def _level(prefix: str, level: int, n_blocks: int, attention: bool) -> list[str]:
    names = []
    for block in range(n_blocks):
        names.append(f"{prefix}.{level}.block.{block}")
        names += [f"{prefix}.{level}.attn.{block}"] if attention else []
    return names


def _middle(side: str, ours: str) -> dict[str, str]:
    parts = ("block_1", "attn_1", "block_2")
    return {f"{side}.mid.{part}": f"{ours}.{i}" for i, part in enumerate(parts)}


# --- the architecture, read off the shapes -----------------------------------------------------


def infer_trunk(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The fields of VqganConfig that the tensors (taming's names) tell, the codebook's aside.

    FormatError where a tensor that they are read from is not there."""
    base = _shape(state, "encoder.conv_in.weight", source)[0]
    n_levels = count(state, r"encoder\.down\.(\d+)\.block\.", source)
    widths = [
        _shape(state, f"encoder.down.{i}.block.0.conv1.weight", source)[0] for i in range(n_levels)
    ]
    wrong = [w for w in widths if w % base]
    if wrong or not widths:
        raise FormatError(f"{source}: levels of {widths} channels are no multiples of {base}")
    attention = sorted({int(m[1]) for key in state if (m := _ATTENTION.match(key))})
    decoder = "plain" if any(key.startswith("decoder.") for key in state) else "none"
    if "decoder.norm_out.conv_y.weight" in state:
        decoder = "movq"
    return {
        "base": base,
        "multipliers": tuple(w // base for w in widths),
        "n_res_blocks": count(state, r"encoder\.down\.0\.block\.(\d+)\.", source),
        "attention_levels": tuple(attention),
        "z_channels": _shape(state, "encoder.conv_out.weight", source)[0],
        "decoder": decoder,
        "norm_conv": "decoder.norm_out.conv.weight" in state,
    }


_ATTENTION = re.compile(r"encoder\.down\.(\d+)\.attn\.")


def count(state: Mapping[str, Tensor], pattern: str, source: str) -> int:
    """How many indices `pattern` finds; they have to be 0, 1, 2 ... without a gap."""
    found = {int(m[1]) for key in state if (m := re.match(pattern, key))}
    if found != set(range(len(found))):
        raise FormatError(f"{source}: its keys skip an index; it is damaged or no such codec")
    return len(found)


def _shape(state: Mapping[str, Tensor], key: str, source: str) -> tuple[int, ...]:
    if key not in state or state[key].ndim < 1 or state[key].numel() == 0:
        raise FormatError(f"{source} lacks {key}: it is no codec of this kind, or it is damaged")
    return tuple(state[key].shape)


def codebook_shape(state: Mapping[str, Tensor], key: str, source: str) -> tuple[int, int]:
    """(codebook_size, d_code) of a table of codes."""
    shape = _shape(state, key, source)
    if len(shape) != 2:
        raise FormatError(f"{source}: {key} has shape {shape}; expected a table of codes (K, D)")
    return shape[0], shape[1]


# Their names in a config.json of transformers or of the publishers, by ours.
_STATED = {
    "base": ("base_channels", "ch"),
    "multipliers": ("channel_multiplier", "ch_mult"),
    "n_res_blocks": ("num_res_blocks",),
    "z_channels": ("latent_channels", "z_channels"),
    "codebook_size": ("num_embeddings", "codebook_size"),
    "d_code": ("embed_dim",),
}


def check_stated(config: VqganConfig, stated: Mapping[str, Any], source: str) -> None:
    """FormatError where a config.json beside the weights says otherwise than their shapes do.

    That of a larger model, which doesn't describe its codec, says nothing."""
    stated = stated.get("vq_config") or stated
    if not isinstance(stated, Mapping) or not {"channel_multiplier", "ch_mult"} & stated.keys():
        return
    fields = config.model_dump(mode="json")
    fields |= fields["quantizer"]
    for name, theirs in _STATED.items():
        for key in theirs:
            if key in stated and stated[key] != fields[name]:
                raise FormatError(
                    f"{source}: config.json says {key} = {stated[key]}, the weights have "
                    f"{fields[name]}; one of the two is of another checkpoint"
                )
    if stated.get("double_latent") or stated.get("double_z"):
        raise FormatError(f"{source}: a doubled latent is of a continuous autoencoder, not codes")
    if stated.get("num_attention_heads", 1) != 1:
        raise FormatError(f"{source}: attention of several heads is not of this codec's kind")


def filled_net(
    net_class: Callable[[Any], N],
    config: VqganConfig,
    state: Mapping[str, Tensor],
    keys: KeyMap,
    report: Report,
) -> N:
    """The net of `config` with every tensor from `state`; FormatError where one doesn't fit."""
    try:
        with torch.device("meta"):  # no memory, whatever sizes a damaged file states
            net = net_class(config)
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{report.source}: no net has its sizes ({reason})") from error
    tensors = convert_state(state, net.state_dict(), keys, report)
    net.load_state_dict(tensors, assign=True)
    channels_last(net)
    return net.eval()


def as_config(config_class: type[C], fields: Mapping[str, Any], source: str) -> C:
    """The config of inferred fields; FormatError where a damaged file has senseless ones."""
    try:
        return config_class.model_validate(dict(fields))
    except ValueError as error:
        raise FormatError(f"{source}: its sizes make no codec ({_first(error)})") from error


def _first(error: ValueError) -> str:
    return " ".join(str(error).split())[:120]
