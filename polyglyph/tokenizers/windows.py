"""A function of finite reach over a signal that comes in parts: windows of bounded memory.

What looks both ways can still go through in order: a window of outputs is computed once the inputs
that it depends on are there, and inputs are forgotten once no window needs them. Windows lie where
they lie for the whole signal, so parts of any length give its numbers. Knows no layer and no codec.

Shapes: B batch, n steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from polyglyph.tokenizers.stretches import Range, Stretch

Push = Callable[[Tensor, bool], Iterator[Tensor]]
"""Takes the next part of a signal, and whether it is the last, to what is sure by then."""

# The length of a signal whose end isn't known yet.
_FAR = 1 << 60


class Windows:
    """Outputs of `compute`, `size` of them at a time.

    needs(start, end, total): the inputs, of a signal of `total`, that outputs [start, end) depend
    on. total(n): outputs for n inputs. compute(piece, start, end): those outputs from a piece that
    holds what they need; its total is beyond any number as long as the end is to come."""

    def __init__(
        self,
        size: int,
        needs: Callable[[int, int, int], Range],
        total: Callable[[int], int],
        compute: Callable[[Stretch, int, int], Tensor],
    ) -> None:
        self.size, self.needs, self.total, self.compute = size, needs, total, compute
        self._held: Stretch | None = None
        self._done = 0  # outputs

    def push(self, x: Tensor, is_last: bool) -> Iterator[Tensor]:
        """The windows that x (B, n, …), which follows what came before, makes ready."""
        held = self._held
        if held is not None and held.x.shape[1]:
            x = torch.cat([held.x, x], dim=1) if x.shape[1] else held.x
        first = 0 if held is None else held.start
        n = first + x.shape[1]
        piece = Stretch(x, first, n if is_last else _FAR)
        last = self.total(n) if is_last else _FAR
        while self._done < last:
            end = min(self._done + self.size, last)
            low, high = self.needs(self._done, end, piece.total)
            if high > n:
                break
            yield self.compute(piece.part(low, high), self._done, end)
            self._done = end
        low = min(n, self.needs(self._done, self._done + self.size, _FAR)[0])
        self._held = Stretch(x[:, low - first :].clone(), low, _FAR)


def halo(
    compute: Callable[[Tensor], Tensor], reach: int, size: int, n_in: int, n_out: int
) -> Windows:
    """Windows of `size` frames for a function that takes n_in inputs of a frame to n_out outputs
    and pads at the ends of what it is given: pieces are `reach` frames longer where they don't
    end with the signal, and what that padding touched is left out. A last frame may be short."""

    def needs(start: int, end: int, total: int) -> Range:
        return max(0, start - reach) * n_in, min(total, (end + reach) * n_in)

    def part(piece: Stretch, start: int, end: int) -> Tensor:
        first = piece.start // n_in
        return compute(piece.x)[:, (start - first) * n_out : (end - first) * n_out]

    return Windows(size, needs, lambda n: -(-n // n_in), part)


__all__ = ["Push", "Windows", "halo"]
