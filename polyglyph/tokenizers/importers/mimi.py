"""Mimi (2410.00037): transformers' checkpoint and its classes in memory, and Kyutai's own files.

Keys: tokenizers reference 3.8. A codebook is its running sum over its usage, folded here. Kyutai's
attention stores q, k and v as one matrix whose rows pair neighbouring numbers for the rotary
positions, transformers' and ours the two halves of a head; the rows are re-ordered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polyglyph.checkpoint import shown
from polyglyph.errors import FormatError
from polyglyph.tokenizers.importers.sound import (
    Rename,
    as_config,
    count,
    filled,
    seanet_keys,
    shape_of,
    stack_of_pairs,
)
from polyglyph.tokenizers.importers.weights import QKV, KeyMap, Report, Source
from polyglyph.tokenizers.mimi import Mimi, MimiConfig, MimiTokenizer

# Ours → transformers' name in config.json.
_NAMES = {
    "sample_rate": "sampling_rate",
    "channels": "audio_channels",
    "codebook_size": "codebook_size",
    "d_code": "codebook_dim",
    "n_semantic": "num_semantic_quantizers",
    "width": "num_filters",
    "ratios": "upsampling_ratios",
    "n_units": "num_residual_layers",
    "kernel": "kernel_size",
    "last_kernel": "last_kernel_size",
    "unit_kernel": "residual_kernel_size",
    "dilation_growth": "dilation_growth_rate",
    "compress": "compress",
    "conv_skip": "use_conv_shortcut",
    "d_latent": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "window": "sliding_window",
    "eps": "norm_eps",
}
_IGNORED = ((r"quantizer\..*\.(?:_?initialized)$", "a flag of the codebook's training"),)
_KYUTAI: tuple[Rename, ...] = (  # Kyutai's words to transformers'
    (r"^(encoder|decoder)_transformer\.transformer\.", r"\1_transformer."),
    (r"\.conv\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.convtr\.", ".conv."),
    (r"\.self_attn\.in_proj_weight$", ".self_attn.in_proj.weight"),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.(?:gating\.)?linear1\.", ".mlp.fc1."),
    (r"\.(?:gating\.)?linear2\.", ".mlp.fc2."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"^quantizer\.rvq_first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"^quantizer\.rvq_rest\.", "quantizer.acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.(\d+)\._codebook\.", r".layers.\1.codebook."),
    (r"\.embedding_sum$", ".embed_sum"),
)
_HALVES: tuple[Rename, ...] = (  # transformers' classes in memory to its checkpoint's layout
    (r"^(encoder|decoder)\.\1_seanet\.", r"\1."),
    (r"^(encoder|decoder)\.(\1_transformer|downsample|upsample)\.", r"\2."),
)
_BLOCKS = r"^((?:en|de)coder_transformer)\.layers\.(\d+)\."
_OURS: tuple[Rename, ...] = (
    (_BLOCKS + r"self_attn\.(q|k|v)_proj\.weight$", r"\1.blocks.\2.qkv.weight@\3"),
    (_BLOCKS + r"self_attn\.in_proj\.weight$", r"\1.blocks.\2.qkv.weight"),
    (_BLOCKS + r"self_attn\.o_proj\.", r"\1.blocks.\2.out."),
    (_BLOCKS + r"mlp\.fc1\.", r"\1.blocks.\2.up."),
    (_BLOCKS + r"mlp\.fc2\.", r"\1.blocks.\2.down."),
    (_BLOCKS + r"input_layernorm\.", r"\1.blocks.\2.norm_attention."),
    (_BLOCKS + r"post_attention_layernorm\.", r"\1.blocks.\2.norm_mlp."),
    (_BLOCKS + r"self_attn_layer_scale\.scale$", r"\1.blocks.\2.scale_attention"),
    (_BLOCKS + r"mlp_layer_scale\.scale$", r"\1.blocks.\2.scale_mlp"),
    (r"^(downsample|upsample)\.conv\.weight$", r"\1.weight"),
    (r"^quantizer\.(semantic|acoustic)_residual_vector_quantizer\.(in|out)put_proj\.weight$",
     r"quantizer.\1_\2.weight"),
    (r"^quantizer\.(semantic|acoustic)_residual_vector_quantizer\.layers\.(\d+)\.codebook\."
     r"(embed_sum|cluster_usage)$", r"quantizer.\1.codebook@\2.\3"),
)  # fmt: skip


def load(source: Source) -> tuple[MimiTokenizer, Report]:
    """The codec of any layout; FormatError where a tensor is missing or unexplained."""
    report = Report("mimi", shown(source.path), ignored=dict(source.left))
    is_kyutai = any(".in_proj_weight" in key for key in source.state)
    first = KeyMap([*_HALVES, *_KYUTAI])
    state = {first.rename(key): tensor for key, tensor in source.state.items()}
    config = as_config(MimiConfig, _sizes(source, state, report), report.source)
    seanet = seanet_keys(config.shape())
    n = max(config.n_semantic, config.n_codebooks - config.n_semantic)
    pairs = [
        stack_of_pairs(k, ("embed_sum", "cluster_usage"), _codebook)
        for k in {config.n_semantic, n, config.n_codebooks - config.n_semantic}
    ]
    converts: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        *seanet.converts,
        (r"^quantizer\..*_(in|out)\.weight$", lambda w: w.squeeze(2)),
        (r"^downsample\.weight$", lambda w: w.unsqueeze(2)),
        (r"^upsample\.weight$", lambda w: _depthwise(w, config.latent_stride)),
    ]
    if is_kyutai:
        converts.append((r"\.qkv\.weight$", lambda w: _halves(w, config.n_heads)))
        report.notes.append("Kyutai's layout: attention rows re-ordered for rotary halves")
    keys = replace(
        seanet,
        renames=[*_HALVES, *_KYUTAI, *seanet.renames, *_OURS],
        ignored=_IGNORED,
        merges=[*seanet.merges, QKV, *pairs],
        converts=converts,
    )
    return filled(Mimi, config, source, keys, report), report


def _codebook(total: Tensor, usage: Tensor) -> Tensor:
    return total.float() / usage.float().clamp(min=1e-5).reshape(-1, 1)


def _depthwise(weight: Tensor, stride: int) -> Tensor:
    """(D, 1, 2·stride) as (2, stride, D)."""
    return weight.reshape(weight.shape[0], 2 * stride).t().reshape(2, stride, -1)


def _halves(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of q and k, which pair neighbours, so that they pair the halves of a head."""
    q, k, v = weight.chunk(3)
    d = weight.shape[1]

    def ordered(rows: Tensor) -> Tensor:
        return rows.view(n_heads, -1, 2, d).transpose(1, 2).reshape(-1, d)

    return torch.cat([ordered(q), ordered(k), v])


def _sizes(source: Source, state: dict[str, Tensor], report: Report) -> dict[str, Any]:
    """What config.json says, the number of codebooks off the keys; Mimi's own sizes without one."""
    config = source.config if source.config.get("model_type", "mimi") == "mimi" else {}
    fields = {ours: config[theirs] for ours, theirs in _NAMES.items()
              if config.get(theirs) is not None}  # fmt: skip
    if not fields:
        report.notes.append("no config.json: Mimi's published sizes")
    name = "quantizer.{}_residual_vector_quantizer.layers."
    counts = [count(state, re.escape(name.format(group)) + r"(\d+)\.", report.source)
              for group in ("semantic", "acoustic")]  # fmt: skip
    fields |= {"n_semantic": counts[0], "n_codebooks": sum(counts)}
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta")) if isinstance(rope, dict) else None
    if theta is not None:
        fields["theta"] = theta
    fields["latent_stride"] = shape_of(state, "downsample.conv.weight", 3, report.source)[2] // 2
    wrong = {
        "use_causal_conv": True, "pad_mode": "constant", "trim_right_ratio": 1.0,
        "attention_bias": False, "hidden_act": "gelu",
    }  # fmt: skip
    for key, due in wrong.items():
        if config.get(key, due) != due:
            raise FormatError(
                f"{report.source}: config.json says {key} = {config[key]!r}; Mimi has {due!r}"
            )
    heads = config.get("num_key_value_heads"), config.get("num_attention_heads")
    if heads[0] != heads[1]:
        raise FormatError(f"{report.source}: fewer key than query heads are no Mimi's")
    return fields


__all__ = ["load"]
