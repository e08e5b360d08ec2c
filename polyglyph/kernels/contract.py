"""What a kernel shows of itself to the generic tests, the generic benchmark and the gate.

`x.py` has `examples`, inputs at several sizes; `x_triton.py` has `COMPILATIONS`, every shipped
configuration as the compiler sees it without a GPU. Knows no kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One call of a kernel. `call(**inputs)` runs whatever form the backend picks."""

    name: str  # "causal d64 S129"
    call: Callable[..., Any]  # returns a tensor or a tuple of tensors
    inputs: Mapping[str, Any]  # tensors of the asked dtype, fresh from a seeded generator
    reference: Callable[..., Any]  # plain torch, takes the same inputs (in fp64 for floats)
    gradients: tuple[str, ...] = ()  # inputs whose gradients are compared
    n_flops: float = 0.0  # useful ones, forward
    n_bytes: float = 0.0  # that must move at least once, forward
    exact: bool = False  # integers out: equal, not close


@dataclass(frozen=True)
class Compilation:
    """One kernel in one shipped configuration, ready for `triton.compile` without a driver."""

    name: str  # "attention_forward d128 bf16 causal"
    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]  # {"q": "*bf16", "stride": "i32", ...}, constexprs as "constexpr"
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()  # arguments that are multiples of 16 (pointers, strides)
    architectures: tuple[int, ...] = (80, 90)
    opcodes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # {90: ("HGMMA",)}
    enable_fp_fusion: bool = True  # as at launch; triton 3.10 changes the default
