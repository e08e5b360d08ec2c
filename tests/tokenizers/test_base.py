"""Claims about grids of codes, their meta, and the codes file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers import MODALITIES, TABLE, load_tokenizer
from polyglyph.tokenizers.base import (
    META_TYPES,
    ActionMeta,
    AudioMeta,
    CodeGrid,
    ImageMeta,
    Meta,
    RegionMeta,
    SpanSpec,
    TextMeta,
    Tokenizer,
    VideoMeta,
    load_codes,
    meta_from_json,
    meta_to_json,
    save_codes,
)

METAS = {
    "text": TextMeta(),
    "image": ImageMeta(5, 7),
    "video": VideoMeta(3, 5, 7, 29.97),
    "audio": AudioMeta(1601, 16000, 1, 44100),
    "region": RegionMeta("point"),
    "action": ActionMeta((-1.0, 0.0), (1.0, 2.5)),
}


def grid(modality: str = "image", shape: tuple[int, ...] = (1, 3, 5), seed: int = 0) -> CodeGrid:
    codes = np.random.default_rng(seed).integers(0, 9, shape).astype(np.int32)
    return CodeGrid(modality, codes, METAS[modality], "f" * 64)


def items() -> list:
    clip = [grid("video", (1, 2, 3, 5)), grid("audio", (4, 7), 1)]
    return [("000000", "clip.mp4", clip), ("000001", "ein Bild.png", [grid()])]


def test_every_modality_has_a_meta_that_survives_json() -> None:
    assert set(META_TYPES) == set(METAS) == set(MODALITIES) == set(TABLE)
    for modality, meta in METAS.items():
        assert meta_from_json(modality, json.loads(json.dumps(meta_to_json(meta)))) == meta


def test_meta_of_wrong_json_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(FormatError, match="did you mean 'height'"):
        meta_from_json("image", {"hieght": 3, "width": 4})
    with pytest.raises(FormatError, match="lacks width"):
        meta_from_json("image", {"height": 3})
    with pytest.raises(FormatError, match="unknown modality 'imgae'"):
        meta_from_json("imgae", {})


def test_grids_are_equal_by_all_four_parts_and_same_codes_by_two() -> None:
    one = grid()
    assert one == grid() and one.same_codes(grid())
    for other in (
        CodeGrid("image", one.codes, ImageMeta(5, 8), one.fingerprint),
        CodeGrid("image", one.codes, one.meta, "e" * 64),
    ):
        assert one != other and one.same_codes(other)
    assert not one.same_codes(grid(seed=1)) and not one.same_codes(grid(shape=(1, 5, 3)))
    assert (one.shape, one.n_codebooks, one.n_tokens) == ((3, 5), 1, 15)
    assert CodeGrid("image", np.zeros((1, 2, 2), np.int64)).codes.dtype == np.int32


def test_codes_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    save_codes(path, items())
    assert load_codes(path) == items()
    assert set(load_file(path)) == {"000000.video", "000000.audio", "000001.image"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes.safetensors"]


def test_an_empty_grid_and_no_items_survive_the_codes_file(tmp_path: Path) -> None:
    empty = [("000000", "", [CodeGrid("text", np.zeros((1, 0), np.int32), TextMeta())])]
    for name, given in (("a", empty), ("b", [])):
        save_codes(tmp_path / name, given)
        assert load_codes(tmp_path / name) == given


def test_an_existing_codes_file_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    save_codes(path, items())
    before = path.read_bytes()
    with pytest.raises(InputError):
        save_codes(path, items()[1:])
    assert path.read_bytes() == before
    save_codes(path, items()[1:], force=True)
    assert load_codes(path) == items()[1:]


def test_two_grids_of_one_modality_under_one_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two image grids under key 7"):
        save_codes(tmp_path / "c", [("7", "", [grid(), grid(seed=1)])])
    assert not list(tmp_path.iterdir())


def test_codes_files_that_are_cut_foreign_newer_or_inconsistent_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    save_codes(path, items())
    whole = path.read_bytes()
    tensors = load_file(path)
    entries = [{"key": "x.image", "modality": "image", "source": "", "fingerprint": "", "meta": {}}]
    path.write_bytes(whole[:-9])
    with pytest.raises(FormatError, match="cannot be read as a codes file"):
        load_codes(path)
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(FormatError):
        load_codes(path)
    with pytest.raises(InputError, match="is not a file"):
        load_codes(tmp_path / "absent")
    cases = {
        "without codes": None,
        "format 2, this version reads up to 1": {"format": 2, "items": []},
        "disagree": {"format": 1, "items": entries},
        "cannot be read: KeyError": {"format": 1, "items": [{"key": "x"}]},
        "format None": {"format": None, "items": []},
    }
    for message, header in cases.items():
        metadata = {} if header is None else {"polyglyph": json.dumps(header)}
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(FormatError, match=message):
            load_codes(path)
    meta = meta_to_json(METAS["image"])
    header = {"format": 1, "items": [{**entries[0], "meta": meta}]}
    for codes in (np.zeros((1, 2, 2), np.float32), np.full((1, 2, 2), -1, np.int32)):
        save_file({"x.image": codes}, path, metadata={"polyglyph": json.dumps(header)})
        with pytest.raises(FormatError, match="not an int32"):
            load_codes(path)


class Halves(Tokenizer):
    """A codec of codes that are values halved."""

    span = modality = "region"
    spec = SpanSpec("region", "region", 4, 1, 1)
    fingerprint = "a" * 64

    def encode(self, media: list[int], *, n_codebooks: int | None = None) -> CodeGrid:
        codes = np.array([media], np.int32) // 2
        return CodeGrid(self.modality, codes, self.default_meta(codes.shape[1:]), self.fingerprint)

    def decode(self, grid: CodeGrid) -> list[int]:
        self.check_fingerprint(grid)
        return (grid.codes[0] * 2).tolist()

    def default_meta(self, grid_shape: tuple[int, ...]) -> Meta:
        return RegionMeta("box")

    def save(self, folder: str | Path) -> None:
        (Path(folder) / "codec.json").write_text('{"modality": "region"}')

    @classmethod
    def load(cls, folder: str | Path) -> Halves:
        return cls()


def test_codes_of_another_codec_are_refused_naming_both() -> None:
    codec = Halves()
    assert codec.decode(codec.encode([0, 2, 6])) == [0, 2, 6]
    assert codec.encode_batch([[2], [4]]) == [codec.encode([2]), codec.encode([4])]
    with pytest.raises(FormatError, match="codec bbbbbbbbbbbb, this region codec is aaaaaaaaaaaa"):
        codec.decode(CodeGrid("region", np.zeros((1, 2), np.int32), fingerprint="b" * 64))
    for codes, message in [
        (np.zeros((2, 2), np.int32), r"1 codebooks and a grid of rank 1, got shape \(2, 2\)"),
        (np.zeros((1, 2, 2), np.int32), "rank 1"),
        (np.array([[0, 4]], np.int32), r"code 4 at \(0, 1\) is outside 0\.\.3"),
        (np.array([[-1, 0]], np.int32), r"code -1 at \(0, 0\)"),
    ]:
        with pytest.raises(FormatError, match=message):
            codec.decode(CodeGrid("region", codes))
    with pytest.raises(FormatError, match="expected region codes, got image codes"):
        codec.decode(CodeGrid("image", np.zeros((1, 2, 2), np.int32)))


def test_a_folder_that_holds_no_codec_is_refused(tmp_path: Path) -> None:
    for text, message in [
        (None, "holds no codec.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "names no modality"),
        ('{"format": 9, "modality": "text"}', "format 9, this version reads up to 1"),
        ('{"modality": "smell"}', "unknown modality 'smell'"),
        ('{"modality": "region"}', "holds no config"),
        ('{"modality": "region", "config": {"n_bin": 9}}', "did you mean 'n_bins'"),
        ('{"modality": "action", "config": {"n_bins": "few"}}', "key 'n_bins'"),
    ]:
        if text is not None:
            (tmp_path / "codec.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_tokenizer(tmp_path)
