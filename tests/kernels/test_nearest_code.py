from __future__ import annotations

import pytest
import torch

from polyglyph.kernels import nearest_code as module
from polyglyph.kernels.nearest_code import ema_sums, nearest_code, residual_codes


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "n, k, d", [(1, 1, 1), (129, 37, 5), (1000, 513, 17), (33, 70, 256), (1, 129, 4)]
)
def test_equals_brute_force_in_fp64(metric: str, n: int, k: int, d: int) -> None:
    torch.manual_seed(0)
    x, codebook = torch.randn(n, d) + 0.5, torch.randn(k, d) + 0.5
    a, b = x.double(), codebook.double()
    if metric == "cosine":
        a, b = torch.nn.functional.normalize(a), torch.nn.functional.normalize(b)
    distances = (a[:, None] - b[None]).square().sum(-1)
    codes, found = nearest_code(x, codebook, metric=metric, distances=True)
    assert torch.equal(codes, distances.argmin(1))
    assert torch.equal(codes, nearest_code(x, codebook, metric=metric))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), distances.amin(1), rtol=1e-5, atol=1e-7)


def test_chunks_equal_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    x, codebook = torch.randn(101, 7), torch.randn(13, 7)
    whole = nearest_code(x, codebook)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 40)
    assert torch.equal(nearest_code(x, codebook), whole)


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[4.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -4.0]])
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-3.0, 1.0]])
    assert nearest_code(x, codebook).tolist() == [1, 1, 2]
    torch.manual_seed(2)
    twice = torch.randn(129, 31).repeat(2, 1)
    assert nearest_code(twice, twice).max() < 129


def test_autocast_does_not_lower_the_precision() -> None:
    torch.manual_seed(3)
    x, codebook = torch.randn(257, 9), torch.randn(301, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(x, codebook), nearest_code(x, codebook))
        inside = nearest_code(x, codebook)
    assert torch.equal(inside, nearest_code(x, codebook))


def test_a_vector_that_is_a_code_is_at_no_distance_and_strides_do_not_matter() -> None:
    torch.manual_seed(4)
    codebook = torch.randn(14, 45)[::2, ::5]
    rows = torch.tensor([3, 0, 6, 3])
    codes, distances = nearest_code(codebook[rows], codebook, distances=True)
    assert codes.tolist() == rows.tolist() and not distances.any()
    x = torch.randn(9, 66).t()[:20:2]
    assert torch.equal(nearest_code(x, codebook), nearest_code(x.contiguous(), codebook))


@pytest.mark.parametrize("n, q, k, d", [(1, 1, 1, 1), (129, 4, 37, 5), (67, 3, 130, 256)])
def test_residual_codes_are_those_of_the_loop_in_fp64(n: int, q: int, k: int, d: int) -> None:
    torch.manual_seed(5)
    x, codebooks = torch.randn(n, d), torch.randn(q, k, d) * 0.7
    codes, quantized = residual_codes(x, codebooks)
    left, expected = x.double(), []
    for book in codebooks.double():
        expected.append((left[:, None] - book).square().sum(-1).argmin(1))
        left = left - book[expected[-1]]
    assert torch.equal(codes, torch.stack(expected, 1))
    torch.testing.assert_close(quantized.double(), x.double() - left, rtol=1e-5, atol=1e-5)
    first, _ = residual_codes(x, codebooks[:1])
    assert torch.equal(first, codes[:, :1])


def test_sums_by_code_are_the_product_with_one_hot_codes() -> None:
    torch.manual_seed(6)
    x, codes = torch.randn(501, 33), torch.randint(0, 7, (501,)) * 2
    counts, sums = ema_sums(x, codes, 15)
    one_hot = torch.nn.functional.one_hot(codes, 15).double()
    assert counts.tolist() == one_hot.sum(0).tolist()
    torch.testing.assert_close(sums.double(), one_hot.t() @ x.double(), rtol=1e-5, atol=1e-5)
    assert not sums[1::2].any()
    counts, sums = ema_sums(x[:0], codes[:0], 3)
    assert counts.tolist() == [0, 0, 0] and sums.shape == (3, 33) and not sums.any()
    for wrong in (codes - 1, codes + 3):
        with pytest.raises(ValueError, match="codes reach"):
            ema_sums(x, wrong, 15)
    with pytest.raises(ValueError, match="codes must be"):
        ema_sums(x, codes[1:], 15)


def test_fake_tensors_see_the_operators() -> None:
    pytest.importorskip("triton")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from polyglyph.kernels import nearest_code_triton as triton_form

    with FakeTensorMode():
        x, books = torch.empty(17, 5), torch.empty(3, 7, 5)
        codes = triton_form.nearest_code_triton(x, books[0], torch.empty(7))
        assert codes.shape == (17,) and codes.dtype == torch.int64
        codes, quantized = triton_form.residual_codes_triton(x, books, torch.empty(3, 7))
        assert codes.shape == (17, 3) and quantized.shape == (17, 5)
        counts, sums = triton_form.ema_sums_triton(x, codes[:, 0], 7)
        assert counts.dtype == torch.int64 and sums.shape == (7, 5)


def test_no_vectors_give_no_codes_and_wrong_input_is_named() -> None:
    assert nearest_code(torch.zeros(0, 3), torch.zeros(5, 3)).shape == (0,)
    with pytest.raises(ValueError, match="metric"):
        nearest_code(torch.zeros(1, 3), torch.zeros(5, 3), metric="manhattan")
    with pytest.raises(ValueError, match="codebook"):
        nearest_code(torch.zeros(1, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="codebook"):
        nearest_code(torch.zeros(1, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="codebook on meta"):
        nearest_code(torch.zeros(1, 3), torch.zeros(5, 3, device="meta"))
    with pytest.raises(ValueError, match="x and codebook must be float"):
        nearest_code(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="codebooks"):
        residual_codes(torch.zeros(1, 3), torch.zeros(0, 5, 3))
    codes, quantized = residual_codes(torch.zeros(0, 3), torch.zeros(2, 5, 3))
    assert codes.shape == (0, 2) and quantized.shape == (0, 3)
