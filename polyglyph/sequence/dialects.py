"""The dialects we write: our own and Emu3's. Data only.

Emu3 (BAAI/Emu3, arXiv:2409.18869): bos, text, boi "H*W" img [codes eol]*H eof eoi, text, eos. The
size counts codes and is written in text ids of single digits, which come from the checkpoint's
text tokenizer (`Dialect.with_digits`).
"""

from __future__ import annotations

from collections.abc import Sequence

from polyglyph.sequence.layout import Dialect, Layout
from polyglyph.sequence.vocabulary import Entry, Vocabulary

DIALECTS = {
    "polyglyph": Dialect(
        name="polyglyph",
        layouts={
            "text": Layout(min_frames=0),
            "image": Layout(size="ids", row_end="row_end"),
            "video": Layout(size="ids", row_end="row_end", frame_end="frame_end"),
            "audio": Layout(),
            "region": Layout(size="ids"),
            "action": Layout(size="ids"),
        },
    ),
    "emu3": Dialect(
        name="emu3",
        layouts={
            "text": Layout(begin=None, end=None),
            "image": Layout(
                begin="boi",
                end="eoi",
                size="digits",
                after_size="img",
                row_end="eol",
                frame_end="eof",
            ),
        },
    ),
}

_EMU3_CONTROLS = {
    "pad": 151643,
    "eol": 151846,
    "eof": 151847,
    "bos": 151849,
    "eos": 151850,
    "img": 151851,
    "boi": 151852,
    "eoi": 151853,
}


def emu3_vocabulary() -> Vocabulary:
    """Emu3's public ids: text 0..151642, controls among the extras, 32768 image codes."""
    entries = [Entry("text", 0, 151643, 0), Entry("image", 0, 32768, 151854)]
    return Vocabulary(entries, _EMU3_CONTROLS, 184622)


def emu3(digit_ids: Sequence[int], star_id: int) -> Dialect:
    """Emu3's dialect for a text tokenizer in which these are the ids of "0".."9" and of "*"."""
    return DIALECTS["emu3"].with_digits(digit_ids, star_id)
