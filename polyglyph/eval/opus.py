"""Opus, the peer of the sound codecs: a sound through libopus (PyAV) at a number of bits.

Bits are those of the packets that hold the sound, without a container. Of libopus's ways the one
is taken that is nearest by mel distance, so that the peer is at its best. Knows samples only; no
codec of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from polyglyph.errors import InputError
from polyglyph.eval.metrics import mel_distance
from polyglyph.media import resample

_DECODED_RATE = 48_000  # Hz, of every Opus decoder
RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz that libopus encodes
LADDER = (*range(6_000, 24_001, 500), *range(26_000, 64_001, 2_000))
"""Bit rates in bits a second, from the lowest that libopus is made for."""
WAYS = (("voip", 20), ("voip", 60), ("audio", 20), ("audio", 60))
"""What libopus is told to expect, and its frames in milliseconds."""


@dataclass(frozen=True)
class OpusSound:
    """A sound that went through Opus."""

    samples: np.ndarray  # (S,) float32, as long and at the rate of what went in
    n_bits: int
    bitrate_bps: int  # what was asked of libopus


def through_opus(
    samples: np.ndarray,
    sample_rate: int,
    bitrate_bps: int,
    application: str = "voip",
    frame_ms: int = 20,
) -> OpusSound:
    """Mono samples (S,) through libopus at a variable rate of about `bitrate_bps`, complexity 10.

    InputError for a sample rate that Opus doesn't have."""
    if sample_rate not in RATES:
        raise InputError(
            f"Opus takes {', '.join(map(str, RATES))} Hz, got {sample_rate}; resample first"
        )
    assert samples.ndim == 1
    encoder, packets = _packets(samples, sample_rate, bitrate_bps, application, frame_ms)
    n_frames = -(-len(samples) // encoder.frame_size)
    decoded = resample(_decoded(encoder.extradata, packets)[None], _DECODED_RATE, sample_rate)[0]
    out = np.zeros(len(samples), np.float32)
    out[: len(decoded)] = decoded[: len(samples)]
    return OpusSound(out, sum(8 * packet.size for packet in packets[:n_frames]), bitrate_bps)


def _packets(
    samples: np.ndarray, sample_rate: int, bitrate_bps: int, application: str, frame_ms: int
) -> tuple:
    """The encoder and its packets, two frames of silence behind the sound among them: what the
    decoder still owes then isn't missing at the end."""
    import av

    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = sample_rate, "mono", "flt"
    encoder.bit_rate, encoder.time_base = bitrate_bps, Fraction(1, sample_rate)
    encoder.options = {
        "application": application,
        "frame_duration": str(frame_ms),
        "vbr": "on",
        "compression_level": "10",
    }
    encoder.open()
    step = encoder.frame_size
    behind = -len(samples) % step + 2 * step
    padded = np.pad(samples.astype(np.float32), (0, behind))
    packets = []
    for start in range(0, len(padded), step):
        cut = np.ascontiguousarray(padded[None, start : start + step])
        frame = av.AudioFrame.from_ndarray(cut, format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, encoder.time_base
        packets += encoder.encode(frame)
    return encoder, packets + encoder.encode(None)


def _decoded(header: bytes, packets: Sequence) -> np.ndarray:
    """(S,) float32 at 48 kHz, the encoder's delay cut off by the decoder."""
    import av

    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout, decoder.extradata = _DECODED_RATE, "mono", header
    parts = [f.to_ndarray().reshape(-1) for packet in packets for f in decoder.decode(packet)]
    found = np.concatenate(parts)
    return found.astype(np.float32) / (32768 if found.dtype == np.int16 else 1)


def at_no_fewer_bits(
    sounds: Sequence[np.ndarray], n_bits: Sequence[float], sample_rate: int
) -> list[OpusSound]:
    """Each sound (S,) at the lowest rate of LADDER whose packets take at least its `n_bits`, in
    that of libopus's WAYS with the least mean mel distance."""
    best: tuple[float, list[OpusSound]] | None = None
    for application, frame_ms in WAYS:
        found = [
            _at_least(sound, n, sample_rate, application, frame_ms)
            for sound, n in zip(sounds, n_bits, strict=True)
        ]
        pairs = zip(found, sounds, strict=True)
        distance = np.mean([mel_distance(o.samples, s, sample_rate) for o, s in pairs])
        if best is None or distance < best[0]:
            best = (float(distance), found)
    assert best is not None
    return best[1]


def _at_least(
    sound: np.ndarray, n_bits: float, sample_rate: int, application: str, frame_ms: int
) -> OpusSound:
    duration_s = len(sound) / sample_rate
    for bitrate_bps in LADDER:
        # A variable rate may fall short of what was asked, but not by half.
        if bitrate_bps * duration_s * 2 < n_bits:
            continue
        found = through_opus(sound, sample_rate, bitrate_bps, application, frame_ms)
        if found.n_bits >= n_bits:
            return found
    raise InputError(f"Opus doesn't reach {n_bits:.0f} bits in {duration_s:.2f} s; take fewer")
