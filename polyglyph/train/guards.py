"""What stops a codec run with a sentence: NaN, a wrong range of values, a collapsed codebook."""

from __future__ import annotations

import math

from torch import Tensor

from polyglyph.errors import PolyglyphError
from polyglyph.tokenizers.losses import check_range
from polyglyph.tokenizers.quantize import collapsed

COLLAPSE_STEPS = 200
# Batches without a value below zero after which media of 0…1 are taken for what they are.
UNSIGNED_STEPS = 20


def check_finite(what: str, value: float, step: int) -> None:
    """PolyglyphError unless `value` is finite; `step` counts from 1."""
    if not math.isfinite(value):
        raise PolyglyphError(
            f"{what} became {value} at step {step}; the last checkpoint is kept: "
            "lower optimizer.lr, or set run.dtype=fp32"
        )


class Guards:
    """The running part of the checks; `numbers` go into the saved state."""

    def __init__(self) -> None:
        self.low_use = 0  # steps in a row with a collapsed codebook
        self.unsigned = 0  # batches in a row without a value below 0, from the first on
        self.is_signed = False

    def check_batch(self, batch: Tensor, step: int) -> None:
        """Stops a run on media of 0…255 at once, and on such of 0…1 after some batches."""
        check_range(batch, f"training media (step {step})")
        if self.is_signed:
            return
        low, high = (float(v) for v in batch.aminmax())
        self.is_signed = low < -0.01
        self.unsigned = self.unsigned + 1 if low >= -0.01 and high > 0.5 else 0
        if self.unsigned >= UNSIGNED_STEPS:
            raise PolyglyphError(
                f"training media are due in [-1, 1]; {self.unsigned} batches in a row held nothing "
                "below 0, as pixels of 0…1 do: multiply them by 2 and subtract 1"
            )

    def check_collapse(self, codes: Tensor, codebook_size: int, n_steps: int, step: int) -> None:
        """Stops a run one of whose codebooks stays collapsed for 200 steps; codes (..., Q) are
        those of the last `n_steps` steps."""
        bad = any(collapsed(codes, codebook_size))
        self.low_use = self.low_use + n_steps if bad else 0
        if self.low_use >= COLLAPSE_STEPS:
            raise PolyglyphError(
                f"codebook collapse: under 10 % of the codes in use, or a perplexity under 4, for "
                f"{self.low_use} steps (step {step}); lower optimizer.lr or raise "
                "quantizer.threshold_ema_dead_code"
            )

    def numbers(self) -> dict[str, int]:
        return {"low_use": self.low_use, "unsigned": self.unsigned, "signed": int(self.is_signed)}

    def load_numbers(self, numbers: dict) -> None:
        self.low_use = int(numbers["low_use"])
        self.unsigned = int(numbers.get("unsigned", 0))
        self.is_signed = bool(numbers.get("signed", 0))
