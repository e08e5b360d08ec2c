"""The distillation of a speech model into the first codebook, on a HuBERT of a few weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from polyglyph.errors import ConfigError, FormatError, InputError
from polyglyph.tokenizers.quantize import Quantizer, QuantizerConfig
from polyglyph.tokenizers.semantic import Distillation, Teacher, first_codebook

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random HuBERT of two layers, frames of 20 samples."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(10, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    path = tmp_path_factory.mktemp("hubert")
    HubertModel(config).save_pretrained(path)
    return path


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_teacher_hears_what_transformers_says(folder: Path) -> None:
    from transformers import HubertModel

    reference = HubertModel.from_pretrained(folder).eval()
    x = noise(2, 2, 400)
    mono = x.mean(1)
    normed = (mono - mono.mean(-1, keepdim=True)) / mono.std(-1, keepdim=True, correction=0)
    # Windows of 40 samples every 20: ten zeros on both sides centre them.
    with torch.no_grad():
        states = reference(F.pad(normed, (10, 10)), output_hidden_states=True).hidden_states
    assert Teacher(folder, RATE)(x).shape == (2, 20, 12)
    for layer in (0, 1, 2):
        torch.testing.assert_close(
            Teacher(folder, RATE, layer)(x), states[layer], rtol=1e-3, atol=1e-4
        )
    mean = torch.stack(states).mean(0)
    torch.testing.assert_close(Teacher(folder, RATE)(x), mean, rtol=1e-3, atol=1e-4)


def test_sound_of_another_rate_is_brought_to_the_teachers(folder: Path) -> None:
    from polyglyph.media import resample

    x = noise(1, 1, 600)
    low = torch.from_numpy(resample(x[0].numpy(), 24_000, RATE))[None]
    torch.testing.assert_close(Teacher(folder, 24_000)(x), Teacher(folder, RATE)(low))


def test_the_loss_is_the_papers(folder: Path) -> None:
    """Equation 2: −log σ(cos) of every feature over time, mean over the features."""
    teacher = Teacher(folder, RATE)
    distillation = Distillation(teacher, 5)
    sound, first = noise(2, 1, 400), noise(2, 20, 5, seed=1)
    due = teacher(sound).numpy().astype(np.float64)  # (B, 20, 12)
    heard = distillation.project(first).detach().numpy().astype(np.float64)
    cosine = (heard * due).sum(1) / np.linalg.norm(heard, axis=1) / np.linalg.norm(due, axis=1)
    value = float(distillation(sound, first).detach())
    assert value == pytest.approx(-np.log(1 / (1 + np.exp(-cosine))).mean(), rel=1e-4)
    assert float(distillation(sound, first[:, :7]).detach()) > 0, "any frame rate"
    assert set(distillation.state_dict()) == {"project.weight", "project.bias"}


def test_the_first_codebook_alone_is_what_decoding_it_gives_and_passes_the_gradient() -> None:
    torch.manual_seed(0)
    config = QuantizerConfig(kind="rvq", codebook_size=8, n_codebooks=3, d_code=4)
    quantizer = Quantizer(config, 6)
    quantizer.attach_learner()
    z = noise(2, 9, 6)
    quantizer.train()
    codes = quantizer(z).codes
    z = z.clone().requires_grad_()
    first = first_codebook(quantizer, z, codes)
    quantizer.sync()
    torch.testing.assert_close(first.detach(), quantizer.decode(codes[..., :1]))
    first.sum().backward()
    due = quantizer.project_in.weight.T @ quantizer.project_out.weight.sum(0)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, due.detach().expand(2, 9, 6))


def test_a_few_steps_bring_the_first_codes_nearer_to_the_teacher(folder: Path) -> None:
    torch.manual_seed(0)
    distillation = Distillation(Teacher(folder, RATE), 6)
    sound, first = noise(2, 1, 400), noise(2, 20, 6, seed=1).requires_grad_()
    optimizer = torch.optim.Adam([first, *distillation.parameters()], lr=0.05)
    losses = []
    for _ in range(15):
        loss = distillation(sound, first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert not [p for p in distillation._teacher[0].parameters() if p.requires_grad]


def test_what_is_no_hubert_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json; name the folder of a HuBERT"):
        Teacher(tmp_path, RATE)
    with pytest.raises(ConfigError, match="teacher_layer is 0 to 2 for this one, got 3"):
        Teacher(folder, RATE, 3)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    lost = {k: v for k, v in state.items() if "layers.1." not in k}
    save_file(lost, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=r"lacks \d+ of a HuBERT's weights"):
        Teacher(tmp_path, RATE)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FormatError, match="is no HuBERT"):
        Teacher(tmp_path, RATE)


def test_the_preprocessors_settings_are_heeded(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    said = {"sampling_rate": 8000, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    teacher = Teacher(tmp_path, 8000)
    assert (teacher.own_rate, teacher.normalises) == (8000, False)
    x = noise(1, 1, 400)
    loud, quiet = teacher(4 * x), teacher(x)
    assert not torch.allclose(loud, quiet, atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read as JSON"):
        Teacher(tmp_path, 8000)
