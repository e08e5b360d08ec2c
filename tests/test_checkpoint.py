"""Outputs are whole or absent; checkpoints are refused when anything about them is wrong."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from polyglyph import checkpoint
from polyglyph.errors import FormatError, InputError, MachineError

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.full((5,), 1.5, dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
}


def make(folder: Path, kind: str = "model") -> Path:
    with checkpoint.atomic_folder(folder) as temporary:
        checkpoint.save_tensors(temporary / "model.safetensors", TENSORS)
        (temporary / "tokenizers/image").mkdir(parents=True)
        (temporary / "tokenizers/image/codec.json").write_text("{}")
        checkpoint.write_manifest(
            temporary, kind, {"d_model": 8}, {"name": "polyglyph"}, "abc",
            {"image": {"path": "tokenizers/image", "fingerprint": "def"}}, "a test", "Apache-2.0",
        )  # fmt: skip
    return folder


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- fingerprints and tensors


def test_fingerprint_is_of_names_types_shapes_bytes_and_config_and_of_nothing_else() -> None:
    base = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.zeros(2, np.int64)}
    config = {"size": 3, "name": "a"}
    mark = checkpoint.fingerprint(base, config)
    assert len(mark) == 64
    reordered = {"y": torch.zeros(2, dtype=torch.int64), "x": torch.from_numpy(base["x"].copy())}
    assert checkpoint.fingerprint(reordered, {"name": "a", "size": 3}) == mark
    assert checkpoint.fingerprint({**base, "x": base["x"].T.copy().T}, config) == mark
    flipped = base["x"].copy()
    flipped.view(np.uint8)[0, 0] ^= 1
    others = [
        ({**base, "x": flipped}, config),
        ({**base, "x": base["x"].reshape(3, 2)}, config),
        ({**base, "x": base["x"].view(np.int32)}, config),
        ({"z": base["x"], "y": base["y"]}, config),
        (base, {"size": 4, "name": "a"}),
    ]
    assert len({mark, *(checkpoint.fingerprint(*other) for other in others)}) == 6


def test_fingerprint_survives_the_way_to_disk_and_back(tmp_path: Path) -> None:
    checkpoint.save_tensors(tmp_path / "t.safetensors", TENSORS, {"polyglyph": "{}"})
    loaded = checkpoint.load_tensors(tmp_path / "t.safetensors")
    assert checkpoint.fingerprint(loaded, {}) == checkpoint.fingerprint(TENSORS, {})
    assert loaded["a"].dtype == torch.bfloat16
    assert checkpoint.read_tensor_metadata(tmp_path / "t.safetensors") == {"polyglyph": "{}"}


def test_numpy_tensors_round_trip_without_torch_types(tmp_path: Path) -> None:
    codes = {"000000.image": np.arange(12, dtype=np.int32).reshape(1, 3, 4)[:, ::2]}
    checkpoint.save_tensors(tmp_path / "c.safetensors", codes)
    loaded = checkpoint.load_tensors(tmp_path / "c.safetensors", "numpy")
    assert isinstance(loaded["000000.image"], np.ndarray)
    np.testing.assert_array_equal(loaded["000000.image"], codes["000000.image"])
    assert checkpoint.read_tensor_metadata(tmp_path / "c.safetensors") == {}


def test_tensors_that_share_storage_are_saved_apart(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    checkpoint.save_tensors(tmp_path / "t.safetensors", {"head": weight, "embedding": weight})
    loaded = checkpoint.load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(loaded["head"], weight) and torch.equal(loaded["embedding"], weight)


@pytest.mark.parametrize("data", [b"", b"junk", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{" * 16])
def test_what_is_no_tensor_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="is not a safetensors file"):
        checkpoint.load_tensors(tmp_path / "t.safetensors")


def test_a_tensor_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    checkpoint.save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FormatError, match="damaged or cut off"):
        checkpoint.load_tensors(path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_row_36_the_mode_of_tensor_files_is_that_of_the_umask(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        path = tmp_path / "t.safetensors"
        checkpoint.save_tensors(path, TENSORS)
        checkpoint.save_tensors(path, TENSORS, force=True)
        checkpoint.save_tensors(tmp_path / "n.safetensors", {"x": np.zeros(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "n.safetensors").stat().st_mode) == mode


# --- whole or absent


def test_an_existing_file_is_refused_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with (
        pytest.raises(InputError, match="exists; choose another name or pass -f"),
        checkpoint.atomic_file(path) as temporary,
    ):
        temporary.write_text("new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.txt"]
    with checkpoint.atomic_file(path, force=True) as temporary:
        assert path.read_text() == "old"  # not before it is whole
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_file_or_folder_that_failed_midway(
    tmp_path: Path, error: BaseException
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/old.txt").write_text("old")
    with pytest.raises(type(error)), checkpoint.atomic_file(tmp_path / "f") as temporary:
        temporary.write_text("half")
        raise error
    for name in ("new", "kept"):
        with pytest.raises(type(error)), checkpoint.atomic_folder(tmp_path / name, True) as folder:
            (folder / "half.txt").write_text("half")
            raise error
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == ["old.txt"]


def test_a_folder_is_replaced_as_a_whole_and_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with checkpoint.atomic_folder(tmp_path / "out") as folder:  # an empty one counts as absent
        (folder / "a").write_text("1")
    with (
        pytest.raises(InputError, match="exists"),
        checkpoint.atomic_folder(tmp_path / "out"),
    ):
        raise AssertionError
    with checkpoint.atomic_folder(tmp_path / "out", force=True) as folder:
        (folder / "b").write_text("2")
    assert os.listdir(tmp_path / "out") == ["b"] and os.listdir(tmp_path) == ["out"]


def test_force_never_replaces_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work/deep")
    with (
        pytest.raises(InputError, match="holds more than an output"),
        checkpoint.atomic_folder(tmp_path / "work", force=True),
    ):
        raise AssertionError
    assert (tmp_path / "work/deep").is_dir()


def test_row_58_an_output_that_can_not_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writers = (checkpoint.atomic_file, checkpoint.atomic_folder)
    for writer in writers:
        with (
            pytest.raises(InputError, match="can't be written: a part of its path is a file"),
            writer(tmp_path / "file" / "out"),
        ):
            raise AssertionError
    with (
        pytest.raises(InputError, match="can't be written: file name too long"),
        checkpoint.atomic_file(tmp_path / ("n" * 300)) as temporary,
    ):
        temporary.write_text("x")
    with pytest.raises(InputError, match="not a valid path"), checkpoint.atomic_file("a\0b"):
        raise AssertionError
    with (
        pytest.raises(InputError, match="is a folder; expected the name of a file"),
        checkpoint.atomic_file(tmp_path, force=True),
    ):
        raise AssertionError
    assert os.listdir(tmp_path) == ["file"]


def test_row_58_a_read_only_folder_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint.os, "open", refuse)
    with (
        pytest.raises(InputError, match="can't be written: permission denied"),
        checkpoint.atomic_file(tmp_path / "out"),
    ):
        raise AssertionError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["sp ace é 🎈.txt", b"caf\xe9.txt", "n" * 250 + ".txt"])
def test_row_58_any_name_that_the_file_system_allows_is_written(
    tmp_path: Path, name: str | bytes
) -> None:
    path = tmp_path / os.fsdecode(name)
    with checkpoint.atomic_file(path) as temporary:
        temporary.write_text("x")
    assert path.read_text() == "x"
    with pytest.raises(InputError) as caught, checkpoint.atomic_file(path):
        raise AssertionError
    str(caught.value).encode("utf-8")  # printable anywhere


def test_a_full_disk_is_the_machines_failure_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with (
        pytest.raises(MachineError, match="no space left"),
        checkpoint.atomic_file(tmp_path / "out", force=True) as temporary,
    ):
        temporary.write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "out").read_text() == "old" and os.listdir(tmp_path) == ["out"]


# --- the checkpoint folder


def test_a_manifest_names_every_file_with_its_hash_and_reads_back(tmp_path: Path) -> None:
    manifest = checkpoint.read_manifest(make(tmp_path / "m"), "model")
    assert manifest["format"] == 1 and manifest["config"] == {"d_model": 8}
    assert set(manifest["files"]) == {"model.safetensors", "tokenizers/image/codec.json"}
    entry = manifest["files"]["model.safetensors"]
    assert entry["bytes"] == (tmp_path / "m/model.safetensors").stat().st_size
    assert manifest["tokenizers"]["image"]["fingerprint"] == "def"


def test_a_flipped_byte_is_refused_and_names_the_file(tmp_path: Path) -> None:
    path = make(tmp_path / "m") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)
    checkpoint.load_tensors(path)  # the tensor file alone doesn't notice
    with pytest.raises(FormatError, match=r"model\.safetensors doesn't match its sha256"):
        checkpoint.read_manifest(tmp_path / "m")
    assert checkpoint.read_manifest(tmp_path / "m", verify=False)["kind"] == "model"


def test_row_31_a_newer_format_is_refused_naming_both(tmp_path: Path) -> None:
    edit_manifest(make(tmp_path / "m"), format=2)
    with pytest.raises(FormatError, match=r"format 2; this polyglyph reads up to format 1"):
        checkpoint.read_manifest(tmp_path / "m")


def test_a_checkpoint_of_another_kind_or_with_a_file_amiss_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", "codec")
    with pytest.raises(FormatError, match="is a codec checkpoint; expected a model"):
        checkpoint.read_manifest(folder, "model")
    (folder / "tokenizers/image/codec.json").write_text("{ }")
    with pytest.raises(FormatError, match=r"codec\.json has 3 bytes, expected 2"):
        checkpoint.read_manifest(folder)
    (folder / "tokenizers/image/codec.json").unlink()
    with pytest.raises(FormatError, match=r"incomplete: tokenizers/image/codec\.json is missing"):
        checkpoint.read_manifest(folder)


def test_an_unfinished_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    edit_manifest(folder, files={"../secret": {"bytes": 1, "sha256": ""}})
    with pytest.raises(FormatError, match="outside its folder"):
        checkpoint.read_manifest(folder)
    (folder / "checkpoint.json").write_text('{"format": 1')
    with pytest.raises(FormatError, match="damaged: not JSON"):
        checkpoint.read_manifest(folder)
    (folder / "checkpoint.json").write_text('{"files": {}}')
    with pytest.raises(FormatError, match="it states no format"):
        checkpoint.read_manifest(folder)
    (folder / "checkpoint.json").unlink()
    with pytest.raises(FormatError, match="not a finished checkpoint"):
        checkpoint.read_manifest(folder)
    with pytest.raises(FormatError, match="unfinished"):
        checkpoint.read_manifest(make(tmp_path / "x").rename(tmp_path / ".tmp-12ab"))
    with pytest.raises(InputError, match="no such folder"):
        checkpoint.read_manifest(tmp_path / "absent")


# --- finding one


def test_a_run_folder_gives_its_latest_finished_checkpoint(tmp_path: Path) -> None:
    for step in (2, 10):
        make(tmp_path / f"run/checkpoints/step-{step:08}/model")
    (tmp_path / "run/checkpoints/step-00000020/model").mkdir(parents=True)  # cut short
    ten = (tmp_path / "run/checkpoints/step-00000010/model").resolve()
    assert checkpoint.find_checkpoint(tmp_path / "run") == ten
    for pointer in ("step-00000002\n", "checkpoints/step-00000002\n"):
        (tmp_path / "run/latest").write_text(pointer)
        assert checkpoint.find_checkpoint(tmp_path / "run").parent.name == "step-00000002"
    (tmp_path / "run/latest").unlink()
    (tmp_path / "run/latest").symlink_to("checkpoints/step-00000010")
    assert checkpoint.find_checkpoint(tmp_path / "run") == ten
    assert checkpoint.find_checkpoint(ten.parent) == ten


def test_a_name_gives_a_packaged_checkpoint_and_a_wrong_one_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PACKAGED", tmp_path / "packaged")
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "packaged/tiny")
    assert checkpoint.find_checkpoint("tiny") == tmp_path / "packaged/tiny"
    with pytest.raises(InputError, match=r"unknown checkpoint 'tony'; did you mean 'tiny'\?"):
        checkpoint.find_checkpoint("tony")
    with pytest.raises(InputError, match="no such folder"):
        checkpoint.find_checkpoint("runs/absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="holds no finished checkpoint"):
        checkpoint.find_checkpoint("empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        checkpoint.find_checkpoint("file")
