"""Published codecs into ours: a literal table of lazy "module:function" strings, and the door.

Every function takes a `weights.Source` and returns (Tokenizer, Report). Importing this file imports
no importer; a new codec is its file and one line here, one more if it can be recognised.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyglyph.tokenizers.base import Tokenizer
    from polyglyph.tokenizers.importers.weights import Report, Source

_HERE = "polyglyph.tokenizers.importers"
TABLE = {
    "taming": f"{_HERE}.taming:load",
    "llamagen": f"{_HERE}.llamagen:load",
    "movq": f"{_HERE}.movq:load",
    "movq-ema": f"{_HERE}.movq:load_ema",
    "emu3": f"{_HERE}.emu3:load_image",
    "emu3-video": f"{_HERE}.emu3:load_video",
    "chameleon": f"{_HERE}.chameleon:load",
    "encodec": f"{_HERE}.encodec:load",
    "dac": f"{_HERE}.dac:load",
    "mimi": f"{_HERE}.mimi:load",
}

# Where a codec sits in a checkpoint that holds more than it.
PREFIXES = (
    "model.vqmodel.", "vqmodel.", "gen_vision_model.", "first_stage_model.", "audio_encoder.",
)  # fmt: skip

# kind → `model_type`s of a config.json that mean it.
MODEL_TYPES = {
    "emu3": ("emu3_vqgan", "Emu3VisionVQ", "emu3"),
    "chameleon": ("chameleon_vqgan", "chameleon"),
    "llamagen": ("janus_vqgan", "janus", "multi_modality"),
    "encodec": ("encodec", "musicgen"),
    "dac": ("dac",),
    "mimi": ("mimi",),
}

# (kind, keys that it has and no kind before it); the first whose keys all occur is taken.
SIGNATURES = (
    ("emu3", ("encoder.time_conv.0.conv.conv.weight",)),
    ("llamagen", ("encoder.conv_blocks.0.res.0.norm1.weight",)),
    ("llamagen", ("encoder.conv_in.weight", "decoder.up.0.upsample.conv.weight")),
    ("movq", ("decoder.mid.block_1.norm1.norm_layer.weight",)),
    ("taming", ("encoder.down.0.block.0.norm1.weight", "decoder.conv_in.weight")),
    ("encodec", ("quantizer.vq.layers.0._codebook.embed",)),
    ("encodec", ("quantizer.layers.0.codebook.embed",)),
    ("dac", ("quantizer.quantizers.0.codebook.weight",)),
    ("mimi", ("quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum",)),
    ("mimi", ("quantizer.rvq_first.vq.layers.0._codebook.embedding_sum",)),
)


def import_codec(source: str | Path, kind: str = "auto") -> tuple[Tokenizer, Report]:
    """The codec of a published checkpoint (file or folder), and the account of its tensors.

    kind: a name of TABLE, or "auto": by `model_type` of the config.json beside it, else by its
    keys. FormatError of one line where a tensor is missing, unexplained or of another shape;
    InputError for an unknown kind.
    """
    from polyglyph.errors import unknown
    from polyglyph.lookup import find
    from polyglyph.tokenizers.importers.weights import read_source

    if kind != "auto" and kind not in TABLE:
        raise unknown("kind of codec", kind, ["auto", *TABLE])
    found = read_source(source, PREFIXES)
    name = detect(found) if kind == "auto" else kind
    return find(TABLE, name, "kind of codec")(found)


def detect(source: Source) -> str:
    """The kind that config.json or the keys name; InputError where neither does."""
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError

    stated = source.config.get("model_type")
    for kind, names in MODEL_TYPES.items():
        if stated in names:
            return kind
    for kind, keys in SIGNATURES:
        if all(key in source.state for key in keys):
            return _decided(kind, source)
    raise InputError(
        f"{shown(source.path)} is no codec that is recognised; "
        f"name its kind, one of {', '.join(TABLE)}"
    )


# kind → (start of a second set's keys, the kind that takes it): never chosen by guessing.
_TWO_SETS = {"movq": ("ema_encoder.", "movq-ema")}


def _decided(kind: str, source: Source) -> str:
    from polyglyph.checkpoint import shown
    from polyglyph.errors import InputError

    start, other = _TWO_SETS.get(kind, ("", ""))
    if start and any(key.startswith(start) for key in source.state):
        raise InputError(
            f"{shown(source.path)} holds two sets of weights; name kind {kind!r} for the raw ones "
            f"or {other!r} for their moving averages"
        )
    return kind
