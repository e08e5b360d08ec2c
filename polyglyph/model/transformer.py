"""The decoder-only transformer: ids in, hidden states out.

RMSNorm before each sub-layer, rotary positions, grouped-query attention with QK-norm, SwiGLU
(LLaMA, arXiv:2302.13971; QK-norm against the late divergence of mixed-modal models: Chameleon,
arXiv:2405.09818). The output matrix is applied by the loss and by the sampler, slot by slot, so
`forward` stops at the last norm. Knows ids only: no modality, no grammar, no training."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import embedding

from polyglyph.config import Config
from polyglyph.kernels.attention import Packing, attention, pack
from polyglyph.kernels.decode_attention import decode_attention
from polyglyph.kernels.heads import heads
from polyglyph.kernels.rms_norm import add_rms_norm, rms_norm
from polyglyph.kernels.rope import rope_tables
from polyglyph.kernels.swiglu import swiglu
from polyglyph.model.kv_cache import KVCache


class ModelConfig(Config):
    """Section [model]. d_head is d_model / n_heads."""

    vocabulary_size: int = Field(gt=0)
    d_model: int = Field(256, gt=0)
    n_layers: int = Field(6, gt=0)
    n_heads: int = Field(4, gt=0)
    n_kv_heads: int = Field(2, gt=0)
    d_ff: int = Field(704, gt=0)
    context: int = Field(1024, gt=0)
    rope_theta: float = Field(10_000.0, gt=0)
    qk_norm: bool = True
    tie_embeddings: bool = False
    norm_eps: float = Field(1e-6, gt=0)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.d_model % self.n_heads or self.d_head % 2:
            raise ValueError(
                f"d_model {self.d_model} must be n_heads {self.n_heads} times an even number"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}"
            )
        return self


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(the norm of x + residual, x + residual)"""
        return add_rms_norm(x, residual, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        width = (config.n_heads + 2 * config.n_kv_heads) * config.d_head
        self.qkv = nn.Linear(config.d_model, width, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.eps = config.norm_eps
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = nn.Parameter(torch.ones(config.d_head))
            self.k_norm = nn.Parameter(torch.ones(config.d_head))

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        packing: Packing | None,
        cache: KVCache | None,
        positions: Tensor | None,
        lengths: Tensor | None,
    ) -> Tensor:
        q, k, v = heads(
            self.qkv(x), self.n_heads, self.n_kv_heads, *tables, self.q_norm, self.k_norm, self.eps
        )
        if cache is not None:
            k, v = cache.write(self.layer, positions, k, v)
            if lengths is None:  # nothing cached before: causal over what came now
                k, v = k[:, :, : q.shape[2]], v[:, :, : q.shape[2]]
            q = q.to(k.dtype)
        if lengths is None:
            out = attention(q, k, v, packing=packing)
        else:
            out = decode_attention(q, k, v, lengths)
        return self.out(out.transpose(1, 2).flatten(2))  # (B, T, D)


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = Norm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        packing: Packing | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        read = self.attention(self.attention_norm(x), tables, packing, cache, positions, lengths)
        normed, x = self.feed_forward_norm.of_sum(read, x)
        return x + self.feed_forward(normed)


class Transformer(nn.Module):
    """ids (B, T) -> hidden states (B, T, D); logits are hidden @ head_weight.T."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocabulary_size, config.d_model))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = Norm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.head = nn.Parameter(torch.empty(config.vocabulary_size, config.d_model))
        cos, sin = rope_tables(config.context, config.d_head, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal weights of 0.02; what writes into the residual stream is divided by
        sqrt(2 n_layers), so that its variance doesn't grow with depth (GPT-2)."""
        residual = 0.02 * (2 * self.config.n_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = residual if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """(V, D)"""
        return self.embedding if self.config.tie_embeddings else self.head

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self,
        ids: Tensor,
        *,
        doc_id: Tensor | None = None,
        prefix_end: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm.

        doc_id (B, T) int isolates packed documents: contiguous runs, negative is padding.
        prefix_end (B, T) int makes conditioning blocks bidirectional: an id also reads its document
        up to that place of the row (`kernels.packing.pack`); only for ids that carry no loss.
        positions (B, T) default to the place in the document, in the row, or behind what the cache
        holds. With a cache, rows are padded on the right; call `cache.advance` afterwards.
        ValueError for doc_id with a cache, for prefix_end with one that holds ids already (a block
        is read whole), and for positions beyond the context.
        """
        if doc_id is not None and cache is not None:
            raise ValueError("doc_id and cache exclude each other: a cached row is one document")
        if prefix_end is not None and cache is not None and cache.longest:
            raise ValueError("prefix_end: blocks are read whole, into an empty cache")
        if prefix_end is not None and doc_id is None:
            doc_id = torch.zeros_like(ids)
        packing = None if doc_id is None else pack(doc_id, prefix_end)
        lengths = None
        if positions is None and packing is not None and cache is None:
            positions = packing.positions
        if cache is not None:
            steps = torch.arange(ids.shape[1], device=ids.device)
            slots = cache.lengths.unsqueeze(1) + steps  # (B, T) places in the cache
            if positions is None:  # only a row's padding may lie behind the context
                positions = slots.clamp_max(self.config.context - 1)
            if cache.longest:
                lengths = (cache.lengths + ids.shape[1]).int()
        tables = self._tables(positions, ids.shape[1])
        x = embedding(ids, self.embedding)
        for block in self.blocks:
            x = block(x, tables, packing, cache, slots if cache is not None else None, lengths)
        return self.norm(x)

    def _tables(self, positions: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        last = length - 1 if positions is None else int(positions.max()) if length else 0
        if last >= self.config.context:
            raise ValueError(f"position {last} is beyond the context of {self.config.context}")
        if positions is None:
            return self.cos[:length], self.sin[:length]
        return self.cos[positions], self.sin[positions]
