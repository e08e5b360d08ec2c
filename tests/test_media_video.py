"""Clips come in upright, with square pixels and a constant rate, and go out playable."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from polyglyph.errors import MediaError
from polyglyph.media import Audio, Limits, Video, load, to_bytes
from polyglyph.media_video import at_constant_rate


def moving(n_frames: int, height: int, width: int) -> np.ndarray:
    """uint8 (F, H, W, 3): a bright block that moves right over a smooth ground without symmetry."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 100 // width, y * 150 // height, np.full_like(x, 60)], -1)
    frames = np.repeat(ground[None].astype(np.uint8), n_frames, axis=0)
    for index, frame in enumerate(frames):
        left = 2 + index * (width - 12) // max(1, n_frames)
        frame[4:12, left : left + 8] = (230, 220, 40)
    return frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


def container(
    frames: np.ndarray,
    pts: list[int] | None = None,
    muxer: str = "matroska",
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    rate: int = 10,
    prepare: Any = None,
) -> bytes:
    """A file written with PyAV directly, at 10 ms a tick where `pts` are given."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        if prepare is not None:
            prepare(stream)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts = index if pts is None else pts[index]
            frame.time_base = Fraction(1, rate) if pts is None else Fraction(1, 100)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def video(source: bytes | Path, **options: Any) -> Video:
    loaded = load(source, **options)
    assert isinstance(loaded, Video)
    return loaded


# --- there and back


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".gif"])
@pytest.mark.parametrize("fps", [8, 30000 / 1001])
def test_a_clip_comes_back_with_every_frame_rate_and_colour(suffix: str, fps: float) -> None:
    frames = moving(9, 48, 64)
    loaded = video(to_bytes(Video(frames, fps), suffix), modality="video")
    assert loaded.frames.shape == frames.shape
    assert loaded.fps == pytest.approx(fps, rel=0.002 if suffix == ".gif" else 1e-4)
    assert psnr(loaded.frames, frames) > 30
    # Solid colours: a wrong matrix or range shows as a shift of ten and more.
    assert np.abs(loaded.frames[:, 30:40, 40:60].astype(int) - frames[:, 30:40, 40:60]).mean() < 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_the_sound_stays_with_the_pictures(suffix: str) -> None:
    tone = 0.5 * np.sin(np.arange(16_000) * 2 * np.pi * 500 / 16_000)
    tone[:8000] = 0.0  # starts at 0.5 s
    stereo = Audio(np.stack([tone, 0.5 * tone]), 16_000)
    loaded = video(to_bytes(Video(moving(8, 32, 32), 8, stereo), suffix))
    assert loaded.audio is not None and loaded.audio.n_channels == 2
    rate = loaded.audio.sample_rate
    assert loaded.audio.duration_s == pytest.approx(1.0, abs=0.15)
    onset = np.argmax(np.abs(loaded.audio.samples[0]) > 0.2) / rate
    assert onset == pytest.approx(0.5, abs=0.01)
    alone = load(to_bytes(Video(moving(8, 32, 32), 8, stereo), suffix), "audio")
    assert isinstance(alone, Audio) and alone.sample_rate == alone.source_rate == rate


def test_the_index_of_an_mp4_comes_first() -> None:
    data = to_bytes(Video(moving(4, 32, 32), 8), ".mp4")
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_a_gif_leaves_the_sound_out_with_a_note() -> None:
    clip = Video(moving(3, 16, 16), 5, Audio(np.zeros(100), 8000))
    assert video(to_bytes(clip, ".gif"), modality="video").audio is None
    assert clip.notes == ["a GIF has no sound: the sound was left out"]


@pytest.mark.parametrize(("suffix", "rate"), [(".mp4", 12_345), (".webm", 44_100)])
def test_a_sound_at_a_rate_that_the_codec_lacks_is_resampled(suffix: str, rate: int) -> None:
    surround = np.tile(0.3 * np.sin(np.arange(rate) * 2 * np.pi * 300 / rate), (6, 1))
    clip = Video(moving(8, 32, 32), 8, Audio(surround, rate))
    loaded = video(to_bytes(clip, suffix))
    assert loaded.audio is not None
    assert loaded.audio.n_channels == 2 and loaded.audio.sample_rate >= rate
    assert any("6 channels were mixed to 2" in note for note in clip.notes)


# --- row 23


def test_row_23_a_variable_rate_is_sampled_by_time() -> None:
    frames = moving(5, 16, 32)
    # Shown from 0, 0.1, 0.2, 0.6 and 0.7 s: the third one stays for four ticks of 0.1 s.
    loaded = video(container(frames, [0, 10, 20, 60, 70]))
    assert loaded.fps == 10
    np.testing.assert_array_equal(loaded.frames[:7], frames[[0, 1, 2, 2, 2, 2, 3]])
    assert (loaded.frames[7:] == frames[4]).all() and 8 <= loaded.n_frames <= 10
    assert any(note.startswith("variable frame rate: 5 frames") for note in loaded.notes)


def test_row_23_a_constant_rate_with_a_coarse_clock_keeps_every_frame() -> None:
    frames = moving(10, 16, 16)
    ticks = [round(index * 100 / 24) for index in range(10)]
    loaded = video(container(frames, ticks, rate=24))
    np.testing.assert_array_equal(loaded.frames, frames)
    assert (loaded.fps, loaded.notes) == (24, [])


def test_row_23_sampling_by_time_keeps_the_duration_whatever_the_intervals() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        times = np.concatenate([[0.0], np.cumsum(rng.uniform(0.01, 0.3, rng.integers(1, 30)))])
        duration_s = times[-1] + 0.1
        stills = [np.full((1, 1, 3), index, np.uint8) for index in range(len(times))]
        frames, fps = at_constant_rate(stills, list(times), duration_s, None, [])
        assert len(frames) / fps == pytest.approx(duration_s, abs=0.6 / fps)
        shown = frames[:, 0, 0, 0].astype(int)
        middles = (np.arange(len(frames)) + 0.5) / fps
        expected = [max(i for i, t in enumerate(times) if t <= m or i == 0) for m in middles]
        assert shown.tolist() == expected or fps == pytest.approx(len(times) / duration_s, rel=0.01)


def test_row_23_a_phone_clip_is_turned_as_players_turn_it() -> None:
    frames = moving(3, 16, 32)
    data = bytearray(to_bytes(Video(frames, 8), ".mp4"))
    # The matrix a phone held upright writes: (x, y) is shown at (-y, x), a quarter to the right.
    identity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    quarter = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    place = data.index(identity, data.index(b"tkhd"))
    data[place : place + 36] = quarter
    loaded = video(bytes(data))
    assert loaded.frames.shape == (3, 32, 16, 3)
    assert psnr(loaded.frames, np.rot90(frames, -1, axes=(1, 2))) > 30


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_row_23_every_display_matrix_of_quarter_turns_is_applied(
    degrees: int, mirrored: bool
) -> None:
    frames = moving(2, 16, 32)
    data = container(
        frames,
        muxer="mp4",
        codec="libx264",
        pix_fmt="yuv420p",
        prepare=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored),
    )
    with av.open(io.BytesIO(data)) as file:
        stored = next(file.decode(video=0))
        said = stored.rotation if not mirrored else None  # counterclockwise, by FFmpeg
    loaded = video(data).frames[0]
    candidates = [np.rot90(f, k) for k in range(4) for f in (frames[0], frames[0][:, ::-1])]
    fits = [c.shape == loaded.shape and psnr(loaded, c) > 28 for c in candidates]
    assert sum(fits) == 1
    if said is not None:
        assert fits.index(True) == 2 * (round(said / 90) % 4)
    assert (fits.index(True) % 2 == 1) == mirrored


@pytest.mark.parametrize(("ratio", "size"), [((4, 3), (24, 43)), ((1, 2), (48, 32))])
def test_row_23_pixels_become_square(ratio: tuple[int, int], size: tuple[int, int]) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(*ratio)

    loaded = video(
        container(
            moving(2, 24, 32), muxer="mp4", codec="libx264", pix_fmt="yuv420p", prepare=prepare
        )
    )
    assert loaded.frames.shape[1:3] == size
    assert any("pixels were not square" in note for note in loaded.notes)


@pytest.mark.parametrize("size", [(255, 255), (1, 1), (33, 64), (64, 31)])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_row_23_odd_sizes_are_padded_to_even_on_write(size: tuple[int, int], suffix: str) -> None:
    frames = np.repeat(moving(1, 255, 255), 2, axis=0)[:, : size[0], : size[1]]
    clip = Video(frames, 8)
    loaded = video(to_bytes(clip, suffix))
    assert loaded.frames.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert psnr(loaded.frames[:, : size[0], : size[1]], frames) > 25
    assert any("was padded to" in note for note in clip.notes)
    loaded_odd = video(container(frames, codec="ffv1"))
    np.testing.assert_array_equal(loaded_odd.frames, frames)


# --- damage and limits


def test_a_clip_cut_in_half_is_refused_or_its_loss_is_said(tmp_path: Path) -> None:
    behind = container(moving(30, 32, 32), muxer="mp4", codec="libx264", pix_fmt="yuv420p")
    assert behind.index(b"mdat") < behind.index(b"moov")
    (tmp_path / "cut.mp4").write_bytes(behind[: len(behind) // 2])
    with pytest.raises(MediaError, match=r"cut\.mp4' can't be read as MP4: .*cut off") as caught:
        load(tmp_path / "cut.mp4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_a_clip_that_is_cut_behind_its_index_is_noted_or_refused_under_strict(suffix: str) -> None:
    tone = Audio(0.3 * np.sin(np.arange(32_000) * 0.1), 16_000)
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)  # the pictures fill the file
    data = to_bytes(Video(noisy, 12, tone), suffix)
    assert video(data, strict=True).notes == []
    cut = data[: len(data) * 3 // 4]
    assert any(note.startswith("ends early") for note in video(cut).notes)
    with pytest.raises(MediaError, match=r"ends early|packets are damaged"):
        load(cut, strict=True)


def test_row_20_an_mp4_whose_index_is_behind_is_refused_when_cut_and_ours_is_in_front(
    tmp_path: Path,
) -> None:
    behind = container(moving(30, 32, 32), muxer="mp4", codec="libx264", pix_fmt="yuv420p")
    with pytest.raises(MediaError, match="can't be read as MP4"):
        load(behind[: len(behind) // 2])
    noisy = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    Video(noisy, 10).save(tmp_path / "a.mp4")
    ours = (tmp_path / "a.mp4").read_bytes()
    assert ours.index(b"moov") < ours.index(b"mdat")
    assert 0 < video(ours[: len(ours) * 3 // 4]).n_frames < 30


def test_row_21_a_file_without_the_stream_that_is_asked_for_is_refused_in_words() -> None:
    silent = to_bytes(Video(moving(2, 32, 32), 8), ".mkv")
    with pytest.raises(MediaError, match="no audio stream that can be decoded; load it as video"):
        load(silent, "audio")
    assert video(silent).audio is None


def test_row_22_damaged_packets_are_counted_and_too_many_are_refused() -> None:
    frames = np.repeat(moving(1, 32, 32), 40, axis=0)
    data = bytearray(container(frames, codec="libx264", pix_fmt="yuv420p"))
    with av.open(io.BytesIO(bytes(data))) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    places = [data.index(packet) for packet in packets]
    assert len(places) == 40

    def with_broken(chosen: list[int]) -> bytes:
        broken = bytearray(data)
        for index in chosen:  # no length of a unit fits any more
            broken[places[index] : places[index] + 5] = b"\xff" * 5
        return bytes(broken)

    loaded = video(with_broken([20, 25]))
    assert any("2 of 40 packets are damaged and were left out" in note for note in loaded.notes)
    assert loaded.n_frames / loaded.fps == pytest.approx(4.0, abs=0.2)
    with pytest.raises(MediaError, match="2 of 40 packets are damaged"):
        load(with_broken([20, 25]), strict=True)
    with pytest.raises(MediaError, match="packets are damaged; fetch it again"):
        load(with_broken(list(range(5, 15))))


def test_row_24_one_frame_and_a_sound_longer_than_the_pictures_keep_their_lengths() -> None:
    tone = Audio(0.3 * np.sin(np.arange(32_000) * 0.1), 16_000)
    for n_frames in (1, 5):
        loaded = video(to_bytes(Video(moving(n_frames, 32, 32), 5, tone), ".mp4"), strict=True)
        assert (loaded.n_frames, loaded.fps) == (n_frames, 5)
        assert loaded.audio is not None and loaded.audio.duration_s == pytest.approx(2, abs=0.15)


def test_row_25_ten_bits_hdr_and_interlaced_pictures_load_as_eight_bits_with_a_note() -> None:
    def hdr(stream: Any) -> None:
        stream.codec_context.color_trc = 16  # PQ

    loaded = video(container(moving(2, 16, 32), codec="ffv1", pix_fmt="yuv420p10le", prepare=hdr))
    assert loaded.frames.dtype == np.uint8
    assert "10-bit pictures were reduced to 8 bits" in loaded.notes
    assert any("high dynamic range" in note for note in loaded.notes)

    def fields(stream: Any) -> None:
        stream.options = {"x264-params": "tff=1"}

    combed = container(moving(4, 32, 32), codec="libx264", pix_fmt="yuv420p", prepare=fields)
    assert any("interlaced" in note for note in video(combed).notes)


def test_what_a_file_does_not_hold_is_named() -> None:
    silent = to_bytes(Video(moving(2, 32, 32), 8), ".mp4")
    with pytest.raises(
        MediaError, match="has no audio stream that can be decoded; load it as video"
    ):
        load(silent, "audio")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as output:
        stream = output.add_stream("aac", rate=16_000, layout="mono")
        block = np.zeros((1, 8000), np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    sound = load(buffer.getvalue())
    assert isinstance(sound, Audio) and sound.duration_s == pytest.approx(0.5, abs=0.1)
    with pytest.raises(
        MediaError, match="has no video stream that can be decoded; load it as audio"
    ):
        load(buffer.getvalue(), "video")


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"\xff\xf1"])
def test_junk_behind_a_good_start_is_refused(start: bytes) -> None:
    junk = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    with pytest.raises(MediaError):
        load(start + junk)


def test_limits_hold_for_clips_before_decoding() -> None:
    data = to_bytes(Video(moving(9, 32, 64), 8), ".mp4")
    for limits, said in (
        (Limits(max_pixels=32 * 63), "64x32.*million"),
        (Limits(max_frames=8), "has 9 frames; the limit is 8"),
        (Limits(max_duration_s=1), "lasts 1 s; the limit is 1 s"),
        (Limits(max_bytes=9 * 32 * 64 * 3 - 1), "GiB once decoded"),
    ):
        with pytest.raises(MediaError, match=said):
            load(data, limits=limits)


def test_ten_bit_pictures_become_eight_bits_with_a_note() -> None:
    frames = moving(2, 16, 32)
    loaded = video(container(frames, codec="ffv1", pix_fmt="yuv444p10le"))
    assert loaded.frames.dtype == np.uint8 and psnr(loaded.frames, frames) > 35
    assert "10-bit pictures were reduced to 8 bits" in loaded.notes


def test_one_frame_is_a_clip() -> None:
    loaded = video(to_bytes(Video(moving(1, 32, 32), 4), ".mp4"))
    assert (loaded.n_frames, loaded.fps) == (1, 4)


def test_a_clip_needs_a_rate_and_a_shape() -> None:
    for fps in (None, 0, -1, 2000):
        with pytest.raises(MediaError, match="needs a frame rate"):
            Video(moving(1, 16, 16), fps)
    with pytest.raises(MediaError, match=r"uint8 \(frames, height, width, 3\)"):
        Video(np.zeros((2, 4, 4, 3)), 8)
