"""Streams of sound and frames: chunks of any size give the codes of the whole, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyglyph.errors import InputError
from polyglyph.media import Audio, Image, Video
from polyglyph.tokenizers import audio, video
from polyglyph.tokenizers.audio import AudioCodec, AudioCodecConfig, AudioTokenizer, Resampler
from polyglyph.tokenizers.base import CodeGrid
from polyglyph.tokenizers.video import VideoCodec, VideoCodecConfig, VideoTokenizer

MONO: dict[str, Any] = {
    "sample_rate": 16_000, "strides": (4, 5, 2), "widths": (8, 12, 16), "encoder_units": (1, 0, 2),
    "decoder_units": (3, 1, 0), "d_latent": 11, "taps": 3,
    "quantizer": {"kind": "rvq", "codebook_size": 31, "n_codebooks": 3, "d_code": 6},
}  # fmt: skip


def sounds(**options: Any) -> AudioTokenizer:
    torch.manual_seed(1)
    return AudioTokenizer(AudioCodec(AudioCodecConfig(**{**MONO, **options})), "sound mark")


def clips(**options: Any) -> VideoTokenizer:
    torch.manual_seed(2)
    small = {"base": 8, "multipliers": (1, 2), "quantizer": {"codebook_size": 31, "d_code": 4}}
    net = VideoCodec(VideoCodecConfig(**{**small, **options}))
    for part in (net.temporal_encoder, net.temporal_decoder):
        for p in part.parameters():  # no weight at the zero it starts from: time matters
            nn.init.normal_(p, std=0.2)
    return VideoTokenizer(net, "clip mark")


def noise(n: int, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Audio:
    samples = 0.2 * np.random.default_rng(seed).standard_normal((channels, n))
    return Audio(samples.astype(np.float32), rate)


def frames(n: int, h: int = 7, w: int = 10, fps: float = 8.0) -> Video:
    rng = np.random.default_rng((n, h))
    return Video(rng.integers(0, 256, (n, h, w, 3)).astype(np.uint8), fps)


def cut(media: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """Chunks of these sizes, over and over."""
    start, i = 0, 0
    total = media.n_samples if isinstance(media, Audio) else media.n_frames
    while start < total:
        stop = start + sizes[i % len(sizes)]
        if isinstance(media, Audio):
            yield Audio(media.samples[:, start:stop], media.sample_rate)
        else:
            yield Video(media.frames[start:stop], media.fps)
        start, i = stop, i + 1


def relative(found: np.ndarray, due: np.ndarray) -> float:
    return float(np.abs(found - due).max() / np.abs(due).max())


@pytest.mark.parametrize("sizes", [(1,), (39,), (40,), (1, 977, 3), (100_000,)])
def test_chunks_of_a_sound_give_its_codes_and_its_waveform(sizes: tuple[int, ...]) -> None:
    t = sounds()
    sound = noise(1613)
    whole = t.encode(sound)
    pieces = list(t.encode_stream(cut(sound, sizes)))
    assert t.join(pieces) == whole and len(np.unique(whole.codes)) > 20
    assert all(piece.meta.n_samples == 40 * piece.shape[0] for piece in pieces[:-1])
    due = t.decode(whole).samples
    # The pieces in which codes came need not be those in which they are decoded.
    for parts in (pieces, [_frame(whole, i) for i in range(whole.shape[0])]):
        streamed = np.concatenate([part.samples for part in t.decode_stream(parts)], axis=1)
        assert streamed.shape == due.shape and relative(streamed, due) <= 1e-5


def _frame(grid: CodeGrid, i: int) -> CodeGrid:
    n = min(40, grid.meta.n_samples - 40 * i)
    meta = type(grid.meta)(n, 16_000, 1, grid.meta.source_rate)
    return CodeGrid("audio", grid.codes[:, i : i + 1], meta, grid.fingerprint)


def test_codes_come_as_soon_as_their_samples_are_there() -> None:
    t = sounds()
    given = []
    chunks = (given.append(i) or chunk for i, chunk in enumerate(cut(noise(400), (20,))))
    stream = t.encode_stream(chunks)
    assert next(stream).shape == (1,) and len(given) == 2
    assert next(stream).shape == (1,) and len(given) == 4
    decoded = t.decode_stream(t.encode_stream(cut(noise(4000), (1000,))))
    assert next(decoded).n_samples == 1000


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_of_another_rate_is_resampled_the_same_in_chunks(rate: int, channels: int) -> None:
    t = sounds()
    sound = noise(rate // 10 + 7, rate, channels)
    whole = t.encode(sound)
    assert t.join(list(t.encode_stream(cut(sound, (1, 500, 7, 33))))) == whole
    convert = Resampler(rate, 16_000)
    parts = [convert(part.samples) for part in cut(sound, (333, 1))] + [convert.finish(channels)]
    assert np.array_equal(np.concatenate(parts, 1), audio.resample(sound.samples, rate, 16_000))


@pytest.mark.parametrize(("rate", "channels"), [(24_000, 1), (48_000, 2)])
def test_codecs_of_24_khz_and_of_48_khz_stereo_stream_too(rate: int, channels: int) -> None:
    t = sounds(sample_rate=rate, channels=channels, strides=(8, 5, 6))
    sound = noise(1700, rate, channels)
    whole = t.encode(sound)
    assert t.frame_rate == rate / 240 and whole.meta.n_channels == channels
    pieces = list(t.encode_stream(cut(sound, (77,))))
    assert t.join(pieces) == whole
    due = t.decode(whole).samples
    found = np.concatenate([part.samples for part in t.decode_stream(pieces)], axis=1)
    assert found.shape == (channels, 1700) and relative(found, due) <= 1e-5
    assert (due[0] != due[-1]).any() == (channels == 2)


def test_one_chunk_larger_than_a_window_comes_in_several_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    t = sounds()
    sound = noise(999)
    whole = t.encode(sound)
    monkeypatch.setattr(audio, "_SAMPLES_PER_BATCH", 120)
    pieces = list(t.encode_stream([sound]))
    assert len(pieces) == 9 and t.join(pieces) == whole == t.encode(sound)
    [one] = t.decode_stream([whole])
    assert relative(one.samples, t.decode(whole).samples) <= 1e-5


def test_silence_of_no_samples_is_a_frame_and_chunks_of_none_are_nothing() -> None:
    t = sounds()
    empty = Audio(np.zeros((1, 0), np.float32), 16_000)
    assert t.join(list(t.encode_stream([empty, empty]))) == t.encode(empty)
    sound = noise(95)
    halves = [Audio(sound.samples[:, :40], 16_000), empty, Audio(sound.samples[:, 40:], 16_000)]
    assert t.join(list(t.encode_stream(halves))) == t.encode(sound)
    slow, none = noise(95, 8000), Audio(empty.samples, 8000)
    assert t.join(list(t.encode_stream([none, slow, none]))) == t.encode(slow)
    halves[2].samples[0, 3] = np.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        list(t.encode_stream(halves))


def test_streams_of_sound_that_change_or_go_on_after_their_end_are_refused() -> None:
    t = sounds()
    for other in (noise(50, 8000), noise(50, channels=2)):
        with pytest.raises(InputError, match="one rate and channel count"):
            list(t.encode_stream([noise(50), other]))
    short, fewer = t.encode(noise(50)), t.encode(noise(80), n_codebooks=2)
    with pytest.raises(InputError, match="ends within a frame; it must be last"):
        list(t.decode_stream([short, short]))
    with pytest.raises(InputError, match="of one codec and size"):
        list(t.decode_stream([t.encode(noise(80)), fewer]))
    with pytest.raises(InputError, match="of one codec and size"):
        t.join([t.encode(noise(80)), fewer])


@pytest.mark.parametrize("rule", ["pad", "alone"])
@pytest.mark.parametrize("sizes", [(1,), (3,), (4,), (5, 1, 9), (100,)])
@pytest.mark.parametrize("n", [1, 4, 5, 51])
def test_chunks_of_a_clip_give_its_codes_and_its_frames(
    rule: str, sizes: tuple[int, ...], n: int
) -> None:
    t = clips(first_frame=rule)
    clip = frames(n)
    whole = t.encode(clip)
    lead = 3 if rule == "alone" else 0
    assert whole.shape == (-(-(n + lead) // 4), 2, 3)
    pieces = list(t.encode_stream(cut(clip, sizes)))
    assert t.join(pieces) == whole and sum(piece.meta.n_frames for piece in pieces) == n
    due = t.decode(whole).frames
    found = np.concatenate([part.frames for part in t.decode_stream(pieces)])
    off = np.abs(found.astype(int) - due)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("rule", ["pad", "alone"])
def test_frames_of_windows_are_within_1e_5_of_the_whole(rule: str) -> None:
    net = clips(first_frame=rule).net
    codes = torch.randint(31, (1, 1, 15, 2, 3))
    whole = net.decode(codes)
    assert whole.shape[1] == 60 - net.lead
    late = net.decode(codes[:, :, 2:], 40, 52)
    torch.testing.assert_close(late, whole[:, 48 - net.lead :], rtol=0, atol=1e-5)


def test_a_first_frame_alone_has_codes_of_its_own() -> None:
    t = clips(first_frame="alone")
    clip = frames(9)
    whole = t.encode(clip)
    still = t.encode(Image(clip.frames[0]))
    assert still.shape == (1, 2, 3) and still.meta.n_frames == 1
    assert np.array_equal(whole.codes[:, :1], still.codes) and whole.shape[0] == 3
    shown = t.decode(still).frames
    assert shown.shape == (1, 7, 10, 3)
    assert np.abs(shown[0].astype(int) - t.decode(whole).frames[0]).max() <= 1
    assert t.default_meta((3, 2, 3)).n_frames == 9
    changed = Video(np.concatenate([clip.frames[:5], 255 - clip.frames[5:]]), 8.0)
    assert np.array_equal(t.encode(changed).codes[:, :2], whole.codes[:, :2])
    assert "first_frame" in t.config.model_dump()
    assert "first_frame" not in clips().config.model_dump()


@pytest.mark.parametrize("rule", ["pad", "alone"])
def test_a_still_picture_costs_one_frame_each_way(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = clips(first_frame=rule)
    seen: list[int] = []
    for part in (t.net.encoder, t.net.decoder):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    still = Image(frames(1).frames[0])
    grid = t.encode(still)
    shown = t.decode(grid)
    assert seen == [1, 1] and shown.frames.shape == (1, 7, 10, 3)
    if rule == "pad":
        assert grid.same_codes(t.encode(Video(np.repeat(still.array[None], 4, 0), 8.0)))


def test_clips_of_another_size_or_rate_are_refused_in_a_stream() -> None:
    t = clips()
    for other in (frames(3, h=8), frames(3, fps=9.0)):
        with pytest.raises(InputError, match="one size and rate"):
            list(t.encode_stream([frames(3), other]))
    with pytest.raises(InputError, match="it must be last"):
        list(t.decode_stream([t.encode(frames(3)), t.encode(frames(4))]))
    with pytest.raises(InputError, match="of one codec and size"):
        list(t.decode_stream([t.encode(frames(4)), t.encode(frames(4, h=20))]))


def test_two_streams_of_one_codec_do_not_touch_each_other() -> None:
    a, b = sounds(), clips()
    for t, media in ((a, [noise(500, seed=i) for i in range(2)]), (b, [frames(9), frames(10)])):
        both = [t.encode_stream(cut(item, (20,) if t is a else (2,))) for item in media]
        found: list[list[CodeGrid]] = [[], []]
        for _ in range(4):
            for i in range(2):
                found[i] += [next(both[i], None)] if t is a else []
        for i in range(2):
            pieces = [piece for piece in found[i] if piece is not None] + list(both[i])
            assert t.join(pieces) == t.encode(media[i])


def peak_growth(body: str) -> tuple[float, float]:
    """(MiB at N, MiB more at 4 N): peak memory of a process that runs `body`'s go(n) for both."""
    script = """
        import resource, sys
        sys.path.insert(0, {here!r})
        import numpy as np, torch
        torch.set_num_threads(1)
        from test_stream import *
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    """
    text = textwrap.dedent(script).format(here=os.path.dirname(__file__)) + textwrap.dedent(body)
    text += "\ngo(N); a = peak(); go(4 * N); print(a, peak() - a)\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment, check=False
    )
    assert made.returncode == 0, made.stderr
    at_n, more = made.stdout.split()
    return float(at_n), float(more)


STREAM_OF_SOUND = """
    t = sounds()
    def chunks(n):
        for i in range(n): yield noise(44_100, 44_100, 2, seed=i)
    def go(n):
        total = sum(part.n_samples for part in t.decode_stream(t.encode_stream(chunks(n))))
        assert total == n * 16_000
"""
STREAM_OF_FRAMES = """
    t = clips(base=4, multipliers=(1,), patch=8, attention=False)
    def chunks(n):
        for i in range(n): yield frames(7, 64, 64)
    def go(n):
        total = sum(part.n_frames for part in t.decode_stream(t.encode_stream(chunks(n))))
        assert total == 7 * n
"""


@pytest.mark.parametrize(
    ("body", "n", "given_mib"),
    [
        (STREAM_OF_SOUND, 8, 24 * 44_100 * 8 / 2**20),
        (STREAM_OF_FRAMES, 50, 150 * 7 * 3 * 4096 / 2**20),
    ],
)
def test_four_times_as_long_a_stream_takes_no_more_memory(
    body: str, n: int, given_mib: float
) -> None:
    _, more = peak_growth(body + f"\nN = {n}\n".replace("\n", "\n    "))
    assert more < max(2.0, 0.25 * given_mib), f"{more:.1f} MiB more for {given_mib:.1f} MiB more"


@pytest.mark.slow
@pytest.mark.parametrize("body", [STREAM_OF_SOUND, STREAM_OF_FRAMES])
def test_an_hour_of_sound_and_ten_thousand_frames_take_less_than_1_5_gib(body: str) -> None:
    n = 900 if body is STREAM_OF_SOUND else 358
    at_n, more = peak_growth(body + f"\n    N = {n}\n")
    assert at_n + more < 1536 and more < 64


@pytest.mark.slow
def test_an_hour_of_sound_as_one_medium_takes_less_than_1_5_gib() -> None:
    at_n, more = peak_growth("""
    t = sounds()
    N = 900
    def go(n):
        sound = Audio(np.zeros((1, n * 16_000), np.float32), 16_000)
        assert t.decode(t.encode(sound)).n_samples == n * 16_000
    """)
    assert at_n + more < 1536


@pytest.mark.slow
def test_a_picture_of_48_million_pixels_takes_less_than_1_5_gib() -> None:
    at_n, more = peak_growth("""
    from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig, ImageTokenizer
    torch.manual_seed(0)
    t = ImageTokenizer(ImageCodec(ImageCodecConfig(base=8, local=True)))
    N = 1500
    def go(n):
        picture = Image(np.random.default_rng(0).integers(0, 256, (n, 8000, 3), dtype=np.uint8))
        assert t.decode(t.encode(picture)).pil.size == (8000, n)
    """)
    assert at_n + more < 1536


def test_windows_of_video_are_bounded_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    t = clips()
    clip = frames(23, 8, 12)
    whole = t.encode(clip)
    monkeypatch.setattr(video, "_PIXELS_PER_BATCH", 8 * 8 * 12)
    lengths: list[int] = []
    encode_next = t.net.encode_next
    monkeypatch.setattr(
        t.net, "encode_next", lambda x, past: lengths.append(x.shape[1]) or encode_next(x, past)
    )
    assert t.join(list(t.encode_stream([clip]))) == whole and lengths == [8, 8, 4, 3]
