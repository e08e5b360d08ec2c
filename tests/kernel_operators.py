"""Every Triton form as torch sees it: a process of its own, for the interpreter.

Small calls of all public functions, forward and backward, under a mode that keeps each operator's
arguments; then `torch.library.opcheck` of every operator that is registered: its schema is true,
its gradient registered as it must be, its fake tells shapes, strides and dtypes, and tracing it
ahead of time gives the same numbers. A JSON line per operator."""

from __future__ import annotations

import importlib
import json
import sys
import time
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from polyglyph.kernels import TABLE, backend
from polyglyph.kernels.attention import attention, pack
from polyglyph.kernels.cross_entropy import sliced_cross_entropy
from polyglyph.kernels.decode_attention import decode_attention
from polyglyph.kernels.heads import heads
from polyglyph.kernels.nearest_code import ema_sums, nearest_code, residual_codes
from polyglyph.kernels.rms_norm import add_rms_norm, rms_norm
from polyglyph.kernels.rope import rope, rope_tables
from polyglyph.kernels.sampling_head import sampling_head
from polyglyph.kernels.swiglu import swiglu

NAMESPACE = "polyglyph::"
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
)


Calls: TypeAlias = dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]


class Recorder(TorchFunctionMode):
    """The arguments of the first call of each operator, as the forward gives them."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        _keep(self.calls, func, args, kwargs or {}, grad=True)
        return func(*args, **(kwargs or {}))


class RecorderBelow(TorchDispatchMode):
    """The same for what autograd calls in the backward, which needs no gradient itself."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        _keep(self.calls, func, args, kwargs or {}, grad=False)
        return func(*args, **(kwargs or {}))


def _keep(
    calls: Calls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grad: bool
) -> None:
    if isinstance(func, torch._ops.OpOverload) and func.name().startswith(NAMESPACE):
        with torch.no_grad():
            kept = tree_map(partial(_fresh, grad=grad), (args, kwargs))
        calls.setdefault(func.name(), (func, *kept))


def _fresh(x: Any, grad: bool) -> Any:
    if not isinstance(x, Tensor):
        return x
    copy = x.detach().clone(memory_format=torch.preserve_format)
    return copy.requires_grad_(grad and x.requires_grad)


def registered() -> list[str]:
    """Names of all our operators, their modules imported."""
    for target in TABLE.values():
        importlib.import_module(target.partition(":")[0] + "_triton")
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name[:11] == NAMESPACE)


def call_everything() -> None:
    """Forward and, where there is one, backward of each public function, at small odd sizes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def needed(*shape: int) -> Tensor:
        return draw(*shape).requires_grad_()

    q, k, v = (needed(1, 19, n, 24).transpose(1, 2) for n in (4, 2, 2))
    packing = pack(torch.tensor([[0] * 17 + [-1] * 2]), torch.tensor([[4] * 5 + [0] * 14]))
    outs = [attention(q, k, v, packing=packing)]
    table = torch.zeros(2, 4, 2, dtype=torch.int32)
    table[0, 0, 1], table[1, :2] = 40, torch.tensor([[3, 9], [20, 37]])
    slots, targets = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([39, 3, 36, 0, 8])
    outs.append(sliced_cross_entropy(needed(5, 32), needed(40, 32), targets, slots, table).loss)
    cos, sin = rope_tables(5, 16, 10_000.0)
    outs += heads(needed(2, 5, 128), 4, 2, cos, sin, needed(16), needed(16))
    outs.append(rope(needed(2, 3, 5, 16), cos, sin, torch.tensor([[4, 0, 1, 1, 2]] * 2)))
    outs.append(rms_norm(needed(3, 20), needed(20)))
    outs += add_rms_norm(needed(3, 20), needed(3, 20), needed(20))
    outs.append(swiglu(needed(3, 34)))
    torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    decode_attention(draw(2, 4, 1, 32), draw(2, 2, 9, 32), draw(2, 2, 9, 32), lengths)
    sampling_head(draw(4, 32), draw(40, 32), torch.tensor([0, 1]), table, [1.0, 2.0])
    nearest_code(draw(7, 6), draw(19, 6))
    residual_codes(draw(7, 6), draw(2, 19, 6))
    ema_sums(draw(7, 6), torch.tensor([0, 3, 3, 1, 0, 3, 4]), 6)


def main() -> int:
    backend.choose("triton")
    names = registered()
    calls: Calls = {}
    with RecorderBelow(calls), Recorder(calls):
        call_everything()
    for name in names:
        assert name in calls, f"nothing calls {name}"
        began = time.process_time()
        func, args, kwargs = calls[name]
        checks = CHECKS
        if not any(isinstance(x, Tensor) and x.requires_grad for x in args):
            checks = tuple(c for c in CHECKS if c != "test_autograd_registration")
        torch.library.opcheck(func, args, kwargs, test_utils=checks)
        seconds = round(time.process_time() - began, 2)
        print(json.dumps({"operator": name, "checks": checks, "seconds": seconds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
