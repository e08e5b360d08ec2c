"""Sounds keep their samples, rate and length, or are refused in one line."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from polyglyph import media_audio
from polyglyph.errors import MediaError
from polyglyph.media import Audio, Limits, load, mix_channels, resample, to_bytes


def sine(n_samples: int, sample_rate: int, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency / sample_rate * np.arange(n_samples))).astype(
        np.float32
    )


def wav(samples: np.ndarray, sample_rate: int = 8000, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def audio(source: bytes | Path, **options: object) -> Audio:
    loaded = load(source, **options)  # type: ignore[arg-type]
    assert isinstance(loaded, Audio)
    return loaded


def n_cycles_per_s(samples: np.ndarray, sample_rate: int) -> float:
    """The frequency of the strongest partial, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * sample_rate / len(samples))


# --- truncated, empty, junk


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_row_11_a_wav_that_ends_early_is_noted_or_refused_under_strict(subtype: str) -> None:
    data = wav(sine(2400, 8000), subtype=subtype)
    cut = data[: len(data) // 10]
    assert soundfile.info(io.BytesIO(cut)).frames < 2400  # libsndfile itself says nothing
    loaded = audio(cut)
    assert 0 < loaded.n_samples < 2400
    assert loaded.notes == [f"ends early: {loaded.n_samples} samples of 2400 could be read"]
    with pytest.raises(MediaError, match="ends early"):
        load(cut, strict=True)


def test_row_11_a_whole_wav_with_other_chunks_or_an_unknown_length_is_not_called_cut() -> None:
    data = wav(sine(2400, 8000))
    position = data.index(b"data")
    extra = data[:position] + b"LIST" + struct.pack("<I", 5) + b"odd !\0" + data[position:]
    streamed = data[: position + 4] + b"\xff\xff\xff\xff" + data[position + 8 :]
    for source in (data, extra, streamed):
        loaded = audio(source, strict=True)
        assert (loaded.n_samples, loaded.notes) == (2400, [])


def test_row_11_a_flac_that_ends_early_is_noted_or_refused_under_strict() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20_000)
    data = to_bytes(Audio(noise, 8000), ".flac")
    loaded = audio(data[: len(data) // 2])
    assert 0 < loaded.n_samples < 20_000
    assert any(note.startswith("ends early") for note in loaded.notes)
    with pytest.raises(MediaError, match="ends early"):
        load(data[: len(data) // 2], strict=True)


@pytest.mark.parametrize("n_bytes", [12, 20, 36, 44])
def test_row_12_a_header_without_sound_is_refused(n_bytes: int) -> None:
    data = wav(sine(240, 8000))
    with pytest.raises(MediaError, match=r"contains no samples|can't be read as WAV") as caught:
        load(data[:n_bytes])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "start", [b"RIFF\x10\0\0\0WAVE", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb"]
)
def test_row_12_junk_behind_a_good_start_is_refused(start: bytes) -> None:
    junk = np.random.default_rng(1).integers(0, 256, 300, dtype=np.uint8).tobytes()
    with pytest.raises(MediaError, match=r"can't be read as \w+ sound|contains no samples"):
        load(start + junk)


def test_row_12_an_empty_file_and_junk_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(MediaError, match="is empty"):
        load(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(b"junk" * 20)
    with pytest.raises(MediaError, match="begins with the bytes 6a 75 6e 6b"):
        load(tmp_path / "a.wav")


# --- samples


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_row_13_samples_that_are_not_finite_are_refused_on_the_way_in(wrong: float) -> None:
    samples = sine(100, 8000)
    samples[[17, 30]] = wrong
    with pytest.raises(MediaError, match=r"2 samples that are not finite \(the first at sample 17"):
        load(wav(samples, subtype="FLOAT"))
    with pytest.raises(MediaError, match="2 samples that are not finite"):
        Audio(samples, 8000)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_row_13_nothing_that_is_not_finite_is_ever_written(tmp_path: Path, suffix: str) -> None:
    sound = Audio(sine(2000, 8000), 8000)
    sound.samples[0, 5] = math.nan
    with pytest.raises(MediaError, match="the sound to write holds 1 samples that are not finite"):
        sound.save(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_row_13_samples_beyond_full_scale_are_clamped_with_a_note(suffix: str) -> None:
    sound = Audio(np.array([0.0, 1.5, -2.0, 0.25]), 8000)
    loaded = audio(to_bytes(sound, suffix))
    np.testing.assert_allclose(loaded.samples[0], [0, 32767 / 32768, -1, 0.25])
    assert sound.notes == ["2 samples beyond full scale (peak 2) were clamped"]


def test_row_14_no_samples_are_refused_and_one_sample_is_kept() -> None:
    with pytest.raises(MediaError, match="contains no samples; expected at least one"):
        load(wav(np.zeros(0)))
    assert audio(wav(np.full(1, 0.25))).samples.tolist() == [[0.25]]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_row_15_every_width_reads_as_float32_in_one_scale(subtype: str) -> None:
    samples = sine(1000, 8000)
    loaded = audio(wav(samples, subtype=subtype))
    step = {"PCM_U8": 1 / 128, "PCM_16": 1 / 32768}.get(subtype, 1e-6)
    assert loaded.samples.dtype == np.float32 and loaded.samples.shape == (1, 1000)
    np.testing.assert_allclose(loaded.samples[0], samples, atol=step)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_row_15_16_bits_survive_exactly(suffix: str) -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32768, (2, 999)).astype(np.int16)
    loaded = audio(to_bytes(Audio(pcm, 44_100), suffix))
    np.testing.assert_array_equal(loaded.samples * 32768, pcm)


def test_row_15_integer_arrays_are_scaled() -> None:
    assert Audio(np.array([0, 128, 255], np.uint8), 1).samples.tolist() == [[-1, 0, 127 / 128]]
    assert Audio(np.array([-(2**31), 2**30], np.int32), 1).samples.tolist() == [[-1, 0.5]]
    with pytest.raises(MediaError, match="got int64"):
        Audio(np.array([1, 2]), 8000)


# --- channels and rates


def test_row_16_channels_are_kept_on_load_and_mixed_by_the_documented_rule() -> None:
    left, right = sine(500, 8000), sine(500, 8000, 900)
    stereo = audio(wav(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_array_equal(stereo.samples, [left, right])
    np.testing.assert_allclose(mix_channels(stereo.samples, 1)[0], (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(mix_channels(left[None], 2), [left, left])


def test_row_16_surround_folds_down_without_clipping_and_without_the_lfe() -> None:
    unit = np.eye(6, dtype=np.float32)  # one channel at a time, one a sample
    half = math.sqrt(0.5)
    weights = np.array([[1, 0, half, 0, half, 0], [0, 1, half, 0, 0, half]]) / (1 + 2 * half)
    np.testing.assert_allclose(mix_channels(unit, 2), weights, atol=1e-6)
    np.testing.assert_allclose(mix_channels(unit, 1)[0], weights.mean(axis=0), atol=1e-6)
    assert mix_channels(np.ones((6, 3), np.float32), 2).max() <= 1.0 + 1e-6
    loaded = audio(wav(np.tile(unit, (20, 1)), subtype="FLOAT"))
    assert loaded.n_channels == 6
    assert mix_channels(np.ones((4, 3), np.float32), 1).tolist() == [[1, 1, 1]]


def test_row_16_a_format_for_two_channels_gets_a_mix_with_a_note() -> None:
    sound = Audio(np.tile(sine(8000, 16_000), (6, 1)), 16_000)
    assert audio(to_bytes(sound, ".mp3")).n_channels == 2
    assert any("6 channels were mixed to 2" in note for note in sound.notes)


@pytest.mark.parametrize("rate", [8000, 11_025, 12_345, 44_100, 192_000])
def test_row_17_any_rate_loads_as_it_is_and_resamples_to_the_exact_length(rate: int) -> None:
    n_samples = rate // 4 + 1
    loaded = audio(wav(sine(n_samples, rate), rate, "FLOAT"))
    assert (loaded.sample_rate, loaded.source_rate, loaded.n_samples) == (rate, rate, n_samples)
    assert loaded.duration_s == pytest.approx(0.25, rel=1e-3)
    there = resample(loaded.samples, rate, 16_000)
    assert there.shape == (1, round(n_samples * 16_000 / rate)) and there.dtype == np.float32
    assert n_cycles_per_s(there[0], 16_000) == pytest.approx(440, abs=4)
    # Both band limits are above the tone, so the way back gives the samples, edges aside.
    back = resample(there, 16_000, rate)[0]
    middle = slice(n_samples // 4, n_samples // 2)
    np.testing.assert_allclose(back[middle], loaded.samples[0, middle], atol=2e-3)


def test_row_17_resampling_one_sample_or_none_is_defined() -> None:
    assert resample(np.ones((2, 1), np.float32), 48_000, 8000).shape == (2, 1)
    assert resample(np.zeros((2, 0), np.float32), 48_000, 8000).shape == (2, 0)


@pytest.mark.parametrize(
    ("suffix", "rate", "written"),
    [(".mp3", 12_345, 16_000), (".opus", 44_100, 48_000), (".ogg", 12_345, 12_345),
     (".mp3", 96_000, 48_000), (".opus", 16_000, 16_000)],
)  # fmt: skip
def test_row_17_a_format_that_lacks_the_rate_gets_the_next_one_with_a_note(
    suffix: str, rate: int, written: int
) -> None:
    sound = Audio(sine(rate // 2, rate), rate)
    loaded = audio(to_bytes(sound, suffix))
    assert loaded.sample_rate == written
    assert loaded.duration_s == pytest.approx(0.5, abs=0.001)
    assert n_cycles_per_s(loaded.samples[0], written) == pytest.approx(440, abs=4)
    assert bool(sound.notes) == (rate != written)


def test_a_long_sound_is_written_in_blocks_and_comes_back_whole() -> None:
    sound = Audio(sine(200_001, 48_000), 48_000)
    loaded = audio(to_bytes(sound, ".ogg"))
    assert loaded.n_samples == 200_001
    assert np.corrcoef(loaded.samples[0], sound.samples[0])[0, 1] > 0.99


def test_a_sound_beyond_the_limits_is_refused_by_its_header() -> None:
    data = wav(sine(4000, 8000))
    with pytest.raises(MediaError, match=r"lasts 0 s; the limit is 0\.4 s"):
        load(data, limits=Limits(max_duration_s=0.4))
    with pytest.raises(MediaError, match="GiB once decoded"):
        load(data, limits=Limits(max_bytes=100))


def test_a_sound_needs_a_rate_and_a_shape() -> None:
    for rate in (None, 0, -1, 0.5):
        with pytest.raises(MediaError, match="needs a sample rate"):
            Audio(sine(9, 8000), rate)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match=r"\(channels, samples\)"):
        Audio(np.zeros((1, 2, 3)), 8000)


# --- an MP3 says nothing of what is missing


def mp3(n_samples: int = 40_000) -> bytes:
    return to_bytes(Audio(sine(n_samples, 16_000), 16_000), ".mp3")


def test_an_mp3_that_is_cut_or_damaged_is_noted_or_refused_under_strict() -> None:
    data = bytearray(mp3())
    cut, junk = bytes(data[: len(data) * 2 // 3]), bytearray(data)
    noise = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8)
    junk[len(data) // 2 : len(data) // 2 + 300] = noise.tobytes()
    for source, said in ((cut, "ends early"), (bytes(junk), "bytes between its frames")):
        assert any(said in note for note in audio(source).notes)
        with pytest.raises(MediaError, match=said):
            load(source, strict=True)


@pytest.mark.parametrize("more", [b"", b"TAG" + bytes(125), bytes(400), b"APETAGEX" + bytes(90)])
def test_a_whole_mp3_with_tags_or_padding_behind_it_is_not_called_cut(more: bytes) -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    for source in (mp3() + more, tag + mp3() + more):
        assert audio(source, strict=True).notes == []


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_sound_in_parts_is_written_as_the_whole(suffix: str, tmp_path: Path) -> None:
    whole = np.random.default_rng(0).uniform(-1.1, 1.1, (2, 70_001)).astype(np.float32)
    notes, more = list[str](), list[str]()
    (tmp_path / "due").write_bytes(media_audio.encode(whole, 16_000, suffix, notes))
    parts = iter([whole[:, :7], whole[:, 7:7], whole[:, 7:]])
    media_audio.write_parts(tmp_path / "parts", parts, 16_000, 2, suffix, more)
    assert notes == more and "beyond full scale" in notes[0]
    found, due = (soundfile.read(tmp_path / name)[0] for name in ("parts", "due"))
    assert found.shape == due.shape
    # Vorbis chooses its windows by what it is given at once.
    np.testing.assert_allclose(found, due, rtol=0, atol=0.2 if suffix == ".ogg" else 0)


def test_a_part_that_is_not_finite_is_refused_and_a_suffix_knows_its_rates(tmp_path: Path) -> None:
    parts = [np.zeros((1, 5), np.float32), np.full((1, 5), np.nan, np.float32)]
    with pytest.raises(MediaError, match="not finite"):
        media_audio.write_parts(tmp_path / "a.wav", iter(parts), 8000, 1, ".wav", [])
    assert media_audio.holds(".wav", 12_345, 3) and media_audio.holds(".opus", 24_000, 2)
    assert not media_audio.holds(".opus", 44_100, 1) and not media_audio.holds(".mp3", 8000, 3)
