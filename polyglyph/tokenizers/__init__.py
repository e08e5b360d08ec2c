"""The modalities: a literal table of lazy "module:Name" strings, and the door to saved codecs.

Importing this file imports no tokenizer; a new modality is its file and one line here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyglyph.tokenizers.base import Tokenizer

TABLE = {
    "text": "polyglyph.tokenizers.text:TextTokenizer",
    "image": "polyglyph.tokenizers.image:ImageTokenizer",
    "video": "polyglyph.tokenizers.video:VideoTokenizer",
    "audio": "polyglyph.tokenizers.audio:AudioTokenizer",
    "region": "polyglyph.tokenizers.region:RegionTokenizer",
    "action": "polyglyph.tokenizers.action:ActionTokenizer",
}
MODALITIES = tuple(TABLE)

# Nets of published codecs, by the `architecture` of a saved codec's config; a codec without one is
# of its modality's own net.
ARCHITECTURES = {
    "vqgan": "polyglyph.tokenizers.vqgan:Vqgan",
    "visionvq": "polyglyph.tokenizers.visionvq:VisionVq",
    "encodec": "polyglyph.tokenizers.encodec:Encodec",
    "dac": "polyglyph.tokenizers.dac:Dac",
    "mimi": "polyglyph.tokenizers.mimi:Mimi",
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer saved in `folder`, of the class that its codec.json's `modality` names.

    FormatError if codec.json is missing, not JSON or names no modality; the class checks the rest.
    """
    from polyglyph.lookup import find
    from polyglyph.tokenizers.base import read_codec_json

    modality = read_codec_json(folder)["modality"]
    return find(TABLE, modality, "modality").load(Path(folder))  # type: ignore[attr-defined]
