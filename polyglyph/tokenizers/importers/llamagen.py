"""LlamaGen's VQ-16 and VQ-8 (2406.06525), Janus's copy of it, and transformers' JanusVQVAE.

taming's network under other names (tokenizers reference 3.2): the decoder's blocks are stored
lowest resolution first, in transformers' `decoder.up` too. Codes are l2-normalised on both sides
of the search and again at decode, as the weights were trained; transformers' class leaves the
former out, so it chooses the same codes only where the table's rows have length one.
"""

from __future__ import annotations

import re

from polyglyph.tokenizers.image import ImageTokenizer
from polyglyph.tokenizers.importers.taming import load_taming
from polyglyph.tokenizers.importers.weights import KeyMap, Report, Source

_LOWEST_FIRST = re.compile(r"^decoder\.(?:conv_blocks|up)\.(\d+)\.")
_MIDDLE = ("block_1", "attn_1", "block_2")


def load(source: Source) -> tuple[ImageTokenizer, Report]:
    """The codec of either layout; FormatError where a tensor is missing or unexplained."""
    found = [int(m[1]) for key in source.state if (m := _LOWEST_FIRST.match(key))]
    last = max(found, default=0)

    def upside_down(match: re.Match[str]) -> str:
        return f"decoder.up.{last - int(match[1])}."

    extra = KeyMap(
        renames=[
            (_LOWEST_FIRST.pattern, upside_down),
            (r"^encoder\.conv_blocks\.", "encoder.down."),
            (r"^((?:encoder\.down|decoder\.up)\.\d+)\.res\.", r"\1.block."),
            (r"^(encoder|decoder)\.mid\.([012])\.", _named_middle),
        ],
        ignored=[(r"quantize\.codebook_used$", "codes seen lately: a statistic of training")],
    )
    tokenizer, report = load_taming(source, "llamagen", lookup="cosine", extra=extra)
    report.notes.append("codes are l2-normalised in the search and at decode, as in training")
    return tokenizer, report


def _named_middle(match: re.Match[str]) -> str:
    return f"{match[1]}.mid.{_MIDDLE[int(match[2])]}."
