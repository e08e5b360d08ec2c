"""Chameleon's VQ (2405.09818): taming's f16 at 512², attention in the middle only.

The original `vqgan.ckpt` holds a working decoder; transformers' ChameleonVQVAE (and the checkpoints
made with it) holds the encoder's half only, and then decoding is refused.
"""

from __future__ import annotations

from polyglyph.errors import FormatError
from polyglyph.tokenizers.image import ImageTokenizer
from polyglyph.tokenizers.importers.taming import load_taming
from polyglyph.tokenizers.importers.weights import Report, Source


def load(source: Source) -> tuple[ImageTokenizer, Report]:
    """The codec, or its encoder alone; the report says which."""
    tokenizer, report = load_taming(source, "chameleon", needs_decoder=False)
    config = tokenizer.net.config
    if config.decoder == "movq" or config.quantizer.kind != "euclidean":
        raise FormatError(f"{report.source}: its decoder or its codes are not Chameleon's")
    if config.decoder == "none":
        report.notes.append("no decoder in this checkpoint: it encodes only")
    return tokenizer, report
