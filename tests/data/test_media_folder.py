"""A user's own media: cuts of the right size, pure in (seed, index), broken files left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyglyph.config import build
from polyglyph.data import media_folder
from polyglyph.data.media_batches import MediaBatches, MediaDataConfig
from polyglyph.data.media_folder import Cut, MediaFolder, fit_sound
from polyglyph.errors import ConfigError, InputError
from polyglyph.media import Audio, Image, Video

CUT = Cut(side=16, n_frames=4, fps=4.0, n_samples=330, sample_rate=8000)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("album")
    (root / "deeper").mkdir()
    (root / ".hidden").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 61, 3)), ("deeper/b.png", (9, 130, 3))):
        Image(rng.integers(0, 256, shape, np.uint8)).save(root / name)
    Image(np.zeros((20, 20, 3), np.uint8)).save(root / ".hidden" / "c.png")
    ramp = (0.5 * np.sin(np.arange(4000) / 9)).astype(np.float32)
    Audio(np.stack([ramp, ramp]), 16_000).save(root / "long.wav")
    Audio(ramp[:50], 8000).save(root / "short.flac")
    frames = np.repeat(np.arange(12, dtype=np.uint8) * 20, 20 * 30 * 3).reshape(12, 20, 30, 3)
    Video(frames, 8.0).save(root / "clip.mp4")
    return root


@pytest.mark.parametrize(
    ("modality", "shape", "dtype", "n_files"),
    [
        ("image", (16, 16, 3), np.uint8, 2),
        ("video", (4, 16, 16, 3), np.uint8, 1),
        ("audio", (1, 330), np.float32, 2),
    ],
)
def test_an_item_is_a_cut_and_a_pure_function_of_seed_and_index(
    modality: str, shape: tuple[int, ...], dtype: type, n_files: int, album: Path
) -> None:
    one, other = MediaFolder(album, modality, CUT), MediaFolder(album, modality, CUT)
    assert len(one.files) == n_files
    due = [one(modality, 5, i) for i in range(6)]
    assert all(item.shape == shape and item.dtype == dtype for item in due)
    for i in (4, 0, 5, 2):
        assert np.array_equal(other(modality, 5, i), due[i])
    assert len({item.tobytes() for item in due}) > 2
    assert not all(np.array_equal(other(modality, 6, i), due[i]) for i in range(6))
    assert not one.errors


def test_what_is_held_in_memory_does_not_change_the_items(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = [MediaFolder(album, "image", CUT)("image", 1, i) for i in range(5)]
    monkeypatch.setattr(media_folder, "CACHE_BYTES", 1)
    folder = MediaFolder(album, "image", CUT)
    assert all(np.array_equal(folder("image", 1, i), due[i]) for i in range(5))
    assert len(folder.opened._held) == 1


def test_a_clip_is_taken_at_about_the_wanted_rate_and_ends_with_its_last_frame(
    album: Path,
) -> None:
    folder = MediaFolder(album, "video", CUT)
    for i in range(5):
        levels = folder("video", 0, i).mean((1, 2, 3))
        assert np.allclose(np.diff(levels), 40, atol=6), "every second of 8 frames a second"
    long = MediaFolder(album, "video", Cut(side=16, n_frames=9, fps=4.0))("video", 0, 0)
    assert len(long) == 9 and np.array_equal(long[-1], long[-3])


def test_a_stretch_of_a_sound_is_that_of_the_file_and_a_short_one_ends_in_zeros(
    album: Path,
) -> None:
    cut = Cut(n_samples=500, sample_rate=16_000, n_channels=2)
    whole = Audio(album / "long.wav").samples
    for i in range(12):
        item = MediaFolder(album, "audio", cut)("audio", 2, i)
        if item[:, -1].any():
            starts = [s for s in range(3500) if np.array_equal(whole[:, s : s + 500], item)]
            assert starts
        else:  # 50 samples at 8 kHz
            assert not item[:, 102:].any() and item[:, 20:90].any()


def test_a_sound_in_the_middle_of_a_long_file_is_read_alone(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_folder, "load", lambda *a: pytest.fail("the whole file was read"))
    item = MediaFolder(album, "audio", CUT)("audio", 0, 0)
    assert item.ndim == 2 and item.any()


def test_fit_sound_changes_rate_and_channels_and_keeps_within_one() -> None:
    sound = 1.5 * np.sin(np.arange(800) / 5)[None].astype(np.float32)
    fitted = fit_sound(sound, 8000, Cut(n_samples=1700, sample_rate=16_000, n_channels=2))
    assert fitted.shape == (2, 1700) and np.array_equal(fitted[0], fitted[1])
    assert not fitted[:, 1600:].any() and np.abs(fitted).max() == 1


def test_a_broken_file_is_said_once_and_another_stands_in_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image(np.full((30, 30, 3), 7, np.uint8)).save(tmp_path / "b.png")
    folder = MediaFolder(tmp_path, "image", CUT)
    assert all((folder("image", 0, i) == 7).all() for i in range(8))
    assert [(e["source"], e["type"]) for e in folder.errors] == [("a.png", "MediaError")]
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its 2 files can be read; the first: .*a\.png"):
        MediaFolder(tmp_path, "image", CUT)("image", 0, 0)


def test_a_sound_without_samples_and_one_that_is_no_sound_are_left_out(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1), np.float32), 8000)
    (tmp_path / "text.wav").write_text("no sound")
    Audio(np.full(900, 0.25, np.float32), 8000).save(tmp_path / "x.wav")
    folder = MediaFolder(tmp_path, "audio", CUT)
    assert all(np.allclose(folder("audio", 0, i), 0.25, atol=1e-4) for i in range(9))
    assert {e["source"] for e in folder.errors} == {"empty.wav", "text.wav"}


def test_a_folder_stands_in_a_mixture_beside_built_in_media(album: Path) -> None:
    config = build(
        MediaDataConfig, {"mixture": {"shapes": 1, str(album): 1}, "batch_size": 4}, "the test"
    )
    batch = MediaBatches("image", config, 3).batch(0)
    assert batch.shape == (4, 72, 72, 3)
    alone = build(MediaDataConfig, {"source": str(album), "side": 24, "batch_size": 2}, "the test")
    assert MediaBatches("image", alone, 3).batch(0).shape == (2, 24, 24, 3)


def test_sound_comes_at_the_codecs_rate_and_channels_in_whole_frames(album: Path) -> None:
    config = build(
        MediaDataConfig, {"mixture": {"tones": 1, str(album): 1}, "batch_size": 2}, "the test"
    )
    batches = MediaBatches("audio", config, 3, sample_rate=24_000, n_channels=2, hop=7000)
    assert batches.batch(0).shape == (2, 2, 21_000)


def test_what_does_not_fit_is_refused_with_what_to_do(album: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no image; expected files such as x\.png"):
        MediaFolder(tmp_path, "image", CUT)
    with pytest.raises(InputError, match="is no folder"):
        MediaFolder(tmp_path / "gone", "image", CUT)
    with pytest.raises(InputError, match="unknown medium of codec training 'text'"):
        MediaFolder(album, "text", CUT)
    gone = build(MediaDataConfig, {"source": str(tmp_path / "gone")}, "the test")
    with pytest.raises(ConfigError, match="gone': no such folder"):
        MediaBatches("image", gone, 0)
    with pytest.raises(ConfigError, match=r"'shapes' has side = 72; leave side out"):
        build(MediaDataConfig, {"mixture": {"shapes": 1, str(album): 1}, "side": 64}, "the test")
