"""The hot functions: each file is one public function with its torch reference (the CPU path).

The table names what the generic benchmark and the generic tests run; nothing is imported here."""

from __future__ import annotations

TABLE = {
    "attention": "polyglyph.kernels.attention:attention",
    "cross_entropy": "polyglyph.kernels.cross_entropy:sliced_cross_entropy",
    "decode_attention": "polyglyph.kernels.decode_attention:decode_attention",
    "heads": "polyglyph.kernels.heads:heads",
    "nearest_code": "polyglyph.kernels.nearest_code:nearest_code",
    "rms_norm": "polyglyph.kernels.rms_norm:rms_norm",
    "rope": "polyglyph.kernels.rope:rope",
    "sampling_head": "polyglyph.kernels.sampling_head:sampling_head",
    "swiglu": "polyglyph.kernels.swiglu:swiglu",
}
