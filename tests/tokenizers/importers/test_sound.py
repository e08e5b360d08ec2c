"""SEANet's keys in every spelling, stacks of tensors, and sizes of damaged files."""

from __future__ import annotations

import pytest
import torch

from polyglyph.errors import FormatError
from polyglyph.tokenizers.importers.sound import (
    count,
    seanet_keys,
    shape_of,
    stack_of,
    stack_of_normed,
)
from polyglyph.tokenizers.seanet_fixed import SeanetShape

KEYS = seanet_keys(SeanetShape(ratios=(3, 2)))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("encoder.layers.0.conv.bias", "encoder.start.bias"),
        ("encoder.model.1.block.3.conv.conv.weight_v", "encoder.stages.0.units.0.widen.weight@v"),
        ("encoder.layers.4.shortcut.conv.parametrizations.weight.original0",
         "encoder.stages.1.units.0.skip.weight@g"),
        ("encoder.model.6.conv.norm.weight", "encoder.stages.1.down.norm.weight"),
        ("encoder.model.7.lstm.weight_hh_l1", "encoder.lstm.lstm.weight_hh_l1"),
        ("encoder.layers.9.conv.weight", "encoder.end.weight"),
        ("decoder.model.3.convtr.convtr.weight_g", "decoder.stages.0.up.weight@g"),
        ("decoder.layers.7.block.1.conv.bias", "decoder.stages.1.units.0.narrow.bias"),
    ],
)  # fmt: skip
def test_every_spelling_is_our_name(theirs: str, ours: str) -> None:
    assert KEYS.rename(theirs) == ours


def test_stacks_join_their_parts_in_order() -> None:
    parts = [torch.full((2,), float(i)) for i in range(11)]
    merge = stack_of(11)
    assert merge.parts[10] == "10" and torch.equal(merge.join(*parts)[10], parts[10])
    v = torch.randn(3, 4, 1)
    normed = stack_of_normed(1).join(torch.full((3, 1, 1), 2.0), v)
    torch.testing.assert_close(normed.flatten(2).norm(dim=2), torch.full((1, 3), 2.0))


def test_damaged_files_are_refused_in_a_line() -> None:
    state = {"q.0.w": torch.ones(2), "q.2.w": torch.ones(2), "e": torch.ones(0, 3)}
    with pytest.raises(FormatError, match="lack an index"):
        count(state, r"q\.(\d+)\.", "file")
    with pytest.raises(FormatError, match="lacks other"):
        shape_of(state, "other", 2, "file")
    with pytest.raises(FormatError, match="expected 2 sizes"):
        shape_of(state, "e", 2, "file")
