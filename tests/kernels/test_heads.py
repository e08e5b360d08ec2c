from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.heads import examples, heads
from polyglyph.kernels.rms_norm import rms_norm
from polyglyph.kernels.rope import rope, rope_tables


@pytest.mark.parametrize("with_norm", [True, False])
def test_heads_equal_norm_and_rotation_apart(with_norm: bool) -> None:
    torch.manual_seed(4)
    n, n_kv, d_head = 4, 2, 6
    qkv = torch.randn(2, 5, (n + 2 * n_kv) * d_head, dtype=torch.float64, requires_grad=True)
    norms = [torch.randn(d_head, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    cos, sin = rope_tables(30, d_head, 100.0)
    positions = torch.tensor([[0, 1, 2, 0, 1], [9, 3, 29, 0, 1]])
    tables = cos[positions], sin[positions]

    def apart(x: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor) -> tuple:
        parts = x.unflatten(-1, (-1, d_head)).transpose(1, 2).split((n, n_kv, n_kv), 1)
        if with_norm:
            parts = rms_norm(parts[0], q_weight), rms_norm(parts[1], k_weight), parts[2]
        return rope(parts[0], *tables), rope(parts[1], *tables), parts[2]

    def together(x: torch.Tensor, *weights: torch.Tensor) -> tuple:
        return heads(x, n, n_kv, *tables, *(weights if with_norm else ()))

    results = []
    for function in (apart, together):
        out = function(qkv, *norms)
        loss = sum((part * i).sin().sum() for i, part in enumerate(out, 1))
        inputs = (qkv, *norms) if with_norm else (qkv,)
        results.append([*out, *torch.autograd.grad(loss, inputs)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        for expected, got in zip(results[0], together(qkv, *norms)):
            torch.testing.assert_close(got, expected)


def test_axes_equal_norm_and_rotation_apart() -> None:
    torch.manual_seed(5)
    qkv = torch.randn(2, 5, 4 * 6, dtype=torch.float64)
    weight = torch.randn(6, dtype=torch.float64)
    tables = [table.double() for table in rope_tables(30, 6, 100.0)]
    positions, sections = torch.randint(30, (3, 2, 5)), (1, 1, 1)
    q, k, v = heads(qkv, 2, 1, *tables, weight, weight, 1e-6, positions, sections)
    parts = qkv.unflatten(-1, (-1, 6)).transpose(1, 2)
    for got, part in ((q, parts[:, :2]), (k, parts[:, 2:3])):
        expected = rope(rms_norm(part, weight), *tables, positions, sections)
        torch.testing.assert_close(got, expected)
    assert torch.equal(v, parts[:, 3:])


def test_bad_input_is_named() -> None:
    x, (cos, sin), one = torch.zeros(2, 4, 24), rope_tables(4, 6, 100.0), torch.ones(6)
    cases = [
        ("positive", (x, 0, 1, cos, sin)),
        ("qkv must be", (x[0], 2, 1, cos, sin)),
        ("qkv must be", (x, 3, 1, cos, sin)),
        ("both", (x, 2, 1, cos, sin, one)),
        ("q_weight", (x, 2, 1, cos, sin, one[:5], one)),
        ("k_weight", (x, 2, 1, cos, sin, one, one.to("meta"))),
        ("floating point", (x.int(), 2, 1, cos, sin)),
        ("cos and sin", (x, 2, 1, cos[:3], sin[:3])),
        ("0..3", (x, 2, 1, cos, sin, one, one, 1e-6, torch.arange(1, 5))),
    ]
    for named, arguments in cases:
        with pytest.raises(ValueError, match=named):
            heads(*arguments)


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones() -> None:
    pytest.importorskip("triton")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from polyglyph.kernels.heads_triton import heads_triton

    for example in examples("test", torch.float16, "cpu", 0):
        real = example.call(**example.inputs)
        with FakeTensorMode() as mode:
            given = {
                name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                for name, value in example.inputs.items()
            }
            wanted = [given[name].requires_grad_() for name in example.gradients]
            fake = heads_triton(
                given["qkv"],
                given["cos"],
                given["sin"],
                given.get("positions"),
                given.get("sections"),
                (given.get("q_weight"), given.get("k_weight")),
                (given["n_heads"], given["n_kv_heads"]),
                1e-6,
            )
            grads = torch.autograd.grad([part.sum() for part in fake], wanted)
        assert [(o.shape, o.dtype) for o in fake] == [(o.shape, o.dtype) for o in real]
        assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in wanted]
