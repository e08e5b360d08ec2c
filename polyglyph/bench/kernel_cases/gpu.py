"""The rows that need a GPU: our Triton forms against torch's own, bf16 unless said.

Peers: SDPA with its flash or cuDNN backend forced, FlexAttention under torch.compile with the same
mask, torch.compile of the plain formula, and a copy of as many bytes where memory is the limit.
Knows how the peers are called."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyglyph.bench.kernel_cases.measuring import OURS, Case, Side, Thunk
from polyglyph.kernels import backend

DEVICE = "cuda"
FLASH, CUDNN, FLEX = "SDPA flash", "SDPA cuDNN", "FlexAttention"
DETERMINISTIC, COPY, COMPILED = "SDPA flash, deterministic", "a copy", "torch.compile"


def cases(quick: bool) -> list[Case]:
    """In the order of the issue's table."""
    forward = {FLASH: 1.0, CUDNN: 0.62, FLEX: 1.0}
    peers = {FLASH: _sdpa("FLASH_ATTENTION"), CUDNN: _sdpa("CUDNN_ATTENTION"), FLEX: _flex}
    found = [
        Case(f"attention forward, causal, d128, S {length:,}", DEVICE, _dense(length, 128),
             {OURS: _ours, **peers}, forward)
        for length in (4096, 8192, 16_384)
    ]  # fmt: skip
    found.append(
        Case("attention forward, causal, d64, S 4,096", DEVICE, _dense(4096, 64),
             {OURS: _ours, CUDNN: peers[CUDNN]}, {CUDNN: 0.90})
    )  # fmt: skip
    found.append(
        Case(
            "attention backward, causal, d128, S 8,192", DEVICE, _dense(8192, 128),
            {OURS: _backward(_ours), FLASH: _backward(peers[FLASH]),
             DETERMINISTIC: _backward(peers[FLASH], deterministic=True),
             CUDNN: _backward(peers[CUDNN])},
            {FLASH: 0.80, DETERMINISTIC: 1.2, CUDNN: 0.50},
        )
    )  # fmt: skip
    for name, with_prefix in (("packed documents", False), ("conditioning blocks", True)):
        found.append(
            Case(
                f"attention forward, {name}, d128, S 16,384", DEVICE, _documents(with_prefix),
                {OURS: _ours_packed, FLEX: _flex_packed(built_before=True),
                 f"{FLEX}, mask built each time": _flex_packed(built_before=False)},
                {FLEX: 1.0, f"{FLEX}, mask built each time": 2.0},
            )
        )  # fmt: skip
    found.append(
        Case("attention, rate of useful work, packed", DEVICE, _documents(False),
             {OURS: _ours_packed, "own dense causal": _ours}, {"own dense causal": 0.80},
             work=_useful_work)
    )  # fmt: skip
    return [*found, *_other_cases()]


def _other_cases() -> list[Case]:
    return [
        Case("decode attention, 512 MiB of keys and values", DEVICE, _make_cache,
             {OURS: _decode, COPY: _copy_of(_cache_bytes)}, {COPY: 0.80}),
        Case("linear + cross-entropy, exact, V = 184,320, forward and backward", DEVICE, _make_head,
             {OURS: _full_loss, f"{COMPILED}, dense": _dense_loss},
             {f"{COMPILED}, dense": 1 / 1.35}, {f"{COMPILED}, dense": 1 / 10}),
        Case("sliced head, 75 % visual, forward and backward", DEVICE, _make_head,
             {OURS: _sliced_loss, "own full head": _full_loss}, {"own full head": 2.3}),
        Case("sliced decode head, D = 4,096", DEVICE, _make_decode_head,
             {OURS: _sliced_head, "full head": _full_head}, {"full head": 4.0}),
        Case("nearest code, 65,536 × 32, K = 32,768", DEVICE, _make_search,
             {OURS: _nearest, "torch product + argmin": _product_argmin},
             {"torch product + argmin": 5.0}),
        Case("rms_norm with the residual, 16,384 × 4,096", DEVICE, _make_norm,
             {OURS: _norm, COMPILED: _compiled_norm, COPY: _copy_of(_norm_bytes)},
             {COMPILED: 1.0, COPY: 0.80}),
        Case("rope, 40 heads of 128, 16,384 positions", DEVICE, _make_rope,
             {OURS: _rope, COMPILED: _compiled_rope, COPY: _copy_of(_rope_bytes)},
             {COMPILED: 1.0, COPY: 0.80}),
        Case("QK-norm and rope, 16,384 positions, 32 + 2 × 8 heads of 128", DEVICE, _make_heads,
             {OURS: _heads, COMPILED: _compiled_heads, COPY: _copy_of(_heads_bytes)},
             {COMPILED: 1.0, COPY: 0.80}),
        Case("swiglu, 16,384 × 11,008", DEVICE, _make_swiglu,
             {OURS: _swiglu, COMPILED: _compiled_swiglu, COPY: _copy_of(_swiglu_bytes)},
             {COMPILED: 1.0, COPY: 0.80}),
    ]  # fmt: skip


def _randn(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE, dtype=dtype)

    return draw


def _as_triton(call: Thunk) -> Thunk:
    def thunk() -> Any:
        with backend.using("triton"):
            return call()

    return thunk


# --- attention ----------------------------------------------------------------------------------


def _dense(length: int, d_head: int) -> Callable[[bool, int], dict[str, Any]]:
    """B · S = 16,384 and N · K = 2,048, as FlashAttention-3 measures."""

    def make(quick: bool, seed: int) -> dict[str, Any]:
        size, total = (256, 512) if quick else (length, 16_384)
        draw = _randn(seed)
        shape = (total // size, 2048 // d_head, size, d_head)
        return {name: draw(*shape) for name in ("q", "k", "v", "grad")}

    return make


def _ours(inputs: dict[str, Any]) -> Thunk:
    from polyglyph.kernels.attention import attention

    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    return _as_triton(lambda: attention(q, k, v))


def _sdpa(name: str) -> Side:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def side(inputs: dict[str, Any]) -> Thunk:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]

        def call() -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, name)):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        return call

    return side


@cache
def _compiled_flex() -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask)


def _causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def _flex(inputs: dict[str, Any]) -> Thunk:
    attend, build = _compiled_flex()
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    mask = build(_causal, None, None, q.shape[2], k.shape[2], device=DEVICE)
    return lambda: attend(q, k, v, block_mask=mask)


def _backward(side: Side, deterministic: bool = False) -> Side:
    """Only the backward pass of `side`."""

    def backward(inputs: dict[str, Any]) -> Thunk:
        leaves = [inputs[name].detach().requires_grad_() for name in ("q", "k", "v")]
        out = side(dict(zip(("q", "k", "v"), leaves, strict=True)))()

        def call() -> Any:
            torch.use_deterministic_algorithms(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = False
            try:
                return torch.autograd.grad(out, leaves, inputs["grad"])
            finally:
                torch.use_deterministic_algorithms(False)
                torch.utils.deterministic.fill_uninitialized_memory = True

        return call

    return backward


def _documents(with_prefix: bool) -> Callable[[bool, int], dict[str, Any]]:
    """One row of documents of 1,024 to 3,072 ids; each begins with a bidirectional block of 576."""

    def make(quick: bool, seed: int) -> dict[str, Any]:
        from polyglyph.kernels.packing import pack

        length, smallest, largest, block = (
            (512, 60, 200, 32) if quick else (16_384, 1024, 3072, 576)
        )
        draw = _randn(seed)
        found: dict[str, Any] = {name: draw(1, 16, length, 128) for name in ("q", "k", "v")}
        generator = torch.Generator().manual_seed(seed)
        sizes: list[int] = []
        while sum(sizes) < length:
            size = int(torch.randint(smallest, largest, (), generator=generator))
            sizes.append(min(size, length - sum(sizes)))
        doc = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        end = torch.arange(length)
        if with_prefix:
            starts = (torch.tensor(sizes).cumsum(0) - torch.tensor(sizes))[doc]
            inside = end - starts < block
            end = torch.where(inside, starts + block - 1, end)
        found["doc"], found["end"] = doc.int().to(DEVICE), end.int().to(DEVICE)
        prefix = found["end"][None] if with_prefix else None
        found["packing"] = pack(found["doc"][None], prefix)
        return found

    return make


def _ours_packed(inputs: dict[str, Any]) -> Thunk:
    """The packing's vectors are made once for all layers of a forward, so not here."""
    from polyglyph.kernels.attention import attention

    q, k, v, packing = (inputs[name] for name in ("q", "k", "v", "packing"))
    _ = packing.bounds
    return _as_triton(lambda: attention(q, k, v, packing=packing))


def _flex_packed(built_before: bool) -> Side:
    def side(inputs: dict[str, Any]) -> Thunk:
        attend, build = _compiled_flex()
        q, k, v, doc, end = (inputs[name] for name in ("q", "k", "v", "doc", "end"))

        def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
            return (doc[i] == doc[j]) & (j <= torch.maximum(i, end[i]))

        def mask() -> Any:
            return build(visible, None, None, q.shape[2], k.shape[2], device=DEVICE)

        if not built_before:
            return lambda: attend(q, k, v, block_mask=mask())
        built = mask()
        return lambda: attend(q, k, v, block_mask=built)

    return side


def _useful_work(inputs: dict[str, Any]) -> dict[str, float]:
    """Pairs of a query and a key that it sees."""
    length = inputs["q"].shape[2]
    packed = float(inputs["packing"].n_visible())
    return {OURS: packed, "own dense causal": length * (length + 1) / 2}


# --- decoding -----------------------------------------------------------------------------------


def _make_cache(quick: bool, seed: int) -> dict[str, Any]:
    batch, length = (2, 300) if quick else (32, 4096)
    draw = _randn(seed)
    lengths = torch.full((batch,), length, dtype=torch.int32, device=DEVICE)
    k, v = (draw(batch, 8, length, 128) for _ in range(2))
    return {"q": draw(batch, 32, 1, 128), "k": k, "v": v, "lengths": lengths}


def _decode(inputs: dict[str, Any]) -> Thunk:
    from polyglyph.kernels.decode_attention import decode_attention

    return _as_triton(lambda: decode_attention(**inputs))


def _cache_bytes(inputs: dict[str, Any]) -> int:
    return sum(x.numel() * x.element_size() for x in (inputs["k"], inputs["v"]))


def _copy_of(n_bytes: Callable[[Any], int]) -> Side:
    """A copy that moves as many bytes, half of them read and half written."""

    def side(inputs: Any) -> Thunk:
        source = torch.empty(n_bytes(inputs) // 2, dtype=torch.int8, device=DEVICE).random_()
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return side


# --- the head -----------------------------------------------------------------------------------


def _make_head(quick: bool, seed: int) -> tuple[Tensor, ...]:
    """hidden (N, D), weight (V, D), targets, slots, table: three of four positions are visual."""
    n, width, n_text, n_visual = (96, 64, 700, 200) if quick else (16_384, 2048, 151_552, 32_768)
    draw = _randn(seed)
    hidden = draw(n, width).requires_grad_()
    weight = (draw(n_text + n_visual, width) * width**-0.5).requires_grad_()
    slots = (torch.arange(n, device=DEVICE) % 4 > 0).long()
    visual = torch.randint(n_text, n_text + n_visual, (n,), device=DEVICE)
    targets = torch.where(slots == 1, visual, torch.randint(n_text, (n,), device=DEVICE))
    table = torch.zeros(2, 4, 2, dtype=torch.int64, device=DEVICE)
    table[0, 0] = torch.tensor([0, n_text])
    table[1, 0] = torch.tensor([n_text, n_text + n_visual])
    return hidden, weight, targets, slots, table


def _loss_side(full: bool) -> Side:
    def side(inputs: tuple[Tensor, ...]) -> Thunk:
        from polyglyph.kernels.cross_entropy import full_cross_entropy, sliced_cross_entropy

        hidden, weight, targets, slots, table = inputs

        def call() -> Any:
            if full:
                found = full_cross_entropy(hidden, weight, targets)
            else:  # text over the whole vocabulary, as training does by default
                found = sliced_cross_entropy(hidden, weight, targets, slots, table, full_slots=(0,))
            return torch.autograd.grad(found.loss, (hidden, weight))

        return _as_triton(call)

    return side


_full_loss, _sliced_loss = _loss_side(full=True), _loss_side(full=False)


def _plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


@cache
def _compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, dynamic=False)


def _dense_loss(inputs: tuple[Tensor, ...]) -> Thunk:
    hidden, weight, targets = inputs[:3]
    loss = _compiled(_plain_loss)
    return lambda: torch.autograd.grad(loss(hidden, weight, targets), (hidden, weight))


def _make_decode_head(quick: bool, seed: int) -> tuple[Tensor, ...]:
    batch, width, n_text, n_visual = (4, 64, 700, 200) if quick else (16, 4096, 151_552, 32_768)
    draw = _randn(seed)
    table = torch.zeros(1, 4, 2, dtype=torch.int64)
    table[0, 0] = torch.tensor([n_text, n_text + n_visual])
    slots = torch.zeros(batch, dtype=torch.int64)
    return draw(batch, width), draw(n_text + n_visual, width), slots, table


def _sliced_head(inputs: tuple[Tensor, ...]) -> Thunk:
    from polyglyph.kernels.sampling_head import sampling_head

    return _as_triton(lambda: [piece.logits for piece in sampling_head(*inputs)])


def _full_head(inputs: tuple[Tensor, ...]) -> Thunk:
    return lambda: F.linear(inputs[0], inputs[1])


# --- codes --------------------------------------------------------------------------------------


def _make_search(quick: bool, seed: int) -> tuple[Tensor, Tensor]:
    n, size = (300, 500) if quick else (65_536, 32_768)
    draw = _randn(seed)
    return draw(n, 32, dtype=torch.float32), draw(size, 32, dtype=torch.float32)


def _nearest(inputs: tuple[Tensor, Tensor]) -> Thunk:
    from polyglyph.kernels.nearest_code import nearest_code

    return _as_triton(lambda: nearest_code(*inputs))


def _product_argmin(inputs: tuple[Tensor, Tensor]) -> Thunk:
    x, codebook = inputs
    return lambda: (codebook.square().sum(1) - 2 * (x @ codebook.t())).argmin(1)


# --- element by element -------------------------------------------------------------------------


def _make_norm(quick: bool, seed: int) -> tuple[Tensor, ...]:
    draw, shape = _randn(seed), (33, 256) if quick else (16_384, 4096)
    return draw(*shape), draw(*shape), draw(shape[1])


def _norm(inputs: tuple[Tensor, ...]) -> Thunk:
    from polyglyph.kernels.rms_norm import add_rms_norm

    return _as_triton(lambda: add_rms_norm(*inputs))


def _plain_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    wide = total.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    return (wide * scale * weight.float()).to(x.dtype), total


def _compiled_norm(inputs: tuple[Tensor, ...]) -> Thunk:
    return lambda: _compiled(_plain_norm)(*inputs)


def _norm_bytes(inputs: tuple[Tensor, ...]) -> int:
    return 4 * inputs[0].numel() * inputs[0].element_size()


def _make_rope(quick: bool, seed: int) -> tuple[Tensor, ...]:
    from polyglyph.kernels.rope import rope_tables

    length = 65 if quick else 16_384
    return _randn(seed)(1, 40, length, 128), *rope_tables(length, 128, 10_000.0, DEVICE)


def _rope(inputs: tuple[Tensor, ...]) -> Thunk:
    from polyglyph.kernels.rope import rope

    return _as_triton(lambda: rope(*inputs))


def _plain_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def _compiled_rope(inputs: tuple[Tensor, ...]) -> Thunk:
    return lambda: _compiled(_plain_rope)(*inputs)


def _rope_bytes(inputs: tuple[Tensor, ...]) -> int:
    x, cos, sin = inputs
    return 2 * x.numel() * x.element_size() + 4 * (cos.numel() + sin.numel())


def _make_heads(quick: bool, seed: int) -> tuple[Any, ...]:
    from polyglyph.kernels.rope import rope_tables

    n, n_kv, length = (3, 1, 65) if quick else (32, 8, 16_384)
    draw = _randn(seed)
    tables = rope_tables(length, 128, 10_000.0, DEVICE)
    return draw(1, length, (n + 2 * n_kv) * 128), n, n_kv, *tables, draw(128), draw(128)


def _heads(inputs: tuple[Any, ...]) -> Thunk:
    from polyglyph.kernels.heads import heads

    return _as_triton(lambda: heads(*inputs))


def _plain_heads(
    qkv: Tensor, n: int, n_kv: int, cos: Tensor, sin: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    parts = qkv.unflatten(-1, (-1, weights[0].numel())).transpose(1, 2).split((n, n_kv, n_kv), 1)
    q, k = (
        _plain_rope(_plain_norm(part, torch.zeros_like(part), weight)[0], cos, sin)
        for part, weight in zip(parts, weights, strict=False)
    )
    return q, k, parts[2].contiguous()


def _compiled_heads(inputs: tuple[Any, ...]) -> Thunk:
    return lambda: _compiled(_plain_heads)(*inputs)


def _heads_bytes(inputs: tuple[Any, ...]) -> int:
    return 2 * inputs[0].numel() * inputs[0].element_size()


def _make_swiglu(quick: bool, seed: int) -> tuple[Tensor]:
    return (_randn(seed)(*((33, 2 * 96) if quick else (16_384, 2 * 11_008))),)


def _swiglu(inputs: tuple[Tensor]) -> Thunk:
    from polyglyph.kernels.swiglu import swiglu

    return _as_triton(lambda: swiglu(*inputs))


def _plain_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def _compiled_swiglu(inputs: tuple[Tensor]) -> Thunk:
    return lambda: _compiled(_plain_swiglu)(*inputs)


def _swiglu_bytes(inputs: tuple[Tensor]) -> int:
    return inputs[0].numel() * inputs[0].element_size() * 3 // 2
