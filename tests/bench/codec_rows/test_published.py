"""Published codecs: both sides as often, and a difference is a tie or counted as wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyglyph.bench.codec_rows import published


def test_both_sides_are_measured_in_turn_and_choose_the_same_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(published, "PEERS", published.PEERS[:1])
    said: list[str] = []
    encode, decode = published.rows(True, said.append)
    assert said == [encode.bench, decode.bench]
    assert encode.bench.endswith("encode") and decode.bench.endswith("decode")
    for row in (encode, decode):
        assert len(row.samples["ours_cpu_s"]) == len(row.samples["theirs_cpu_s"]) == 1
        assert row.value > 0 and not row.at_most
    assert encode.facts["wrong"] == 0 and encode.facts["same"] > 0.99
    assert decode.facts["distance"] < 1e-4 < decode.facts["peak"]


def test_pictures_have_the_codes_and_pixels_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [peer for peer in published.PEERS if "256²" in peer.name]
    monkeypatch.setattr(published, "PEERS", pictures)
    rows = list(published.rows(True, lambda what: None))
    assert len(rows) == 4
    for encode, decode in zip(rows[::2], rows[1::2], strict=True):
        assert encode.facts["wrong"] == 0 and encode.facts["same"] > 0.9
        assert decode.facts["distance"] < 1e-4 < decode.facts["peak"]


def test_every_row_has_a_target_and_a_name_of_its_own() -> None:
    assert len({peer.name for peer in published.PEERS}) == len(published.PEERS)
    assert all(peer.encode or peer.decode for peer in published.PEERS)


def test_a_tie_is_no_mistake_and_what_follows_it_is_not_judged() -> None:
    tables = torch.tensor([[[0.0], [2.0], [9.0]], [[0.5], [-0.5], [4.0]]])
    search = published.residual_search(torch.tensor([[1.0], [8.0]]), tables)
    due = np.array([[0, 2], [0, 1]])
    assert published.agreement(due, due, search) == {"same": 1.0, "ties": 0, "wrong": 0}
    tied = np.array([[1, 2], [1, 1]])  # 1 is as far from 0 as from 2
    assert published.agreement(tied, due, search) == {"same": 0.5, "ties": 1, "wrong": 0}
    bad = np.array([[0, 2], [0, 0]])  # 8 - 9 is nearer to -0.5
    assert published.agreement(bad, due, search) == {"same": 0.75, "ties": 0, "wrong": 1}


def test_drawn_tables_leave_a_choice() -> None:
    latents = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    tables = published.drawn_tables(latents, 3, 16)
    codes = torch.cdist(latents, tables[0]).argmin(-1)
    assert tables.shape == (3, 16, 3) and len(codes.unique()) > 8
