"""Tiny random codecs and models, written as real checkpoints; tests of upper floors use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyglyph.assembly import Parts, build_tokens, save_model_checkpoint
from polyglyph.checkpoint import write_manifest
from polyglyph.model.transformer import ModelConfig, Transformer
from polyglyph.tokenizers.audio import AudioCodec, AudioCodecConfig, AudioTokenizer
from polyglyph.tokenizers.base import Tokenizer, read_codec_json
from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig, ImageTokenizer
from polyglyph.tokenizers.quantize import QuantizerConfig
from polyglyph.tokenizers.text import TextTokenizer
from polyglyph.tokenizers.video import VideoCodec, VideoCodecConfig, VideoTokenizer

SEQUENCE = {"prompt_size": {"image": [16, 24], "video": [8, 16, 16], "audio_s": 0.1}}
VISUAL: dict[str, Any] = {"base": 8, "multipliers": (1, 2, 2), "attention": False, "patch": 2}
TEXTS = [
    f"a small {c} {s} left of a big {c} {s}." for c in ("red", "blue") for s in ("ring", "cross")
]


def codecs(seed: int = 0) -> dict[str, Tokenizer]:
    """Untrained codecs of text, image, video and audio."""
    torch.manual_seed(seed)
    quantizer = QuantizerConfig(codebook_size=23, d_code=4)
    rvq = QuantizerConfig(kind="rvq", codebook_size=17, n_codebooks=3, d_code=4)
    audio = AudioCodecConfig(
        sample_rate=4000,
        strides=(5, 4),
        widths=(8, 12),
        encoder_units=(1, 1),
        decoder_units=(1, 1),
        d_latent=9,
        quantizer=rvq,
    )
    image = ImageCodecConfig(**VISUAL, quantizer=quantizer)
    video = VideoCodecConfig(**VISUAL, quantizer=quantizer, n_temporal_levels=1)
    return {
        "text": TextTokenizer.train(TEXTS, 300),
        "image": ImageTokenizer(ImageCodec(image)),
        "video": VideoTokenizer(VideoCodec(video)),
        "audio": AudioTokenizer(AudioCodec(audio)),
    }


def save_codec_checkpoint(folder: Path, tokenizer: Tokenizer) -> Path:
    """A checkpoint of one codec, as its run leaves it."""
    tokenizer.save(folder / "tokenizers" / tokenizer.span)
    mark = read_codec_json(folder / "tokenizers" / tokenizer.span)["fingerprint"]
    entry = {"path": f"tokenizers/{tokenizer.span}", "fingerprint": mark}
    write_manifest(folder, "codec", {}, tokenizers={tokenizer.span: entry})
    return folder


def make_codecs(folder: Path, seed: int = 0) -> list[Path]:
    """One checkpoint per codec below `folder`."""
    made = codecs(seed).items()
    return [save_codec_checkpoint(folder / span, tokenizer) for span, tokenizer in made]


def make_model(parts: Parts, context: int = 220, seed: int = 0) -> Transformer:
    """A random transformer over the parts' vocabulary; sharp enough to write varied ids."""
    assert parts.vocabulary is not None
    torch.manual_seed(seed)
    config = ModelConfig(
        vocabulary_size=parts.vocabulary.size,
        d_model=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        d_ff=24,
        context=context,
    )
    model = Transformer(config)
    for parameter in model.parameters():
        parameter.data.mul_(6.0 if parameter.ndim == 2 else 1.0)
    return model


def make_checkpoint(folder: Path, context: int = 220, **config: Any) -> Path:
    """A model checkpoint under `folder`/model, with the codecs beside it."""
    parts = build_tokens(make_codecs(folder / "codecs"), n_sizes=24)
    assert parts.grammar is not None
    save_model_checkpoint(
        folder / "model",
        make_model(parts, context),
        parts.grammar,
        parts.tokenizers,
        {"run": {"kind": "model", "name": "random"}, "sequence": SEQUENCE, **config},
        folders=parts.folders,
        origin="a test",
    )
    return folder / "model"


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) with smooth colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    tones = [np.sin(6 * (x * a + y * b)) for a, b in rng.uniform(0.3, 2, (3, 2))]
    return (127 + 120 * np.stack(tones, -1)).astype(np.uint8)


def sound(n: int, seed: int = 0) -> np.ndarray:
    """float32 (1, n): two tones."""
    rate = np.random.default_rng(seed).uniform(0.02, 0.3, 2)
    t = np.arange(n)
    return (0.3 * np.sin(rate[0] * t) + 0.2 * np.sin(rate[1] * t)).astype(np.float32)[None]
