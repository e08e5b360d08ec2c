"""Where packed documents lie, against the definition written out pair by pair."""

from __future__ import annotations

import pytest
import torch

from polyglyph.kernels.packing import Packing, pack

DOCUMENTS = torch.tensor([[4, 4, 4, 4, 4, 7, 7, 7, -1, -1], [2, 3, 3, 3, 3, 3, 3, 3, 3, -1]])
PREFIX = torch.tensor([[2, 2, 2, 0, 0, 9, 5, 5, 8, 8], [0, 0, 4, 4, 4, 0, 8, 8, 8, 9]])


def visible(doc: torch.Tensor, prefix: torch.Tensor | None, row: int, i: int, j: int) -> bool:
    if doc[row, i] < 0 or doc[row, i] != doc[row, j]:
        return False
    return j <= (i if prefix is None else max(i, int(prefix[row, i])))


def every_pair(packing: Packing, prefix: torch.Tensor | None) -> torch.Tensor:
    batch, length = packing.doc_id.shape
    found = [
        [[visible(packing.doc_id, prefix, b, i, j) for j in range(length)] for i in range(length)]
        for b in range(batch)
    ]
    return torch.tensor(found)


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["causal", "prefix"])
def test_the_mask_is_the_definition(prefix: torch.Tensor | None) -> None:
    packing = pack(DOCUMENTS, prefix)
    due = every_pair(packing, prefix)
    assert torch.equal(packing.mask()[:, 0], due)
    assert packing.n_visible() == int(due.sum())


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["causal", "prefix"])
def test_the_bounds_say_who_sees_whom(prefix: torch.Tensor | None) -> None:
    packing = pack(DOCUMENTS, prefix)
    due = every_pair(packing, prefix)
    _, last, _, earliest, steady = packing.bounds
    for row, key in (DOCUMENTS >= 0).nonzero().tolist():
        seers = due[row, :, key].nonzero().squeeze(1)
        assert int(earliest[row, key]) == int(seers.min())
        document = (DOCUMENTS[row] == DOCUMENTS[row, key]).nonzero().squeeze(1)
        later = document[document >= int(steady[row, key])]
        assert due[row, later, key].all()
        before = document[document < int(steady[row, key])]
        assert not len(before) or not due[row, before[-1], key]
        assert int(last[row, key]) == int(due[row, key].nonzero().max())


def test_positions_begin_anew_in_every_document() -> None:
    packing = pack(DOCUMENTS)
    assert packing.positions[0, :8].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert packing.positions[1, :9].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]


def test_documents_that_come_back_are_refused() -> None:
    with pytest.raises(ValueError, match="doc_id"):
        pack(torch.tensor([[1, 2, 1]]))
    with pytest.raises(ValueError, match="prefix_end"):
        pack(DOCUMENTS, PREFIX[:, :5])
