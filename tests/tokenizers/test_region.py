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
        if kind != "point":
            values = np.sort(values.reshape(2, -1), axis=0).reshape(-1)
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


def test_corners_in_any_order_decode_to_the_box_that_they_span() -> None:
    tokenizer = RegionTokenizer(RegionConfig(n_bins=10))
    grid = CodeGrid("region", np.array([[7, 1, 2, 5]], np.int32), RegionMeta("box"))
    assert np.allclose(tokenizer.decode(grid).values, [0.25, 0.15, 0.75, 0.55])


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 1.2], [np.nan] * 4])
def test_values_that_are_no_box_are_refused(values: list[float]) -> None:
    region = Region(np.array([0.1, 0.2, 0.3, 0.4]), "box")
    region.values = np.array(values)
    with pytest.raises(InputError):
        RegionTokenizer().encode(region)
    with pytest.raises(InputError, match="not a list"):
        RegionTokenizer().encode(values)


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
