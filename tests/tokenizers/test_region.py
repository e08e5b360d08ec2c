"""Region codec: bins, half a bin of error, refusal of what is no region."""

from __future__ import annotations

import numpy as np
import pytest

from polyglyph.errors import FormatError, InputError
from polyglyph.media import Region
from polyglyph.tokenizers.base import CodeGrid, RegionMeta
from polyglyph.tokenizers.region import RegionConfig, RegionTokenizer, from_bins, to_bins


@pytest.mark.parametrize(("kind", "n"), [("box", 4), ("point", 2), ("time", 2)])
@pytest.mark.parametrize("n_bins", [7, 64])
def test_a_round_trip_is_off_by_at_most_half_a_bin(kind: str, n: int, n_bins: int) -> None:
    tokenizer = RegionTokenizer(RegionConfig(n_bins=n_bins))
    rng = np.random.default_rng(0)
    for values in [*rng.random((50, n)), np.zeros(n), np.ones(n)]:
        grid = tokenizer.encode(Region(values.astype(np.float32), kind))
        back = tokenizer.decode(grid)
        assert grid.codes.shape == (1, n) and back.kind == kind
        assert np.abs(back.values - values).max() <= 0.5 / n_bins + 1e-6


def test_bins_are_those_of_counting_by_hand() -> None:
    edges = np.array([0.0, 0.2499, 0.25, 0.5, 0.75, 0.9999, 1.0])
    assert to_bins(edges, 4).tolist() == [0, 0, 1, 2, 3, 3, 3]
    assert from_bins(np.array([0, 3]), 4).tolist() == [0.125, 0.875]


def test_every_code_encodes_back_to_itself() -> None:
    codes = np.arange(64)
    assert np.array_equal(to_bins(from_bins(codes, 64), 64), codes)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0.1, 0.2, 0.3], "box"), ([0.1, 1.2], "point"), ([float("nan"), 0.2], "time")],
)
def test_bad_regions_are_refused(values: list[float], kind: str) -> None:
    with pytest.raises(InputError):
        RegionTokenizer().encode(Region(np.array(values, np.float32), kind))


def test_a_grid_that_does_not_fit_its_kind_is_refused() -> None:
    grid = CodeGrid("region", np.zeros((1, 3), np.int32), RegionMeta("box"))
    with pytest.raises(FormatError, match="4 codes"):
        RegionTokenizer().decode(grid)


def test_a_saved_codec_loads_equal_and_a_changed_one_is_refused(tmp_path) -> None:
    tokenizer = RegionTokenizer(RegionConfig(n_bins=9))
    tokenizer.save(tmp_path)
    assert RegionTokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    path = tmp_path / "codec.json"
    path.write_text(path.read_text().replace('"n_bins": 9', '"n_bins": 8'))
    with pytest.raises(FormatError, match="damaged"):
        RegionTokenizer.load(tmp_path)
