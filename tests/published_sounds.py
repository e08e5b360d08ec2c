"""Small random audio codecs of transformers', and codes compared with ties set apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyglyph.media import Audio
from polyglyph.tokenizers.base import CodeGrid

RATE = 2400  # Hz, of all the small codecs
TIE = 1e-6  # relative difference of two fp64 distances that is rounding, not choice


def shaken(model: Any, seed: int = 0, gain: float = 1.0) -> Any:
    """The model in eval mode with biases, norms, scales and codebooks that matter."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for key, tensor in model.state_dict().items():
        if key.endswith(("codebook.embed", "embed_sum", "codebook.weight")):
            tensor.copy_(noise(tensor) * 0.5)
        elif key.endswith("cluster_usage"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif key.endswith("conv.bias"):
            tensor.copy_(noise(tensor) * 0.02)
        elif key.endswith(("bias", "scale", "alpha")) or "norm.weight" in key:
            tensor.add_(noise(tensor).abs() * 0.1)
        elif key.endswith(("weight.original0", "weight_g")):  # lengths of weight norm
            low = 0.8 if key.startswith("decoder") else 1.4
            tensor.copy_(low + 0.3 * torch.rand(tensor.shape, generator=generator))
        elif key.endswith(".weight") and tensor.ndim == 3:
            tensor.copy_(noise(tensor) * gain / tensor[0].numel() ** 0.5)
    return model.eval()


def sound(n_samples: int, n_channels: int = 1, seed: int = 1) -> Audio:
    generator = torch.Generator().manual_seed(seed)
    noise = 0.3 * torch.randn(n_channels, n_samples, generator=generator)
    return Audio(noise.numpy(), RATE)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def wrong_frames(codes: np.ndarray, due: np.ndarray, gap: Callable[..., Tensor]) -> int:
    """Frames whose first difference is no tie; codes (Q, F).

    gap(frame, q, due): relative fp64 difference of the two best distances there."""
    assert codes.shape == due.shape, (codes.shape, due.shape)
    wrong = 0
    for frame in np.flatnonzero((codes != due).any(axis=0)):
        q = int(np.flatnonzero(codes[:, frame] != due[:, frame])[0])
        wrong += bool(gap(int(frame), q, due) > TIE)
    return wrong


def residual_gap(latents: Tensor, tables: Tensor) -> Callable[..., Tensor]:
    """For `wrong_frames`: latents (F, D) and Euclidean tables (Q, K, D)."""

    def gap(frame: int, q: int, due: np.ndarray) -> Tensor:
        residual = latents[frame].double()
        for i in range(q):
            residual = residual - tables[i][due[i, frame]].double()
        best = (residual - tables[q].double()).square().sum(-1).topk(2, largest=False).values
        return (best[1] - best[0]) / best[0]

    return gap


def same_sound(found: Audio, expected: Any, n_samples: int) -> None:
    """Within 1e-4 of (C, S) samples, cut and clipped as ours are."""
    due = np.clip(np.asarray(expected)[:, :n_samples], -1, 1)
    ours = found.samples[:, : due.shape[1]]
    assert found.samples.shape[1] == n_samples and np.abs(ours - due).max() <= 1e-4


def joined_stream(tokenizer: Any, whole: Audio, sizes: tuple[int, ...]) -> CodeGrid:
    """The codes of a sound that comes in chunks of these sizes, in turn."""
    chunks, start, i = [], 0, 0
    while start < whole.samples.shape[1]:
        end = start + sizes[i % len(sizes)]
        chunks.append(Audio(whole.samples[:, start:end], whole.sample_rate))
        start, i = end, i + 1
    return tokenizer.join(list(tokenizer.encode_stream(chunks)))


def cut(grid: CodeGrid, tokenizer: Any, sizes: tuple[int, ...]) -> list[CodeGrid]:
    """A grid in pieces of these numbers of frames, in turn, each with its own length."""
    from dataclasses import replace

    pieces, start, i = [], 0, 0
    hop, left = tokenizer.stride[0], grid.meta.n_samples  # type: ignore[attr-defined]
    while start < grid.shape[0]:
        codes = grid.codes[:, start : start + sizes[i % len(sizes)]]
        n = min(left, codes.shape[1] * hop)
        meta = replace(grid.meta, n_samples=n)  # type: ignore[type-var]
        pieces.append(CodeGrid(grid.modality, codes, meta, grid.fingerprint))
        start, i, left = start + codes.shape[1], i + 1, left - n
    return pieces
