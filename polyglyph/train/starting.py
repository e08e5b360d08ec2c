"""What a run starts from: a fresh net, the trunk or the whole of a trained one, and what of it
stays frozen.

Knows the sections of a run and the table of tokenizers; nothing of steps, losses or files of runs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyglyph.assembly import load_model
from polyglyph.checkpoint import find_checkpoint, read_manifest
from polyglyph.config import build
from polyglyph.errors import ConfigError
from polyglyph.lookup import find
from polyglyph.sequence.grammar import Grammar
from polyglyph.tokenizers import TABLE, load_tokenizer
from polyglyph.tokenizers.base import read_codec_json
from polyglyph.tokenizers.neural import inference_state

# Parts of a codec's net that only decode; with codec.freeze = "encoder" nothing else trains. The
# projection behind the codebooks is one of them; without it the decoder's input would need no
# gradient, on which the backward of a channels-last GroupNorm crashes (torch 2.13, CPU).
DECODERS = ("decoder.", "temporal_decoder.", "quantizer.project_out.")
FREEZE = "encoder"


def make_net(config: Any) -> tuple[nn.Module, type]:
    """The net of a CodecRun before its first step, and its tokenizer class.

    ConfigError on wrong sections. `codec.init` names a trained codec to start from; `codec.freeze =
    "encoder"` keeps its encoder and codebooks as they are, so that its codes stay what they were.
    """
    sections = dict(config.codec)
    modality, freeze = sections.get("modality"), sections.pop("freeze", None)
    if not isinstance(modality, str):
        raise ConfigError("codec.modality is missing; name the medium the codec is for")
    tokenizer_class = find(TABLE, modality, "modality")
    if not hasattr(tokenizer_class, "net_class"):
        raise ConfigError(f"{modality} has no codec that trains on media; see run.kind")
    sections |= {"quantizer": config.quantizer, "loss": config.loss}
    codec = build(tokenizer_class.config_class, sections, "[codec], [quantizer], [loss]")
    torch.manual_seed(config.run.seed)
    net = tokenizer_class.net_class(codec)
    if freeze not in (None, FREEZE):
        raise ConfigError(f'codec.freeze is "{FREEZE}" or left out; got {freeze!r}')
    init = getattr(codec, "init", None)
    if freeze and not init:
        raise ConfigError("codec.freeze needs codec.init, the codec whose codes stay as they are")
    if init:
        _start_from(net, init, modality, whole=bool(freeze))
    if freeze:
        freeze_encoder(net)
    else:
        net.quantizer.attach_learner()
    return net, tokenizer_class


def start_model(model: Any, grammar: Grammar, path: str) -> None:
    """The weights of another run's or checkpoint's model (`model.init`), in place.

    ConfigError unless it has the same vocabulary, codecs and shape: its rows mean those ids."""
    folder = find_checkpoint(path)
    manifest = read_manifest(folder)
    marks = {span: entry["fingerprint"] for span, entry in manifest["tokenizers"].items()}
    if manifest["kind"] != "model":
        raise ConfigError(f"model.init: {path} is a {manifest['kind']}, expected a model")
    if manifest["vocabulary_sha256"] != grammar.vocabulary.sha256 or marks != grammar.fingerprints:
        raise ConfigError(
            f"model.init: the ids of {path} stand for other codes; take its codecs "
            f"(sequence.checkpoint = {path!r}) for this run and its shards"
        )
    trained = load_model(folder, manifest)
    ours, theirs = model.config.model_dump(), trained.config.model_dump()
    for name in ours:
        if ours[name] != theirs[name]:
            raise ConfigError(f"model.{name} is {ours[name]}, that of model.init {theirs[name]}")
    model.load_state_dict(trained.state_dict())


def _start_from(net: nn.Module, path: str, modality: str, whole: bool) -> None:
    """`whole`: from a codec of the same modality only, not from another's trunk."""
    foreign = None if whole else getattr(net, "starts_from", None)
    trained, of = _trained(path, [modality, *([foreign] if foreign else [])])
    begin = getattr(net, "init_from", None)
    if begin is not None and of == getattr(net, "starts_from", modality):
        begin(trained)
    else:
        take_over(net, trained)


def _trained(path: str, modalities: list[str]) -> tuple[nn.Module, str]:
    """The net of a codec in a checkpoint, run or codec folder, of the first of `modalities` that
    is there, and that modality."""
    folders = [Path(path)]
    if not (folders[0] / "codec.json").is_file():
        inside = sorted((find_checkpoint(path) / "tokenizers").glob("*/codec.json"))
        folders = [file.parent for file in inside]
    of = {read_codec_json(folder)["modality"]: folder for folder in reversed(folders)}
    for modality in modalities:
        if modality in of:
            tokenizer: Any = load_tokenizer(of[modality])
            return tokenizer.net, modality
    raise ConfigError(
        f"codec.init: {path} holds no {' or '.join(modalities)} codec; name such a codec's folder "
        "or run"
    )


def take_over(net: Any, trained: Any) -> None:
    """All weights and codebooks of a trained codec; ConfigError where the two differ in shape."""
    ours, theirs = inference_state(net), inference_state(trained)
    wrong = sorted(
        {k for k in ours.keys() & theirs.keys() if ours[k].shape != theirs[k].shape}
        | (ours.keys() ^ theirs.keys())
    )
    kinds = [n.config.quantizer.kind for n in (net, trained)]
    if wrong or kinds[0] != kinds[1]:
        what = f"{len(wrong)} weights (first: {wrong[0]})" if wrong else "the kind of quantizer"
        raise ConfigError(
            f"codec.init: {what} differ between that codec and this one; its weights fit only a "
            "codec of the same shape"
        )
    net.load_state_dict(theirs, strict=False)
    net.quantizer.attach_learner(warm=True)


def freeze_encoder(net: Any) -> None:
    """Leaves only the decoder to train: the codes of every medium stay what they are."""
    net.quantizer.learner = None
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(DECODERS))
    assert any(p.requires_grad for p in net.parameters())


def frozen_mark(net: nn.Module) -> str:
    """sha256 over everything of `net` that decides about codes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(inference_state(net).items()):
        if not name.startswith(DECODERS):
            digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
