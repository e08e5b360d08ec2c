from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from polyglyph.kernels import attention as module
from polyglyph.kernels.attention import attention, examples, pack, reference
from polyglyph.kernels.packing import Packing

# Documents of odd lengths, two rows, the second ends in padding.
LENGTHS = [[1, 7, 129, 3, 17], [60, 2, 61, 30, -4]]


def doc_ids() -> Tensor:
    rows = []
    for lengths in LENGTHS:
        runs = [[i if n > 0 else -1] * abs(n) for i, n in enumerate(lengths)]
        rows.append([number for run in runs for number in run])
    return torch.tensor(rows, dtype=torch.int32)


def prefix_ends() -> Tensor:
    """A block over a tile's edge, one that starts its document, ends in no order, and ends beyond
    the document and the row."""
    ends = torch.arange(157).repeat(2, 1)
    ends[0, 20:90] = 89
    ends[0, 137:139] = 10_000
    ends[1, :31] = 30
    ends[1, 70:100] = torch.arange(70, 100) * 37 % 157
    ends[1, 130:] = -5
    return ends.int()


def qkv(batch: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, heads, 6) for heads in (4, 2, 2)]
    return [
        torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for shape in shapes
    ]


def compare(
    tensors: list[Tensor], documents: tuple[Tensor, ...] = (), tolerance: float = 1e-9, **rule
) -> None:
    """attention against its definition: out, lse and the gradients through both."""
    packing = pack(*documents) if documents else None
    generator = torch.Generator().manual_seed(0)
    shape = tensors[0].shape
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, shape[:3])]
    results = []
    for out, lse in (
        attention(*tensors, packing=packing, return_lse=True, **rule),
        reference(*tensors, *documents, **rule),
    ):
        grads = torch.autograd.grad([out, lse], tensors, [w.to(out.dtype) for w in weights])
        results.append([out, lse, *grads])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 17, 127, 129, 300])
def test_causal_equals_the_definition(length: int) -> None:
    compare(qkv(2, length))


@pytest.mark.parametrize(
    "rule",
    [{}, {"window": 0}, {"window": 20}, {"softcap": 2.0}, {"window": 131, "softcap": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("prefixed", [False, True])
def test_packed_equals_the_definition(prefixed: bool, rule: dict) -> None:
    documents = (doc_ids(), prefix_ends()) if prefixed else (doc_ids(),)
    compare(qkv(2, 157), documents, **rule)


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 13)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 100)
    compare(qkv(2, 157), (doc_ids(),))
    compare(qkv(2, 157), (doc_ids(), prefix_ends()), window=20)
    compare(qkv(1, 60), window=7, softcap=1.0)


def test_scale_is_that_of_the_caller() -> None:
    q, k, v = qkv(1, 33)
    expected = attention(q * 0.7 * 6**0.5, k, v)
    torch.testing.assert_close(attention(q, k, v, scale=0.7), expected, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    doc_id = torch.tensor([[0, 0, 0, 0, 0, 4, 4, -1]])
    packing = pack(doc_id, torch.tensor([[2, 2, 2, 3, 4, 6, 6, 7]]))
    tensors = qkv(1, 8)

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rule = {"window": 3, "softcap": 1.5, "return_lse": True}
        out, lse = attention(q, k, v, packing=packing, **rule)
        return out, lse[:, :, :7]

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradcheck(lambda *x: attention(*x, packing=packing), tensors)


@pytest.mark.parametrize("prefixed", [False, True])
def test_packed_equals_documents_one_by_one(prefixed: bool) -> None:
    tensors = qkv(2, 157, torch.float32)
    ends = prefix_ends() if prefixed else None
    out = attention(*tensors, packing=pack(doc_ids(), ends))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(out, tensors, grad)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for n in lengths:
            part = (slice(row, row + 1), slice(None), slice(start, start + abs(n)))
            alone = [x[part].detach().requires_grad_() for x in tensors]
            packing = None
            if ends is not None:
                packing = pack(torch.zeros(1, abs(n)).int(), ends[row, part[2]][None] - start)
            single = attention(*alone, packing=packing)
            due = [single, *torch.autograd.grad(single, alone, grad[part])]
            for whole, expected in zip((out, *grads), due, strict=True):
                expected = expected if n > 0 else torch.zeros_like(expected)
                torch.testing.assert_close(whole[part], expected, rtol=1e-6, atol=1e-6)
            start += abs(n)


@pytest.mark.parametrize("prefixed", [False, True])
def test_a_document_never_changes_another(prefixed: bool) -> None:
    packing = pack(doc_ids(), prefix_ends() if prefixed else None)
    grad = torch.randn(2, 4, 157, 6, generator=torch.Generator().manual_seed(1)).double()

    def run(change: bool) -> list[Tensor]:
        tensors = [x.detach().clone() for x in qkv(2, 157)]
        for x in (*tensors, grad) if change else ():
            x[0, :, 8:137] = 100.0
        tensors = [x.requires_grad_() for x in tensors]
        out = attention(*tensors, packing=packing)
        return [out, *torch.autograd.grad(out, tensors, grad)]

    for before, after in zip(run(False), run(True), strict=True):
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[0, :, :8], after[0, :, :8])
        assert torch.equal(before[0, :, 137:], after[0, :, 137:])
        assert not torch.equal(before[0, :, 8:137], after[0, :, 8:137])


def test_a_row_that_sees_nothing_gives_zero_and_no_gradient() -> None:
    q, k, v = qkv(2, 157)
    for ends in (None, prefix_ends()):
        out, lse = attention(q, k, v, packing=pack(doc_ids(), ends), return_lse=True)
        assert not out[1, :, -4:].any()
        assert lse[1, :, -4:].isneginf().all() and lse[0].isfinite().all()
        for grad in torch.autograd.grad(out.sum() + lse.sum(), (q, k, v)):
            assert torch.isfinite(grad).all() and not grad[1, :, -4:].any()
    nothing = pack(torch.full((2, 5), -1))
    tensors = qkv(2, 5)
    out, lse = attention(*tensors, packing=nothing, return_lse=True)
    assert not out.any() and lse.isneginf().all() and lse.shape == (2, 4, 5)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), tensors))


def test_bf16_stays_near_fp64() -> None:
    # Scores and probabilities are rounded to 8 bits: relative 2^-8 each, values of size <=4.
    rounded = [x.detach().bfloat16().requires_grad_() for x in qkv(2, 129)]
    expected, expected_lse = reference(*(x.detach().double() for x in rounded))
    out, lse = attention(*rounded, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=0.05)


def test_masked_bf16_is_as_exact_as_torch_on_the_documents_alone() -> None:
    # What users of document masks have compared and found wrong elsewhere (pytorch #163588).
    q, k, v = (x.detach().bfloat16() for x in qkv(2, 157))
    out = attention(q, k, v, packing=pack(doc_ids()))[:1, :, 8:137]
    exact = attention(q.double(), k.double(), v.double(), packing=pack(doc_ids()))[:1, :, 8:137]
    parts = [x[:1, :, 8:137] for x in (q, k, v)]
    torchs = torch.nn.functional.scaled_dot_product_attention(
        *parts, is_causal=True, enable_gqa=True
    )
    assert (out - exact).norm() <= 2 * (torchs - exact).norm()


def test_strides_of_any_kind_give_the_same() -> None:
    q, k, v = (x.detach() for x in qkv(2, 157))
    packing = pack(doc_ids())
    expected = attention(q, k, v, packing=packing)
    backwards = [x.flip(3).contiguous().flip(3) for x in (q, k, v)]
    last_first = [x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for x in (q, k, v)]
    joined = torch.cat([q, k, v], 1)
    for other in (backwards, last_first, joined.split([4, 2, 2], 1)):
        assert torch.equal(attention(*other, packing=packing), expected)
    one = k[:, :1].expand(-1, 2, -1, -1)
    assert torch.equal(attention(q, one, one), attention(q, one.clone(), one.clone()))


def test_positions_restart_in_every_document() -> None:
    positions = pack(doc_ids()).positions
    assert positions[0].tolist() == [i for n in LENGTHS[0] for i in range(n)]
    assert positions[1].tolist() == [i for n in LENGTHS[1] for i in range(abs(n))]


@pytest.mark.parametrize("prefixed", [False, True])
def test_bounds_say_what_the_whole_mask_says(prefixed: bool) -> None:
    packing = pack(doc_ids(), prefix_ends() if prefixed else None)
    visible = packing.mask()[:, 0]  # (B, T, S)
    first, last, stop, earliest, steady = packing.bounds.unbind(0)
    assert packing.bounds.dtype == torch.int32
    places = torch.arange(157)
    by_bounds = (first[:, :, None] <= places) & (places <= last[:, :, None])
    assert torch.equal(by_bounds, visible)
    assert packing.n_visible() == int(visible.sum())
    for row in range(2):
        for key in range(157):
            seen_by = visible[row, :, key].nonzero()[:, 0].tolist()
            if not seen_by:
                assert earliest[row, key] == steady[row, key] == 157 and stop[row, key] == 0
                continue
            assert earliest[row, key] == seen_by[0] and stop[row, key] == seen_by[-1] + 1
            run = [query for query in seen_by if query >= int(steady[row, key])]
            assert run == list(range(int(steady[row, key]), seen_by[-1] + 1))
            assert int(steady[row, key]) - 1 not in seen_by


def test_useful_work_is_counted_within_the_window() -> None:
    packing = pack(doc_ids(), prefix_ends())
    places = torch.arange(157)
    near = places >= places[:, None] - 20
    assert packing.n_visible(20) == int((packing.mask()[:, 0] & near).sum())


def test_examples_of_every_size_are_well_formed() -> None:
    for size in ("test", "cpu"):
        for example in examples(size, torch.float32, "cpu", 0):
            assert example.n_flops > 0 and example.n_bytes > 0
            assert set(example.gradients) <= set(example.inputs)
    assert len({example.name for example in examples("test", torch.float32, "cpu", 0)}) == 7


def refuse(argument: str, *tensors: Tensor, **options: object) -> None:
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        attention(*tensors, **options)


def test_wrong_tensors_are_named() -> None:
    q, k, v = (x.detach() for x in qkv(1, 5))
    refuse("need a mask", q[:, :, :2], k, v)
    refuse("k must have q's dtype", q.float(), k, v)
    refuse("v must have q's dtype", q, k, v.float())
    refuse("v must be on q's device", q, k, v.to("meta"))
    refuse("q", *(x.int() for x in (q, k, v)))
    refuse("q", q[:, :, :0], k[:, :, :0], v[:, :, :0])
    refuse("q", *(x[..., :0] for x in (q, k, v)))
    refuse("q", q[:0], k[:0], v[:0])
    refuse("k", q, k[:, :0], v[:, :0])
    refuse("q: a head size of 257", *(torch.zeros(1, 1, 2, 257) for _ in range(3)))
    refuse("expected q", q[0], k[0], v[0])
    refuse("expected q", q, k[..., :4], v[..., :4])
    refuse("heads", q[:, :3], k, v)


def test_wrong_options_are_named() -> None:
    q, k, v = (x.detach() for x in qkv(1, 5))
    packing = pack(torch.zeros(1, 5).int())
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    refuse("doc_id", q, k, v, packing=pack(torch.zeros(1, 4).int()))
    refuse("doc_id", q, k, v, packing=pack(torch.zeros(2, 5).int()))
    refuse("packing or mask", q, k, v, packing=packing, mask=mask)
    refuse("mask", q, k, v, mask=mask.double())
    refuse("window", q, k, v, mask=mask, window=3)
    refuse("window", q, k, v, window=-1)
    refuse("softcap", q, k, v, softcap=0.0)
    refuse("scale", q, k, v, scale=0.0)
    refuse("scale", q, k, v, scale=float("nan"))


def test_wrong_documents_are_named() -> None:
    zeros = torch.zeros(1, 5).int()
    for name, arguments in {
        "contiguous": (torch.tensor([[0, 0, 1, 0, 0]]),),
        "doc_id must hold integers": (zeros.float(),),
        "doc_id must be": (zeros[0],),
        "doc_id must be ": (zeros[:, :0],),
        "prefix_end must hold integers": (zeros, zeros.float()),
        "prefix_end is": (zeros, zeros[:, :4]),
        "prefix_end is ": (zeros, zeros.to("meta")),
    }.items():
        with pytest.raises(ValueError, match=name.strip()):
            pack(*arguments)


def test_a_packing_is_made_of_what_the_caller_gave() -> None:
    packing = pack(doc_ids(), prefix_ends())
    assert isinstance(packing, Packing) and packing.doc_id.shape == (2, 157)
    assert len(packing.buckets) > 1 and packing.inverse.shape == (314,)


OPERATOR = """
import torch
from polyglyph.kernels import backend
from polyglyph.kernels.attention import attention, pack
from polyglyph.kernels.attention_triton import backward_op, forward_op

backend.choose("triton")
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, 19, n, 24, generator=generator).transpose(1, 2) for n in (4, 2, 2))
doc_id = torch.tensor([[0] * 7 + [5] * 10 + [-1] * 2])
packing = pack(doc_id, torch.tensor([[4] * 7 + list(range(7, 19))]))
needs = [x.clone().requires_grad_() for x in (q, k, v)]
tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
torch.library.opcheck(forward_op, (*needs, packing.bounds, 0.2, 19, 0.0), test_utils=tests)

def run(q, k, v):
    return attention(q, k, v, packing=packing)

grads = [torch.autograd.grad(run(*needs).square().sum(), needs) for _ in range(2)]
assert all(torch.equal(a, b) for a, b in zip(*grads)), "not deterministic"
compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
assert torch.equal(compiled(q, k, v), run(q, k, v))
wide = torch.cat([q, k, v], 1).permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
assert torch.equal(run(*wide.split([4, 2, 2], 1)), run(q, k, v))
assert backend.calls["attention", "triton"] >= 5, backend.calls
"""


def test_torch_sees_the_triton_form_as_an_operator() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OPERATOR], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
