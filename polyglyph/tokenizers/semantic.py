"""A semantic first codebook: what a speech model hears, distilled into a residual codec's first
codes (SpeechTokenizer, 2308.16692, section 3.2).

The quantized output of codebook 1 is projected to the width of a HuBERT's features; every feature
dimension is to agree with the teacher's over time. The teacher is a folder that the user names; it
and the projection are of training only and never enter a saved codec. Knows nothing of training
loops.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.checkpoint import shown
from polyglyph.errors import ConfigError, FormatError, InputError
from polyglyph.media import resample
from polyglyph.tokenizers.quantize import Quantizer

TEACHER_RATE = 16_000  # Hz, unless the teacher's preprocessor_config.json says otherwise


class Teacher(nn.Module):
    """A frozen HuBERT: sound (B, C, S) at `sample_rate` Hz → features (B, F', d_teacher).

    layer: index of the hidden states, 0 before the first layer; None: the mean of all."""

    def __init__(self, folder: str | Path, sample_rate: int, layer: int | None = None) -> None:
        super().__init__()
        self.sample_rate, self.layer = sample_rate, layer
        self.net = _load_hubert(Path(folder))
        n_layers = int(self.net.config.num_hidden_layers)
        if layer is not None and layer > n_layers:
            raise ConfigError(f"loss.teacher_layer is 0 to {n_layers} for this one, got {layer}")
        self.width = int(self.net.config.hidden_size)
        said = _preprocessor(Path(folder))
        self.own_rate = int(said.get("sampling_rate", TEACHER_RATE))
        self.normalises = bool(said.get("do_normalize", True))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, sound: Tensor) -> Tensor:
        x = sound.float().mean(1)  # (B, S)
        if self.sample_rate != self.own_rate:
            rows = resample(x.cpu().numpy().astype(np.float32), self.sample_rate, self.own_rate)
            x = torch.from_numpy(rows).to(sound.device)
        if self.normalises:
            spread = x.var(-1, keepdim=True, unbiased=False)
            x = (x - x.mean(-1, keepdim=True)) / (spread + 1e-7).sqrt()
        # Half a window on both sides, so that feature i is centred where code i is.
        config = self.net.config
        window, step = _reach(config.conv_kernel, config.conv_stride)
        x = F.pad(x, ((window - step) // 2, window - step - (window - step) // 2))
        with torch.autocast(sound.device.type, enabled=False):
            states = self.net(x, output_hidden_states=True).hidden_states
        return states[self.layer] if self.layer is not None else torch.stack(states).mean(0)


class Distillation(nn.Module):
    """forward(sound, features of codebook 1 (B, F, D)) → () loss; trains its projection.

    −log σ(cosine over time between a projected and a teacher's feature), mean over features."""

    def __init__(self, teacher: Teacher, d_latent: int) -> None:
        super().__init__()
        # Behind a tuple: its weights are no part of what is trained and saved.
        self._teacher = (teacher,)
        self.project = nn.Linear(d_latent, teacher.width)

    def to(self, *args: Any, **kwargs: Any) -> Distillation:
        self._teacher[0].to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def forward(self, sound: Tensor, first: Tensor) -> Tensor:
        due = self._teacher[0](sound).transpose(1, 2)  # (B, d_teacher, F')
        due = F.interpolate(due, size=first.shape[1], mode="linear")
        with torch.autocast(sound.device.type, enabled=False):
            heard = self.project(first.float()).transpose(1, 2)  # (B, d_teacher, F)
            return -F.logsigmoid(F.cosine_similarity(heard, due, dim=-1)).mean()


def first_codebook(quantizer: Quantizer, latents: Tensor, codes: Tensor) -> Tensor:
    """The quantized output (B, F, D) of codebook 1 alone, straight through to the latents.

    latents (B, F, D) and codes (B, F, Q) are those of one training forward."""
    scheme = quantizer.scheme
    with torch.autocast(latents.device.type, enabled=False):
        x = scheme.normed(quantizer.project_in(latents.float()))
        learned = None if quantizer.learner is None else scheme.learned(quantizer.learner)
        book = quantizer.codebook if learned is None else scheme.normed(learned.float())
        chosen = scheme.lookup(codes[..., :1], book.detach())
        return quantizer.project_out(x + (chosen - x).detach())


def _reach(kernels: list[int], strides: list[int]) -> tuple[int, int]:
    """(window, step) in samples of a stack of convolutions."""
    window, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        window += (kernel - 1) * step
        step *= stride
    return window, step


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{shown(path)} cannot be read as JSON: {error}") from error
    return data if isinstance(data, dict) else {}


def _load_hubert(folder: Path) -> Any:
    """A transformers HubertModel from a local folder of safetensors; refuses missing weights."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"loss.teacher {shown(folder)} holds no {name}; name the folder of a HuBERT in "
                "safetensors"
            )
    from safetensors import SafetensorError
    from transformers import HubertModel

    try:
        net, info = HubertModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(f"loss.teacher {shown(folder)} is no HuBERT: {reason}") from error
    missing = sorted(key for key in info["missing_keys"] if "masked_spec_embed" not in key)
    if missing:
        raise FormatError(
            f"loss.teacher {shown(folder)} lacks {len(missing)} of a HuBERT's weights (first: "
            f"{missing[0]}); random ones would teach nothing"
        )
    return net
