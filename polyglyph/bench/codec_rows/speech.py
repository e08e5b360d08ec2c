"""The shipped codec `rich-audio` on speech that it was never trained on, beside Opus.

Sentences of data/rich_sound.py's HELD_OUT_SENTENCES by its HELD_OUT_SPEAKERS. Opus has at least as
many bits, sound by sound, counted in its packets; ours are counted at log2(codebook_size) a code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from polyglyph.bench.runner import BenchResult
from polyglyph.errors import MissingExtraError

CODEC = "rich-audio"
RATE = 16_000  # Hz
STOI_DUE = 0.85


def rows(quick: bool, say: Callable[[str], None]) -> Iterator[BenchResult]:
    """Mel distance as a ratio, and STOI."""
    from polyglyph.data.rich_sound import HELD_OUT_SENTENCES, held_out_speech

    names = (f"speech, {CODEC}, mel distance of Opus over ours", f"speech, {CODEC}, STOI")
    n = 6 if quick else len(HELD_OUT_SENTENCES)
    say(f"{names[0]}: {n} sentences")
    try:
        found = beside_opus(shipped(), [held_out_speech(number) for number in range(n)])
    except MissingExtraError as error:
        for name, unit, due in zip(names, ("×", ""), (1.0, STOI_DUE), strict=True):
            yield BenchResult(name, None, unit, due, False, f"not measured: {error}")
        return
    ours, opus = found["ours"], found["opus"]
    said = f"{n} sentences at {ours['bps']:.0f} bit/s against {opus['bps']:.0f}"
    ratio, mels = opus["mel"] / ours["mel"], f"{ours['mel']:.3f} against {opus['mel']:.3f}"
    yield BenchResult(names[0], ratio, "×", 1.0, False, f"{mels}; {said}", facts=found)
    compared = f"{ours['stoi']:.3f} against {opus['stoi']:.3f} of Opus; {said}"
    yield BenchResult(names[1], ours["stoi"], "", STOI_DUE, False, compared, facts=found)


def shipped() -> Any:
    """The codec that comes with the package."""
    from polyglyph.assembly import load_parts
    from polyglyph.checkpoint import find_checkpoint

    return load_parts(find_checkpoint(CODEC), name=CODEC).tokenizers["audio"]


def beside_opus(tokenizer: Any, sounds: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Means over sounds (S,) at 16 kHz of both: bps, mel, stoi, si_sdr (dB), level (dB)."""
    from polyglyph.eval.metrics import bits
    from polyglyph.eval.opus import at_no_fewer_bits
    from polyglyph.media import Audio

    grids = [tokenizer.encode(Audio(sound[None], RATE)) for sound in sounds]
    ours = [tokenizer.decode(grid).samples[0] for grid in grids]
    n_bits = [bits(grid, tokenizer.spec) for grid in grids]
    opus = at_no_fewer_bits(sounds, n_bits, RATE)
    return {
        "ours": _means(ours, sounds, n_bits),
        "opus": _means([o.samples for o in opus], sounds, [o.n_bits for o in opus]),
    }


def _means(made: list[np.ndarray], due: list[np.ndarray], n_bits: list[float]) -> dict[str, float]:
    from polyglyph.eval.metrics import mel_distance, si_sdr
    from polyglyph.eval.stoi import stoi

    pairs = list(zip(made, due, strict=True))
    understood = [stoi(a, b, RATE) for a, b in pairs]
    return {
        "bps": sum(n_bits) / sum(len(sound) / RATE for sound in due),
        "mel": float(np.mean([mel_distance(a, b, RATE) for a, b in pairs])),
        "stoi": float(np.mean([value for value in understood if value is not None])),
        "si_sdr": float(np.mean([si_sdr(a, b) for a, b in pairs])),
        "level": float(np.mean([20 * np.log10(a.std() / b.std()) for a, b in pairs])),
    }
