from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polyglyph.errors import FormatError, InputError
from polyglyph.eval.protocol import (
    compare,
    comparison_table,
    hash_of,
    load_results,
    reconstruction_protocol,
    refuse_incomparable,
)

STAMP = reconstruction_protocol("uint8", "files 1234", 7)
OTHERS = {
    "measured": "float", "reference": "files 5678", "n": 8, "resize": "to 256, bicubic",
    "crop": "centre 256", "weights": "sha256 of a net",
}  # fmt: skip


def results(**stamp: object) -> dict:
    estimate = {"mean": 30.0 + len(stamp), "low": 29.0, "high": 31.0, "n": 7}
    task = {"task": "a", "metrics": {"psnr_db": estimate}, "protocol": {**STAMP, **stamp}}
    return {"format": 1, "tasks": [task]}


@pytest.mark.parametrize("field", sorted(OTHERS))
def test_any_field_that_differs_is_named_in_one_line(field: str) -> None:
    with pytest.raises(InputError) as caught:
        compare(results(), results(**{field: OTHERS[field]}), ("mine", "theirs"))
    said = str(caught.value)
    assert f"{field} is {STAMP[field]!r} in a of mine and {OTHERS[field]!r} in a of theirs" in said
    assert "\n" not in said


def test_every_field_of_the_issue_is_in_a_stamp() -> None:
    assert set(STAMP) == set(OTHERS)
    with pytest.raises(InputError, match="sample_rate is not stated in x and 8000 in y"):
        refuse_incomparable(STAMP, {**STAMP, "sample_rate": 8000}, ("x", "y"))
    for none in (None, {}):
        with pytest.raises(InputError, match="y carries no protocol"):
            refuse_incomparable(STAMP, none, ("x", "y"))


def test_two_results_of_one_protocol_are_set_side_by_side() -> None:
    better = results()
    better["tasks"][0]["metrics"]["psnr_db"]["mean"] = 31.5
    better["tasks"][0]["metrics"]["ssim"] = {"mean": 1.0}  # in one of them only
    (row,) = compare(better, results(), ("new", "old"))
    assert (row["this"], row["that"], row["difference"]) == (31.5, 30.0, 1.5)
    assert comparison_table([row], ("new", "old")).row_count == 1
    with pytest.raises(InputError, match="no task in common: a; none"):
        compare(better, {"tasks": []})


def test_a_hash_is_of_values_kinds_and_order() -> None:
    a = np.arange(6, dtype=np.uint8)
    kinds = [[a], [a.reshape(2, 3)], [a.astype(np.int32)], [a, 1], [1, a], ["a"], [a[::-1]]]
    assert len({hash_of(kind) for kind in kinds}) == len(kinds)
    assert hash_of([a]) == hash_of([np.arange(12, dtype=np.uint8)[::2] // 2])


def test_a_file_that_holds_no_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(InputError, match="no such file"):
        load_results(path)
    for text, said in (
        ("{", "is not JSON"), ("{}", "states no format"), ('{"format": 1}', "lists no tasks"),
        ('{"format": 1, "tasks": [3]}', "lists no tasks"), ('{"format": 9}', "format 9"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(FormatError, match=said):
            load_results(path)
    path.write_text(json.dumps(results()))
    assert load_results(path) == results()
