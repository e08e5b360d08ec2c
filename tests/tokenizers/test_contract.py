"""The contract that every tokenizer of the table keeps, whatever its modality."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyglyph.errors import FormatError, InputError
from polyglyph.lookup import find
from polyglyph.media import Action, Audio, Image, Region, Video
from polyglyph.tokenizers import TABLE, load_tokenizer
from polyglyph.tokenizers.action import ActionConfig
from polyglyph.tokenizers.base import (
    CodeGrid,
    Tokenizer,
    check_grid,
    load_codes,
    meta_from_json,
    meta_to_json,
    save_codes,
)
from polyglyph.tokenizers.text import TextTokenizer

WORDS = ["a red circle above a blue square", "zwei gr\u00fcne Dreiecke", "12 345", "\u2581 \u00e9"]
RVQ = {"kind": "rvq", "codebook_size": 13, "n_codebooks": 3, "d_code": 4}
VQ = {"codebook_size": 16, "d_code": 4}
PICTURE = {"base": 8, "multipliers": (1, 2), "quantizer": VQ}
SOUND = {
    "sample_rate": 4000, "strides": (5, 4), "widths": (8, 12), "encoder_units": (1, 1),
    "decoder_units": (2, 1), "d_latent": 9, "quantizer": RVQ, "loss": {"windows": (64,)},
}  # fmt: skip


def trained(modality: str, **options: Any) -> Tokenizer:
    """A codec with random weights, none at the zero it starts from."""
    torch.manual_seed(5)
    kind: Any = find(TABLE, modality, "modality")
    net = kind.net_class(kind.config_class(**options))
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return kind(net, f"{modality} mark")


def words() -> Tokenizer:
    return TextTokenizer.train(WORDS * 9, 300)


def binned(modality: str, **options: Any) -> Tokenizer:
    kind: Any = find(TABLE, modality, "modality")
    return kind(kind.config_class(**options))


CASES: dict[str, tuple[str, Callable[[], Tokenizer]]] = {
    "text": ("text", words),
    "image f4": ("image", lambda: trained("image", **PICTURE)),
    "image f8 local": (
        "image", lambda: trained("image", **{**PICTURE, "multipliers": (1, 2, 2), "local": True}),
    ),
    "image f16 patch 1": (
        "image", lambda: trained("image", **{**PICTURE, "multipliers": (1,) * 5, "patch": 1}),
    ),
    "image residual": ("image", lambda: trained("image", **{**PICTURE, "quantizer": RVQ})),
    "video pad": ("video", lambda: trained("video", **PICTURE)),
    "video alone": ("video", lambda: trained("video", **PICTURE, first_frame="alone")),
    "video local residual": (
        "video",
        lambda: trained("video", **{**PICTURE, "quantizer": RVQ, "local": True},
                        first_frame="alone", n_temporal_levels=1),
    ),
    "audio mono": ("audio", lambda: trained("audio", **SOUND)),
    "audio stereo": ("audio", lambda: trained("audio", **SOUND, channels=2)),
    "region": ("region", lambda: binned("region")),
    "action": ("action", lambda: binned("action")),
    "action own range": ("action", lambda: binned("action", low=(), high=())),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def tokenizer(case: str) -> Tokenizer:
    return CASES[case][1]()


def medium(modality: str, size: int = 3, seed: int = 0) -> Any:
    """A medium of some size; odd sizes that fill no whole stride."""
    rng = np.random.default_rng((seed, size))
    pixels = functools.partial(rng.integers, 0, 256, dtype=np.uint8)
    if modality == "text":
        return " ".join(WORDS)[: 7 * size]
    if modality == "image":
        return Image(pixels((4 * size + 1, 7 * size, 3)))
    if modality == "video":
        return Video(pixels((2 * size + 1, 9, 13, 3)), 7.5)
    if modality == "audio":
        return Audio(0.2 * rng.standard_normal((1 + size % 2, 97 * size)).astype("f4"), 4000)
    if modality == "region":
        return Region(np.sort(rng.random((2, 2)), 0).reshape(-1))
    return Action(rng.uniform(-1, 1, (size, 2)))


def cut(media: Any, n: int) -> Iterable[Any]:
    """The chunks of a medium that has a time axis; others are one."""
    if isinstance(media, str):
        return [media[i : i + n] for i in range(0, len(media), n)]
    if isinstance(media, Audio):
        starts = range(0, media.n_samples, n)
        return [Audio(media.samples[:, i : i + n], media.sample_rate) for i in starts]
    if isinstance(media, Video):
        return [Video(media.frames[i : i + n], media.fps) for i in range(0, media.n_frames, n)]
    if isinstance(media, Action):
        return [Action(media.values[i : i + n]) for i in range(0, len(media.values), n)]
    return [media]


def as_array(media: Any) -> np.ndarray:
    if isinstance(media, str):
        return np.array(list(media.encode()))
    for name in ("samples", "frames", "values", "array"):
        if hasattr(media, name):
            return getattr(media, name)
    raise AssertionError(media)


def same_media(parts: list[Any], whole: Any) -> None:
    axis = 1 if isinstance(whole, Audio) else 0
    found = np.concatenate([as_array(part) for part in parts], axis)
    due = as_array(whole)
    assert found.shape == due.shape and all(type(part) is type(whole) for part in parts)
    if due.dtype == np.uint8:  # 1e-5 of 255 now and then falls on the other side of a half
        off = np.abs(found.astype(int) - due)
        assert off.max() <= 1 and (off > 0).mean() < 1e-3
    else:
        assert np.abs(found - due).max() <= 1e-5 * max(1e-9, np.abs(due).max())


def test_every_modality_of_the_table_is_held_to_the_contract() -> None:
    assert {modality for modality, _ in CASES.values()} == set(TABLE)
    for case, (modality, _) in CASES.items():
        t = tokenizer(case)
        assert type(t) is find(TABLE, modality, "modality") and t.modality == modality
        assert len(t.stride) == t.spec.grid_rank and t.fingerprint


@every_case
def test_a_medium_comes_back_with_its_size_through_a_codes_file(case: str, tmp_path: Path) -> None:
    t = tokenizer(case)
    media = medium(t.modality)
    grid = t.encode(media)
    assert grid == t.encode(media) and grid.fingerprint == t.fingerprint
    assert meta_from_json(t.modality, json.loads(json.dumps(meta_to_json(grid.meta)))) == grid.meta
    save_codes(tmp_path / "c", [("0", "there", [grid])])
    [(_, _, [stored])] = load_codes(tmp_path / "c")
    assert stored == grid
    back = t.decode(stored)
    due, found = as_array(media), as_array(back)
    channels = getattr(t.config, "channels", None)
    assert type(back) is type(media)
    assert found.shape == ((channels, *due.shape[1:]) if channels else due.shape)
    assert found.dtype == due.dtype and np.isfinite(found).all()


@every_case
@pytest.mark.parametrize("size", [1, 2, 5])
def test_codes_are_within_the_range_that_the_span_names(case: str, size: int) -> None:
    t = tokenizer(case)
    grid = t.encode(medium(t.modality, size))
    check_grid(grid, t.spec)
    assert grid.codes.dtype == np.int32 and grid.codes.shape[0] == t.spec.n_codebooks
    assert grid.codes.min() >= 0 and grid.codes.max() < t.spec.codebook_size
    full = t.default_meta(grid.shape)
    assert type(full) is type(grid.meta)
    assert isinstance(t.decode(CodeGrid(t.modality, grid.codes, full)), type(medium(t.modality)))


@every_case
def test_codes_of_another_codec_are_refused_naming_both(case: str) -> None:
    t = tokenizer(case)
    grid = t.encode(medium(t.modality))
    other = dataclasses.replace(grid, fingerprint="0123456789abcdef")
    with pytest.raises(FormatError, match=f"0123456789ab, .* {t.fingerprint[:12]}; decode"):
        t.decode(other)
    with pytest.raises(FormatError, match=f"0123456789ab, .* {t.fingerprint[:12]}; decode"):
        list(t.decode_stream([other]))


@every_case
def test_codes_that_the_codec_can_not_have_made_are_refused(case: str) -> None:
    t = tokenizer(case)
    grid = t.encode(medium(t.modality))
    wrong = [
        dataclasses.replace(grid, codes=grid.codes + t.spec.codebook_size),
        dataclasses.replace(grid, codes=grid.codes - t.spec.codebook_size),
        dataclasses.replace(grid, codes=grid.codes[..., None]),
        dataclasses.replace(grid, codes=np.concatenate([grid.codes] * 4)),
        dataclasses.replace(grid, modality="text" if t.modality != "text" else "image"),
    ]
    for bad in wrong:
        with pytest.raises(FormatError):
            t.decode(bad)


@every_case
def test_a_batch_equals_one_by_one(case: str) -> None:
    t = tokenizer(case)
    media = [medium(t.modality, size, i) for i, size in enumerate((3, 1, 3, 6, 2, 3))]
    assert t.encode_batch(media) == [t.encode(item) for item in media]
    assert t.encode_batch([]) == []


@every_case
@pytest.mark.parametrize("n", [1, 3, 50, 10_000])
def test_a_stream_equals_the_whole(case: str, n: int) -> None:
    t = tokenizer(case)
    media = medium(t.modality, 7)
    whole = t.encode(media)
    pieces = list(t.encode_stream(iter(cut(media, n))))
    assert t.join(pieces) == whole
    for piece in pieces:
        check_grid(piece, t.spec)
    shown = t.decode(whole)
    same_media(list(t.decode_stream(iter(pieces))), shown)
    assert t.join([whole]) == whole
    same_media(list(t.decode_stream([whole])), shown)


@every_case
def test_a_stream_of_nothing_is_refused(case: str) -> None:
    t = tokenizer(case)
    if t.modality != "text":  # which may be empty
        with pytest.raises(InputError):
            list(t.encode_stream([]))
    with pytest.raises(InputError):
        t.join([])


@every_case
def test_a_saved_codec_loads_as_itself(case: str, tmp_path: Path) -> None:
    t = tokenizer(case)
    t.save(tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    assert type(loaded) is type(t) and loaded.config == t.config and loaded.spec == t.spec
    media = medium(t.modality, 4)
    grid = loaded.encode(media)
    assert grid.same_codes(t.encode(media)) and grid.meta == t.encode(media).meta
    loaded.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert again.fingerprint == loaded.fingerprint == grid.fingerprint
    assert np.array_equal(as_array(again.decode(grid)), as_array(loaded.decode(grid)))


@every_case
def test_another_medium_is_refused(case: str) -> None:
    t = tokenizer(case)
    others = [medium(modality) for modality in TABLE if modality != t.modality]
    if t.modality == "video":  # a still picture is a clip of one frame
        others = [other for other in others if not isinstance(other, Image)]
    for other in [*others, None, 3.5, object(), {}]:
        with pytest.raises(InputError):
            t.encode(other)
        with pytest.raises(InputError):
            list(t.encode_stream([other]))


@every_case
def test_codebooks_are_chosen_per_call_where_they_are_residual(case: str) -> None:
    t = tokenizer(case)
    media, n = medium(t.modality), t.spec.n_codebooks
    whole = t.encode(media)
    assert t.encode(media, n_codebooks=n) == whole
    for bad in (0, n + 1, -1, "1"):
        with pytest.raises(InputError, match="codebooks"):
            t.encode(media, n_codebooks=bad)  # type: ignore[arg-type]
    assert t.is_residual == (n == 3)
    for fewer in range(1, n):
        grid = t.encode(media, n_codebooks=fewer)
        assert np.array_equal(grid.codes, whole.codes[:fewer]) and grid.meta == whole.meta
        [streamed] = [t.join(list(t.encode_stream(cut(media, 5), n_codebooks=fewer)))]
        assert streamed == grid == t.encode_batch([media], n_codebooks=fewer)[0]
        assert as_array(t.decode(grid)).shape == as_array(t.decode(whole)).shape
        with pytest.raises(FormatError, match=f"have {n} codebooks"):
            check_grid(grid, t.spec)  # which is how a grammar looks at it
        check_grid(grid, t.spec, fewer_codebooks=True)


@every_case
def test_a_meta_that_the_codes_can_not_have_is_refused(case: str) -> None:
    t = tokenizer(case)
    grid = t.encode(medium(t.modality))
    sizes = [f.name for f in dataclasses.fields(grid.meta) if f.name in _SIZES]
    for name in sizes:
        for value in (0, getattr(grid.meta, name) + 100):
            bad = dataclasses.replace(grid.meta, **{name: value})
            with pytest.raises(InputError):
                t.decode(dataclasses.replace(grid, meta=bad))
    assert sizes or t.modality in ("text", "region", "action")


_SIZES = ("height", "width", "n_frames", "n_samples", "sample_rate")


def test_an_action_codec_of_its_own_range_is_no_other() -> None:
    a, b = tokenizer("action"), tokenizer("action own range")
    assert a.fingerprint != b.fingerprint and b.config == ActionConfig(low=(), high=())
