from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polyglyph.kernels import attention as module
from polyglyph.kernels.attention import attention, pack

# Documents of odd lengths, two rows, the second ends in padding.
LENGTHS = [[1, 7, 129, 3, 17], [60, 2, 61, 30, -4]]


def doc_ids() -> Tensor:
    rows = []
    for lengths in LENGTHS:
        runs = [[i if n > 0 else -1] * abs(n) for i, n in enumerate(lengths)]
        rows.append([number for run in runs for number in run])
    return torch.tensor(rows, dtype=torch.int32)


def qkv(batch: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, heads, 6) for heads in (4, 2, 2)]
    return [
        torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for shape in shapes
    ]


def reference(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """The definition: every score, -inf where not visible."""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)) * 6**-0.5
    p = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
    return p @ v


def compare(tensors: list[Tensor], packing: object, visible: Tensor, tolerance: float) -> None:
    torch.manual_seed(0)
    grad = torch.randn(tensors[0].shape, dtype=tensors[0].dtype)
    results = []
    for function in (
        lambda q, k, v: attention(q, k, v, packing=packing),
        lambda q, k, v: reference(q, k, v, visible),
    ):
        out = function(*tensors)
        results.append([out, *torch.autograd.grad(out, tensors, grad)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 17, 127, 129, 300])
def test_causal_equals_the_definition(length: int) -> None:
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    compare(qkv(2, length), None, visible, 1e-9)


def test_packed_equals_the_definition_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = pack(doc_ids())
    tensors = qkv(2, doc_ids().shape[1])
    compare(tensors, packing, packing.mask(), 1e-9)
    monkeypatch.setattr(module, "BLOCK", 13)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 100)
    compare(tensors, packing, packing.mask(), 1e-9)


def test_packed_equals_documents_one_by_one() -> None:
    q, k, v = qkv(2, doc_ids().shape[1], torch.float32)
    out = attention(q, k, v, packing=pack(doc_ids()))
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for n in lengths:
            part = slice(start, start + abs(n))
            single = attention(*(x[row : row + 1, :, part] for x in (q, k, v)))
            expected = single if n > 0 else torch.zeros_like(single)
            torch.testing.assert_close(out[row : row + 1, :, part], expected)
            start += abs(n)


def test_a_document_never_changes_another() -> None:
    q, k, v = (x.detach() for x in qkv(2, doc_ids().shape[1]))
    before = attention(q, k, v, packing=pack(doc_ids()))
    for x in (q, k, v):
        x[0, :, 8:137] = 100.0
    after = attention(q, k, v, packing=pack(doc_ids()))
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0, :, :8], after[0, :, :8])
    assert torch.equal(before[0, :, 137:], after[0, :, 137:])


def test_padding_gives_zero_and_no_gradient() -> None:
    q, k, v = qkv(2, doc_ids().shape[1])
    out = attention(q, k, v, packing=pack(doc_ids()))
    assert not out[1, :, -4:].any()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert torch.isfinite(grad).all() and not grad[1, :, -4:].any()
    nothing = pack(torch.full((2, 5), -1))
    assert not attention(*qkv(2, 5), packing=nothing).any()


def test_bf16_stays_near_fp64() -> None:
    # Scores and probabilities are rounded to 8 bits: relative 2^-8 each, values of size <=4.
    visible = torch.ones(129, 129, dtype=torch.bool).tril()
    exact = qkv(2, 129)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    expected = reference(*(x.detach().double() for x in rounded), visible)
    out = attention(*rounded)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.05)


def test_positions_restart_in_every_document() -> None:
    positions = pack(doc_ids()).positions
    assert positions[0].tolist() == [i for n in LENGTHS[0] for i in range(n)]
    assert positions[1].tolist() == [i for n in LENGTHS[1] for i in range(abs(n))]


def test_wrong_input_is_named() -> None:
    q, k, v = qkv(1, 5)
    with pytest.raises(ValueError, match="contiguous"):
        pack(torch.tensor([[0, 0, 1, 0, 0]]))
    with pytest.raises(ValueError, match="need a mask"):
        attention(q[:, :, :2], k, v)
    with pytest.raises(ValueError, match="dtype"):
        attention(q.float(), k, v)
    with pytest.raises(ValueError, match="doc_id"):
        attention(q, k, v, packing=pack(torch.zeros(1, 4)))
