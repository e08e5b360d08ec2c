"""What the trained codecs share: weights on disk and the result of one training forward.

A saved codec is `codec.json` (format, modality, class of config, fingerprint) beside
`weights.safetensors`; it holds plain tensors of ours and no library's keys. Weights may be stored
in bf16; the codec runs from the stored values in fp32, so what was measured is what was shipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from polyglyph.checkpoint import fingerprint, load_tensors, save_tensors
from polyglyph.config import Config, build
from polyglyph.errors import ConfigError, FormatError, unknown
from polyglyph.lookup import resolve
from polyglyph.tokenizers import ARCHITECTURES
from polyglyph.tokenizers.base import read_codec_json, write_codec_json

N = TypeVar("N", bound=nn.Module)

# Quantizers whose first codebooks alone give a coarser latent.
RESIDUAL_KINDS = ("rvq", "grouped", "rfsq")


@dataclass
class CodecStep:
    """One training forward of a codec: summands (already weighted), output and codes."""

    losses: dict[str, Tensor]
    reconstruction: Tensor
    codes: Tensor  # (..., Q)
    target: Tensor | None = None  # what the reconstruction is of, if that isn't the whole batch
    latents: Tensor | None = None  # (B, N, D) before quantization
    quantized: Tensor | None = None  # after it, as the decoder is given it


def inference_state(net: nn.Module) -> dict[str, Tensor]:
    """The tensors that encoding and decoding need: no learner of a quantizer."""
    return {k: v for k, v in net.state_dict().items() if ".learner." not in f".{k}"}


def codec_fingerprint(tensors: Mapping[str, Tensor], config: Config) -> str:
    return fingerprint(tensors, config.model_dump(mode="json"))


def save_codec(
    folder: str | Path,
    net: nn.Module,
    config: Config,
    *,
    modality: str,
    span: str,
    dtype: torch.dtype | None = None,
) -> str:
    """Writes codec.json and weights.safetensors into `folder`; returns the fingerprint.

    dtype: what floating-point tensors are stored as; None keeps them as they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: (v.to(dtype) if dtype and v.is_floating_point() else v).contiguous().cpu()
        for k, v in inference_state(net).items()
    }
    mark = codec_fingerprint(tensors, config)
    save_tensors(folder / "weights.safetensors", tensors)
    write_codec_json(folder, modality, span, config, mark)
    return mark


def read_codec(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """codec.json and the stored tensors, checked against the fingerprint in the former."""
    data = read_codec_json(folder)
    if not isinstance(data.get("config"), dict):
        raise FormatError(f"codec {folder}: codec.json holds no config; get a fresh copy")
    tensors = load_tensors(Path(folder) / "weights.safetensors")
    found = fingerprint(tensors, data["config"])
    if found != data.get("fingerprint"):
        raise FormatError(
            f"codec {folder}: weights have fingerprint {found[:12]}, codec.json says "
            f"{str(data.get('fingerprint'))[:12]}; the folder is damaged, get a fresh copy"
        )
    return data, tensors


def make_net(net_class: type[N], config: Config, source: str) -> N:
    """A `net_class` of `config`; ConfigError where no net has these sizes."""
    try:
        return net_class(config)
    except (RuntimeError, ValueError, AssertionError, MemoryError, ZeroDivisionError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"{source}: no {net_class.__name__} has these sizes "
            f"({reason[0] if reason else type(error).__name__}); get a fresh copy"
        ) from error


def load_net(
    net_class: type[N], config_class: type[Config], folder: str | Path, prepare: Any = None
) -> tuple[N, str]:
    """The saved net, ready to encode and decode, and its fingerprint.

    It is a `net_class`, unless the config names another `architecture` (a published codec's).

    prepare: what is done to the untrained net before the weights come. FormatError or ConfigError
    for a folder that is damaged or of another codec."""
    data, tensors = read_codec(folder)
    source = f"codec {folder}"
    if "architecture" in data["config"]:
        name = str(data["config"]["architecture"])
        if name not in ARCHITECTURES:
            raise unknown("architecture", name, ARCHITECTURES, FormatError)
        net_class = resolve(ARCHITECTURES[name])
        config_class = net_class.config_class  # type: ignore[attr-defined]
    net = make_net(net_class, build(config_class, data["config"], source), source)
    if prepare is not None:
        prepare(net)
    load_weights(net, tensors, folder)
    return net, data["fingerprint"]


def load_weights(net: nn.Module, tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """Strict load into an inference net, in fp32; FormatError naming the first mismatch."""
    expected = inference_state(net)
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    wrong = [k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape]
    if missing or extra or wrong:
        first = sorted([*missing, *extra, *wrong])[0]
        raise FormatError(
            f"codec {folder}: weights don't fit their config: {len(missing)} missing, "
            f"{len(extra)} unknown, {len(wrong)} of other shape (first: {first})"
        )
    net.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, strict=False
    )
    net.eval()
