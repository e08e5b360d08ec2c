"""SBER-MoVQGAN: taming's encoder and a decoder of spatial norms (2209.09002).

Layout: tokenizers reference 3.3. A checkpoint may hold two sets of weights, the raw ones and their
moving averages (`ema_encoder.` and so on, dots removed from the names behind); which of them is
taken is never guessed.
"""

from __future__ import annotations

import re

from polyglyph.checkpoint import shown
from polyglyph.errors import FormatError
from polyglyph.tokenizers.image import ImageTokenizer
from polyglyph.tokenizers.importers.taming import load_taming
from polyglyph.tokenizers.importers.weights import KeyMap, Report, Source

_PARTS = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
_RAW = rf"(?:{'|'.join(_PARTS)})\."


def load(source: Source) -> tuple[ImageTokenizer, Report]:
    """The codec with its raw weights."""
    extra = KeyMap(ignored=[(r"ema_", "moving averages; the raw weights were asked for")])
    return _checked(source, extra, "movq")


def load_ema(source: Source) -> tuple[ImageTokenizer, Report]:
    """The codec with its moving averages; FormatError where the checkpoint has none."""
    names: dict[str, str] = {}
    for key in source.state:
        if re.match(_RAW, key):
            part, _, name = key.partition(".")
            short = f"ema_{part}.{name.replace('.', '')}"
            if short in names:
                raise FormatError(f"{shown(source.path)}: {short} may mean {key} or {names[short]}")
            names[short] = key
    if not names.keys() & source.state.keys():
        raise FormatError(
            f"{shown(source.path)} holds no moving averages; import it as kind 'movq'"
        )
    extra = KeyMap(
        renames=[(r"^ema_.*$", lambda match: names.get(match[0], match[0]))],
        ignored=[
            (_RAW, "raw weights; the moving averages were asked for"),
            (r"ema_\w+\.(decay|num_updates)$", "a setting of the averaging"),
        ],
    )
    return _checked(source, extra, "movq-ema")


def _checked(source: Source, extra: KeyMap, kind: str) -> tuple[ImageTokenizer, Report]:
    tokenizer, report = load_taming(source, kind, extra=extra)
    if tokenizer.net.config.decoder != "movq":
        raise FormatError(f"{report.source}: its decoder has plain norms; import it as 'taming'")
    return tokenizer, report
