"""Every claim holds for torch's form here, and for Triton's on a GPU or in the interpreter, which
the last test starts in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyglyph.kernels import backend
from polyglyph.kernels.sampling_head import mix_guidance, sampling_head

HAS_TRITON = backend.has_triton() and (backend.interpreting() or torch.cuda.is_available())
FORMS = ["torch", "triton"] if HAS_TRITON else ["torch"]
V, D = 301, 33
TABLE = torch.tensor(
    [
        [[0, 129], [0, 0], [0, 0], [0, 0]],
        [[0, 1], [3, 20], [130, 257], [300, 301]],
        [[5, 6], [0, 0], [0, 0], [0, 0]],
        [[2, 4], [4, 9], [9, 9], [40, 41]],
    ],
    dtype=torch.int32,
)
SLOTS = torch.tensor([1, 0, 3, 1, 2, 1])


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with backend.using(request.param):
        yield request.param
    assert backend.calls["sampling_head", request.param]


def inputs(form: str, n_rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_rows)
    device = "cpu" if form == "torch" or backend.interpreting() else "cuda"
    made = [torch.randn(n, D, generator=generator).to(dtype).to(device) for n in (n_rows, V)]
    return made[0], made[1]


def legal(slot: int) -> list[int]:
    return [id for start, stop in TABLE[slot].tolist() for id in range(start, stop)]


def test_equals_the_legal_columns_of_the_full_head(form: str) -> None:
    hidden, weight = inputs(form, len(SLOTS))
    full = hidden @ weight.t()
    seen = []
    for part in sampling_head(hidden, weight, SLOTS, TABLE):
        rows, ids = list(part.rows), legal(int(SLOTS[part.rows[0]]))
        assert len({int(SLOTS[row]) for row in rows}) == 1
        assert part.ids_of(range(part.logits.shape[1])) == ids
        torch.testing.assert_close(part.logits, full[rows][:, ids], rtol=1e-5, atol=1e-5)
        seen += rows
    assert sorted(seen) == list(range(len(SLOTS))) and seen[0] == 0


@pytest.mark.parametrize("guidance", [0.0, 0.4, 3.0])
def test_guidance_is_that_of_the_masked_full_head(form: str, guidance: float) -> None:
    n = len(SLOTS)
    hidden, weight = inputs(form, 2 * n)
    pieces = sampling_head(hidden, weight, SLOTS, TABLE, [guidance, guidance, 1.0, guidance])
    full = (hidden @ weight.t()).double()
    for part in pieces:
        rows = torch.tensor(part.rows)
        slot = int(SLOTS[part.rows[0]])
        mask = torch.full((V,), -torch.inf, dtype=torch.float64, device=full.device)
        mask[legal(slot)] = 0.0
        own, other = (full[rows + shift] + mask for shift in (0, n))
        expected = own.softmax(-1) ** guidance * other.softmax(-1) ** (1 - guidance)
        if slot == 2:
            expected = own.softmax(-1)
        expected = expected.nan_to_num(0.0)[:, legal(slot)]
        got = part.logits.double().softmax(-1)
        torch.testing.assert_close(got, expected / expected.sum(-1, True), rtol=1e-4, atol=1e-7)


def test_unguided_slots_do_not_read_their_unconditional_rows(form: str) -> None:
    hidden, weight = inputs(form, 2 * len(SLOTS))
    hidden[len(SLOTS) :] = torch.nan
    pieces = sampling_head(hidden, weight, SLOTS, TABLE, [1.0] * 4)
    plain = sampling_head(hidden[: len(SLOTS)], weight, SLOTS, TABLE)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(pieces, plain, strict=True))


def test_only_legal_rows_of_the_head_are_read(form: str) -> None:
    hidden, weight = inputs(form, len(SLOTS))
    read = torch.zeros(V, dtype=torch.bool)
    for slot in range(len(TABLE)):
        read[legal(slot)] = True
    before = sampling_head(hidden, weight, SLOTS, TABLE)
    weight[~read] = torch.nan
    after = sampling_head(hidden, weight, SLOTS, TABLE)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(before, after, strict=True))


def test_a_row_alone_equals_the_row_in_a_batch(form: str) -> None:
    hidden, weight = inputs(form, 40)
    slots = torch.arange(40) % 2
    for part in sampling_head(hidden, weight, slots, TABLE):
        row = part.rows[3]
        (alone,) = sampling_head(hidden[row : row + 1], weight, slots[row : row + 1], TABLE)
        torch.testing.assert_close(alone.logits[0], part.logits[3], rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_logits_in_fp32(form: str) -> None:
    for dtype, tolerance in ((torch.float16, 1e-2), (torch.bfloat16, 1e-1)):
        hidden, weight = inputs(form, 3, dtype)
        (part,) = sampling_head(hidden.float(), weight, np.zeros(3, int), TABLE.numpy())
        exact = (hidden.double() @ weight.double().t())[:, legal(0)]
        assert part.logits.dtype == torch.float32
        torch.testing.assert_close(part.logits.double(), exact, rtol=tolerance, atol=tolerance)


def test_guidance_mixes_normalised_slices() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5)
    torch.testing.assert_close(mix_guidance(a, b, 1.0), a.log_softmax(-1))
    torch.testing.assert_close(mix_guidance(a, b, 0.0), b.log_softmax(-1))
    mixed = mix_guidance(a, b, 3.0).softmax(-1)
    expected = a.softmax(-1) ** 3 / b.softmax(-1) ** 2
    torch.testing.assert_close(mixed, expected / expected.sum(-1, keepdim=True))
    torch.testing.assert_close(mix_guidance(a + 7, b - 2, 3.0), mix_guidance(a, b, 3.0))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden": torch.zeros(6)}, "hidden must be"),
        ({"hidden": torch.zeros(6, D, dtype=torch.int64)}, "hidden must be"),
        ({"weight": torch.zeros(V, D + 1)}, "weight must be"),
        ({"weight": torch.zeros(V, D, device="meta")}, "weight is on meta"),
        ({"slots": torch.zeros(5, dtype=torch.int64)}, r"slots must be \(6,\)"),
        ({"slots": torch.tensor([0, 0, 0, 0, 0, 4])}, "slots: row 5 names slot 4 of 4"),
        ({"slots": torch.tensor([0, -1, 0, 0, 0, 0])}, "slots: row 1 names slot -1"),
        ({"slot_table": TABLE[0]}, "slot_table must be"),
        ({"slot_table": TABLE * 2}, "slot_table: slot 1 spans ids 0 to 601"),
        ({"slot_table": TABLE.flip(1)}, "slot_table: ranges must ascend"),
        ({"slot_table": torch.zeros(4, 4, 2, dtype=torch.int32)}, "slot 1 of row 0 holds no id"),
        ({"guidance": [1.0] * 4}, r"slots must be \(3,\).* with guidance"),
        ({"guidance": [1.0] * 3, "hidden": torch.zeros(12, D)}, "guidance must have a number"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], named: str) -> None:
    hidden, weight = inputs("torch", len(SLOTS))
    given = {"hidden": hidden, "weight": weight, "slots": SLOTS, "slot_table": TABLE} | changes
    with pytest.raises(ValueError, match=named):
        sampling_head(**given)


@pytest.mark.skipif(not HAS_TRITON, reason="neither a GPU nor the interpreter")
class TestTriton:
    def test_is_an_operator_that_fake_tensors_see(self) -> None:
        hidden, weight = inputs("triton", 2)
        with backend.using("triton"):
            (part,) = sampling_head(hidden, weight, torch.tensor([3, 3]), TABLE)
        plan = [0, 1, 0, 2, 0, 8, 2, 7, 40, 1, 0, 0, 0, 0]
        arguments = (hidden, weight, torch.tensor(plan, device=hidden.device))
        arguments += (torch.zeros(0, device=hidden.device), [2, 1, 2, 8], 16)
        op = torch.ops.polyglyph.sampling_head.default
        assert torch.equal(op(*arguments).view(2, 8), part.logits)
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))

    def test_more_ranges_than_a_slot_has_are_named(self) -> None:
        table = torch.tensor([[[i, i + 1] for i in range(0, 10, 2)]])
        with backend.using("triton"), pytest.raises(ValueError, match="slot_table: a slot has 5"):
            sampling_head(*inputs("triton", 1), torch.tensor([0]), table)


@pytest.mark.skipif(backend.interpreting() or not backend.has_triton(), reason="no triton")
def test_all_of_it_holds_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "triton"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
