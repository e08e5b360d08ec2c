"""Keys and values of the ids already read, allocated once; every row has its own length.

Knows nothing of sampling or grammars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from polyglyph.model.transformer import ModelConfig


class KVCache:
    """Room for `length` ids in each of `batch` rows.

    keys and values: (n_layers, B, Nkv, length, K); lengths: (B,) int64, ids read so far. A forward
    writes behind `lengths`; the caller then says with `advance` how many of these ids were real
    (shorter rows are padded on the right), and the next forward overwrites the rest. Padding that
    would lie behind the end goes into one more column, which no query sees.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.n_layers, batch, config.n_kv_heads, length + 1, config.d_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.longest = 0  # of `lengths`, known without asking the device

    @property
    def capacity(self) -> int:
        """Ids that a row can hold."""
        return self.keys.shape[3] - 1

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k and v (B, Nkv, T, K) at positions (B, T); all keys and values up to the longest
        row's new end, (B, Nkv, S, K)."""
        end = min(self.longest + positions.shape[1], self.capacity + 1)
        positions = positions.clamp_max(self.capacity)
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            # (B, Nkv, S, K) seen as (B, S, Nkv, K), where rows and positions index together.
            store.transpose(1, 2)[rows, positions] = new.transpose(1, 2).to(store.dtype)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, counts: list[int]) -> None:
        """Count each row's ids just written as read. ValueError when they don't fit."""
        lengths = self.lengths + torch.tensor(counts, device=self.lengths.device)
        longest = int(lengths.max()) if counts else 0
        if longest > self.capacity:
            raise ValueError(f"a row reaches {longest} ids in a cache for {self.capacity}")
        self.lengths, self.longest = lengths, longest

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.lengths.device)
        self.keys = self.keys.index_select(1, index)
        self.values = self.values.index_select(1, index)
        self.lengths = self.lengths.index_select(0, index)
        self.longest = int(self.lengths.max()) if rows else 0
