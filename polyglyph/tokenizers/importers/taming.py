"""taming's VQGAN (2012.09841), with VQ or Gumbel codes, and latent diffusion's first stages.

Layout: tokenizers reference 3.1. `decoder.up.0` is the finest level. The Gumbel variant's codes are
the largest score without the noise that its own code adds in evaluation too. A pruned table
(`quantize.used`) gives codes of the pruned table.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from polyglyph.checkpoint import shown
from polyglyph.errors import FormatError
from polyglyph.tokenizers.image import ImageTokenizer
from polyglyph.tokenizers.importers.trunk import (
    CODEBOOK,
    as_config,
    check_stated,
    codebook_shape,
    filled_net,
    infer_trunk,
    trunk_keys,
)
from polyglyph.tokenizers.importers.weights import KeyMap, Report, Source
from polyglyph.tokenizers.neural import codec_fingerprint, inference_state
from polyglyph.tokenizers.vqgan import Vqgan, VqganConfig

_EMA = (r"model_ema\.", "EMA twin; the weights that taming and LDM evaluate are the others")


def load(source: Source) -> tuple[ImageTokenizer, Report]:
    """The codec, decoder and all. FormatError where a tensor is missing or unexplained."""
    return load_taming(source, "taming")


def load_taming(
    source: Source,
    kind: str,
    *,
    lookup: str = "euclidean",
    needs_decoder: bool = True,
    extra: KeyMap = KeyMap(),
) -> tuple[ImageTokenizer, Report]:
    """A checkpoint whose keys are taming's after `extra.renames`.

    lookup: how a plain table is searched. needs_decoder: refuse an encoder without its half.
    """
    report = Report(kind, shown(source.path), ignored=dict(source.left))
    state = {extra.rename(key): tensor for key, tensor in source.state.items()}
    fields = infer_trunk(state, report.source)
    if fields["decoder"] == "none" and needs_decoder:
        raise FormatError(f"{report.source} holds no decoder; a {kind} codec has one")
    gumbel = "quantize.proj.weight" in state
    table = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    size, d_code = codebook_shape(state, table, report.source)
    pruned = state.get("quantize.used")
    if pruned is not None:
        size = pruned.numel()
        report.notes.append(f"codes are those of the pruned table: {size} of {len(state[table])}")
    fields["quantizer"] = {
        "kind": "logits" if gumbel else lookup,
        "codebook_size": size,
        "d_code": d_code,
    }
    config = as_config(VqganConfig, fields, report.source)
    check_stated(config, source.config, report.source)
    keys = _keys(config, extra, pruned)
    net = filled_net(Vqgan, config, source.state, keys, report)
    mark = codec_fingerprint(inference_state(net), config)
    return ImageTokenizer(net, mark), report  # type: ignore[arg-type]


def _keys(config: VqganConfig, extra: KeyMap, pruned: Tensor | None) -> KeyMap:
    keys = trunk_keys(config)
    gumbel = (
        (r"^quantize\.embed\.weight$", CODEBOOK),
        (r"^quantize\.proj\.", "quantizer.score."),
    )
    ignored = [*extra.ignored, *keys.ignored, _EMA]
    converts = [*extra.converts, (r"^quantizer\.score\.weight$", lambda w: w.flatten(1))]
    if pruned is not None:
        rows = pruned.long().flatten()
        ignored.append((r"quantize\.used$", "the pruned table's rows, applied to the codebook"))
        converts.append((rf"^{CODEBOOK}$|^quantizer\.score\.", lambda t: t[rows]))
    if config.decoder == "none":
        ignored.append((r"post_quant_conv\.", "of the decoder's half, which is not there"))
    return replace(
        keys,
        renames=[*extra.renames, *keys.renames, *gumbel],
        ignored=ignored,
        converts=[*converts, *keys.converts],
    )
