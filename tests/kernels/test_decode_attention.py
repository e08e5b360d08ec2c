"""Every claim holds for torch's form here, and for Triton's on a GPU or in the interpreter, which
the last test starts in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.decode_attention import decode_attention, definition

HAS_TRITON = backend.has_triton() and (backend.interpreting() or torch.cuda.is_available())
FORMS = ["torch", "triton"] if HAS_TRITON else ["torch"]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with backend.using(request.param):
        yield request.param
    assert backend.calls["decode_attention", request.param]


def device_of(form: str) -> str:
    return "cpu" if form == "torch" or backend.interpreting() else "cuda"


def inputs(
    form: str,
    lengths: list[int],
    n_heads: int = 4,
    n_kv_heads: int = 2,
    length: int = 1,
    d_head: int = 32,
    capacity: int = 0,
) -> dict[str, Tensor]:
    """As a model has them: q of another layout, k and v views of a longer cache, NaN behind."""
    generator = torch.Generator().manual_seed(len(lengths) + d_head)
    capacity = capacity or max(lengths)
    q = torch.randn(len(lengths), length, n_heads, d_head, generator=generator).transpose(1, 2)
    store = torch.randn(2, len(lengths), n_kv_heads, capacity + 3, d_head, generator=generator)
    counts = torch.tensor(lengths, dtype=torch.int32)
    behind = torch.arange(capacity + 3) >= counts.unsqueeze(1)
    store.masked_fill_(behind[:, None, :, None], torch.nan)
    made = {"q": q, "k": store[0, :, :, :capacity], "v": store[1, :, :, :capacity]}
    return {name: x.to(device_of(form)) for name, x in (made | {"lengths": counts}).items()}


def check(given: dict[str, Tensor], **more: Tensor) -> Tensor:
    out = decode_attention(**given, **more)
    wide = {name: x.double().cpu() for name, x in given.items() if name != "lengths"}
    others = {name: x.cpu() for name, x in more.items()}
    expected = definition(**wide, lengths=given["lengths"].cpu(), **others)
    torch.testing.assert_close(out.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    return out


@pytest.mark.parametrize("n_heads", [2, 4, 14])
@pytest.mark.parametrize("d_head", [32, 40, 128, 256])
def test_equals_the_definition_whatever_the_heads(form: str, n_heads: int, d_head: int) -> None:
    check(inputs(form, [17, 129], n_heads, 2, d_head=d_head))


@pytest.mark.parametrize("lengths", [[1], [17, 1], [127, 129, 128], [1000, 256]])
def test_rows_of_any_lengths_read_no_key_behind_them(form: str, lengths: list[int]) -> None:
    check(inputs(form, lengths, capacity=max(lengths) + 50))


def test_rows_without_a_key_are_zero(form: str) -> None:
    out = check(inputs(form, [0, 300, 0]))
    assert not out[0].any() and not out[2].any()
    assert not check(inputs(form, [0, 0], capacity=5)).any()


@pytest.mark.parametrize("length", [2, 40])
def test_several_queries_equal_one_by_one(form: str, length: int) -> None:
    given = inputs(form, [141, 3], 2, 1, length=length)  # the first queries of row 1 see nothing
    out = check(given)
    for t in (0, length - 2, length - 1):
        seen = given["lengths"] - (length - 1 - t)
        one = decode_attention(given["q"][:, :, t : t + 1], given["k"], given["v"], seen)
        torch.testing.assert_close(out[:, :, t : t + 1], one, rtol=1e-5, atol=1e-6)


def test_padding_that_would_lie_behind_the_cache_harms_no_query(form: str) -> None:
    given = inputs(form, [20, 20], length=4)
    out = check(given | {"lengths": given["lengths"] + 2})  # the last three queries see all 20
    last = decode_attention(**(given | {"q": given["q"][:, :, 1:2]}))
    torch.testing.assert_close(out[:, :, 1:2], last)


def test_a_row_has_the_same_bits_in_every_batch(form: str) -> None:
    given = inputs(form, [200, 1000, 257], capacity=1000)
    together = decode_attention(**given)
    for row, n in enumerate(given["lengths"].tolist()):
        alone = {name: x[row : row + 1] for name, x in given.items()}
        alone |= {"k": alone["k"][:, :, :n], "v": alone["v"][:, :, :n]}
        single = decode_attention(**alone)
        torch.testing.assert_close(single, together[row : row + 1])
        if form == "triton":
            assert torch.equal(single, together[row : row + 1])


def test_a_shared_prefix_equals_own_copies_of_it(form: str) -> None:
    given = inputs(form, [400, 300, 130])
    for name in ("k", "v"):
        given[name][1, :, :270] = given[name][0, :, :270]
        given[name][2, :, :129] = given[name][0, :, :129]
    copies = decode_attention(**given)
    for name in ("k", "v"):
        given[name][1, :, :270] = torch.nan
        given[name][2, :, :129] = torch.nan
    shared = torch.tensor([[0, 0], [0, 270], [0, 129]], dtype=torch.int32).to(given["q"].device)
    assert torch.equal(check(given, shared=shared), copies)


def test_half_precision_rounds_once(form: str) -> None:
    given = inputs(form, [129, 300])
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        low = {n: x.to(dtype) if x.is_floating_point() else x for n, x in given.items()}
        out = decode_attention(**low)
        exact = definition(
            **{n: x.double() if x.is_floating_point() else x for n, x in low.items()}
        )
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


def test_a_nan_that_a_row_sees_reaches_its_output_only(form: str) -> None:
    given = inputs(form, [30, 20])
    given["v"][1, :, 3] = torch.nan
    out = decode_attention(**given)
    assert out[1].isnan().all() and out[0].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"q": torch.zeros(2, 4, 32)}, "q must be"),
        ({"q": torch.zeros(2, 4, 0, 32)}, "q must be"),
        ({"q": torch.zeros(2, 4, 1, 32, dtype=torch.int32)}, "q must be of a float"),
        ({"q": torch.zeros(2, 3, 1, 32)}, "q has 3 heads"),
        ({"k": torch.zeros(3, 2, 9, 32)}, "k must be"),
        ({"k": torch.zeros(2, 2, 9, 16)}, "k must be"),
        ({"k": torch.zeros(2, 2, 9, 32).half()}, "k is torch.float16"),
        ({"k": torch.zeros(2, 2, 9, 32, device="meta")}, "k is on meta"),
        ({"k": torch.zeros(2, 2, 32, 9).transpose(2, 3)}, "k must be contiguous"),
        ({"v": torch.zeros(2, 2, 8, 32)}, "v must have"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, "lengths must be int32"),
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, "lengths must be int32"),
        ({"shared": torch.zeros(2, dtype=torch.int32)}, "shared must be int32"),
        ({"shared": torch.tensor([[0, 0], [2, 1]], dtype=torch.int32)}, "shared names row 2"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(changes: dict[str, Tensor], named: str) -> None:
    given = inputs("torch", [9, 5]) | changes
    with pytest.raises(ValueError, match=named):
        decode_attention(**given)


@pytest.mark.skipif(not HAS_TRITON, reason="neither a GPU nor the interpreter")
class TestTriton:
    def arguments(self) -> list[Any]:
        given = inputs("triton", [1000, 17, 513], 7, 1, d_head=64)
        return [given["q"], given["k"], given["v"], given["lengths"], None]

    def test_any_split_is_the_whole(self) -> None:
        op = torch.ops.polyglyph.decode_attention
        with backend.using("triton"):
            decode_attention(*self.arguments()[:4])
        whole = op(*self.arguments(), 1 << 20)
        for split in (64, 128, 256, 512):
            torch.testing.assert_close(op(*self.arguments(), split), whole, rtol=1e-5, atol=1e-6)

    def test_is_an_operator_that_fake_tensors_see(self) -> None:
        with backend.using("triton"):
            decode_attention(*self.arguments()[:4])
        torch.library.opcheck(
            torch.ops.polyglyph.decode_attention.default,
            (*self.arguments(), 256),
            test_utils=("test_schema", "test_faketensor"),
        )

    def test_what_it_does_not_take_is_named(self) -> None:
        with backend.using("triton"):
            given = inputs("triton", [9], d_head=264)
            with pytest.raises(ValueError, match="q has heads of 264"):
                decode_attention(**given)


@pytest.mark.skipif(backend.interpreting() or not backend.has_triton(), reason="no triton")
def test_all_of_it_holds_in_the_interpreter() -> None:
    arguments = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        __file__,
        "-k",
        "triton",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
