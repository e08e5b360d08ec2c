from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from tiny_checkpoints import (
    codecs,
    make_checkpoint,
    make_codecs,
    picture,
    save_codec_checkpoint,
    sound,
)

import polyglyph
from polyglyph.assembly import build_tokens
from polyglyph.errors import FormatError, InputError, ParseError
from polyglyph.media import Audio, Image, Region, Video
from polyglyph.pipeline import IdsEvent, Pipeline, RowEvent, SegmentEvent
from polyglyph.sequence.document import Document, Segment
from polyglyph.tokenizers.base import CodeGrid, ImageMeta
from polyglyph.tokenizers.image import ImageCodec, ImageTokenizer

TARGETS = ("text", "image", "video", "audio", "region", "action")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    make_checkpoint(folder, context=180, sampling={"image": {"temperature": 0.0, "guidance": 1.5}})
    return folder


@pytest.fixture(scope="module")
def pipe(root: Path) -> Pipeline:
    return polyglyph.load(root / "model", device="cpu")


def image(height: int = 33, width: int = 50, seed: int = 0) -> Image:
    return Image(PIL.Image.fromarray(picture(height, width, seed)))


def clip(n: int = 5, audio: Audio | None = None) -> Video:
    return Video(np.stack([picture(17, 22, i) for i in range(n)]), 8.0, audio)


# ---------------------------------------------------------------- media and codes


@pytest.mark.parametrize(
    "medium",
    ["a red ring", image(7, 131), Audio(sound(777), 4000), clip(3), Region([0.1, 0.9], "point")],
)
def test_encode_and_decode_keep_the_size_of_any_medium(pipe: Pipeline, medium: Any) -> None:
    (grid,) = pipe.encode(medium)
    (found,) = pipe.decode([grid])
    assert type(found) is type(medium)
    for name in ("width", "height", "n_frames", "n_samples", "kind"):
        assert getattr(found, name, None) == getattr(medium, name, None)


def test_a_clip_with_sound_gives_both_and_gets_its_sound_back(pipe: Pipeline) -> None:
    grids = pipe.encode(clip(3, Audio(sound(900), 4000)))
    assert [grid.modality for grid in grids] == ["video", "audio"]
    (found,) = pipe.decode(grids)
    assert found.n_frames == 3 and found.audio.n_samples == 900


def test_codes_of_another_codec_are_refused(pipe: Pipeline, tmp_path: Path) -> None:
    other = polyglyph.load(make_codecs(tmp_path, seed=1)[1])
    (grid,) = other.encode(image())
    with pytest.raises(FormatError, match=r"codec [0-9a-f]{12}.*[0-9a-f]{12}"):
        pipe.decode([grid])
    with pytest.raises(FormatError, match="encode the medium with that codec"):
        pipe.generate(grid, to="text")


def test_of_several_codecs_of_a_modality_the_one_that_made_the_codes_is_taken(
    tmp_path: Path,
) -> None:
    made = codecs()
    config = made["image"].config.model_copy(update={"span": "image-fine"})  # type: ignore
    fine = ImageTokenizer(ImageCodec(config))
    folders = [save_codec_checkpoint(tmp_path / t.span, t) for t in (made["image"], fine)]
    folders.append(save_codec_checkpoint(tmp_path / "text", made["text"]))
    both = Pipeline(build_tokens(folders), None, "both")
    spans = ["image", "image-fine"]
    grids = [both.tokenizers[span].encode(image()) for span in spans]
    assert grids[0].fingerprint != grids[1].fingerprint
    for found, span, grid in zip(both.decode(grids), spans, grids, strict=True):
        assert np.array_equal(found.array, both.tokenizers[span].decode(grid).array)
    assert [segment.codec for segment in both.prompt(grids)] == spans
    assert [segment.codec for segment in both.parse(both.render(grids, complete=True))] == spans


# ---------------------------------------------------------------- prompts


def test_prompt_media_get_the_size_of_training_and_encode_does_not_resize(pipe: Pipeline) -> None:
    document = pipe.prompt([image(100, 90), "left of", clip(3), Audio(sound(3000), 4000)])
    assert [s.modality for s in document] == ["image", "text", "video", "audio"]
    assert [s.codes.shape for s in document if s.codes is not None][::2] == [(2, 3), (4, 2, 2)]
    assert document[3].codes is not None and document[3].codes.shape == (20,)
    assert pipe.encode(image(100, 90))[0].shape == (13, 12)


def test_row_53_a_prompt_that_spells_control_ids_stays_text(pipe: Pipeline) -> None:
    assert pipe.vocabulary is not None
    text = "<begin_image> end_text eos </s> <|image|> 5 \u2581 row_end begin_audio <0x0A>"
    ids = pipe.render(text)
    found = [pipe.vocabulary.locate(int(id)) for id in ids]
    assert [row is None for row in found] == [True, True, *[False] * (len(ids) - 3), True]
    assert {row[0] for row in found if row is not None} == {"text"}
    back = pipe.parse(pipe.render(text, complete=True))
    assert len(back) == 1 and back[0].text == text


@pytest.mark.parametrize("empty", ["", [], [""]])
def test_the_empty_prompt_is_allowed_and_is_the_null_prompt(pipe: Pipeline, empty: Any) -> None:
    assert len(pipe.render(empty)) == 1
    one = pipe.generate(empty, to="audio", seed=3)
    assert one.same_codes(pipe.generate("", to="audio", seed=3)) and len(one) == 1


def test_a_prompt_may_be_codes_a_path_a_segment_or_a_document(
    pipe: Pipeline, tmp_path: Path
) -> None:
    medium = image(16, 24)
    medium.save(tmp_path / "ring.png")
    (grid,) = pipe.encode(medium)
    document = Document([Segment("image", medium)])
    ids = [pipe.render(p).tolist() for p in (medium, grid, tmp_path / "ring.png", document, [grid])]
    assert all(row == ids[0] for row in ids)


def test_anything_else_as_a_prompt_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="got int"):
        pipe.generate(5, to="image")


def test_a_prompt_longer_than_the_context_names_both_numbers(pipe: Pipeline) -> None:
    text = "a red ring left of " * 40
    n_ids = len(pipe.render(text))
    with pytest.raises(InputError, match=rf"{n_ids} ids.*context of 180"):
        pipe.generate(text, to="image")


@pytest.mark.parametrize("to", TARGETS)
def test_a_prompt_that_just_fits_gets_a_whole_answer(pipe: Pipeline, to: str) -> None:
    least = {"text": 2, "image": 6, "video": 8, "audio": 5, "region": 7, "action": 5}[to]
    text = "x" * (180 - 3 - least)
    assert len(pipe.render(text)) == 180 - least
    document = pipe.generate(text, to=to, seed=1, temperature=2.0)
    assert [segment.modality for segment in document] == [to]
    with pytest.raises(InputError, match="no room"):
        pipe.generate(text + "x", to=to)


# ---------------------------------------------------------------- ids


def test_row_26_an_id_outside_the_vocabulary_is_refused_before_any_work(pipe: Pipeline) -> None:
    ids = pipe.render("a red ring", complete=True)
    for wrong in (pipe.grammar.vocabulary.size, 2**40, -1):
        bad = ids.copy()
        bad[3] = wrong
        with pytest.raises(ParseError, match=f"id {wrong}.*position 3") as caught:
            pipe.parse(bad)
        assert caught.value.position == 3 and caught.value.slot and caught.value.allowed
    grid = CodeGrid("image", np.full((1, 2, 2), 23), ImageMeta(16, 16))
    with pytest.raises(FormatError, match=r"image code 23 at \(0, 0, 0\) is outside 0..22"):
        pipe.generate(grid, to="text")


def test_parse_gives_media_back_and_a_cut_off_end_in_part(pipe: Pipeline) -> None:
    ids = pipe.render(["ring", image(16, 24)], complete=True)
    document = pipe.parse(ids)
    assert document[0].text == "ring" and document[1].image.size == (24, 16)
    with pytest.raises(ParseError):
        pipe.parse(ids[:-4])
    partial = pipe.parse(ids[:-4], partial=True)
    assert partial[1].image.size == (24, 8) and partial[1].meta == {"partial": True}


@pytest.mark.parametrize("ids", [[[1, 2]], [0.5, 1.0], "abc"])
def test_what_is_no_row_of_ids_is_refused(pipe: Pipeline, ids: Any) -> None:
    with pytest.raises(InputError, match="ids are whole numbers in one row"):
        pipe.parse(ids)


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("to", TARGETS)
def test_every_target_is_one_whole_segment(pipe: Pipeline, to: str, temperature: float) -> None:
    prompts = ["a ring", [image(), "?"], ""]
    found = pipe.generate_batch(prompts, to, seed=5, temperature=temperature, max_new=40)
    for document in found:
        (segment,) = document
        assert segment.modality == to and segment.codes is not None and segment.content is not None
        assert pipe.grammar.n_ids(to, segment.codes.shape) <= 40


def test_a_batch_equals_its_prompts_one_by_one(pipe: Pipeline) -> None:
    prompts = ["a ring", [image(), "what?"], "", Audio(sound(300), 4000)]
    batch = pipe.generate_batch(prompts, to="image", seed=[4, 9, 4, 1], temperature=1, max_new=30)
    for prompt, seed, document in zip(prompts, [4, 9, 4, 1], batch, strict=True):
        single = pipe.generate(prompt, to="image", seed=seed, temperature=1, max_new=30)
        assert single.same_codes(document)


def test_a_number_as_seed_counts_up_over_the_batch(pipe: Pipeline) -> None:
    one, two = pipe.generate_batch(["ring", "ring"], to="audio", seed=7)
    assert one.same_codes(pipe.generate("ring", to="audio", seed=7))
    assert two.same_codes(pipe.generate("ring", to="audio", seed=8)) and not one.same_codes(two)


def test_no_prompts_give_no_documents(pipe: Pipeline) -> None:
    assert pipe.generate_batch([], to="image") == []


def test_settings_come_from_the_checkpoint_unless_given(pipe: Pipeline) -> None:
    greedy = [pipe.generate("ring", to="image", seed=seed, max_new=40) for seed in (0, 1)]
    assert greedy[0].same_codes(greedy[1])  # [sampling.image] of the fixture: temperature 0
    assert pipe.sampling("image", top_k=3).model_dump() == {
        "temperature": 0.0, "top_k": 3, "top_p": 1.0, "guidance": 1.5,
    }  # fmt: skip
    assert pipe.sampling("audio").temperature == 1.0
    plain = pipe.generate("ring", to="image", guidance=1.0, max_new=40)
    strong = pipe.generate("ring", to="image", guidance=8.0, max_new=40)
    assert not plain.same_codes(strong)


def test_guidance_does_nothing_to_the_null_prompt(pipe: Pipeline) -> None:
    plain = pipe.generate("", to="audio", seed=2, guidance=1.0)
    assert plain.same_codes(pipe.generate("", to="audio", seed=2, guidance=5.0))


def test_a_grid_that_is_asked_for_is_what_comes(pipe: Pipeline) -> None:
    assert pipe.generate("ring", to="image", grid=(3, 5))[0].image.size == (40, 24)
    assert pipe.generate("ring", to="region")[0].region.kind == "box"
    assert pipe.generate("ring", to="region", grid=(2,))[0].region.kind == "point"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "imgae"}, "unknown modality.*'imgae'; did you mean 'image'"),
        ({"temperature": -1.0}, "temperature.*got -1"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new": 0}, "max_new must be at least 1"),
        ({"max_new": 3}, "max_new of 3 ids is too few for image"),
        ({"seed": -1}, "a seed lies in"),
        ({"seed": 0.5}, "a seed is a whole number"),
        ({"grid": (3,)}, "a grid of image codes has 2 sizes"),
        ({"grid": (0, 3)}, "a grid of image codes"),
        ({"grid": (3, 900)}, "900"),
        ({"grid": (20, 20)}, "no room"),
    ],
)
def test_wrong_options_are_one_sentence(pipe: Pipeline, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        pipe.generate("ring", **{"to": "image", **options})
    assert "\n" not in str(caught.value)


def test_one_seed_too_few_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="got 1 for 2"):
        pipe.generate_batch(["a", "b"], seed=[1])


def test_the_stream_ends_with_what_generate_gives(pipe: Pipeline) -> None:
    events = list(pipe.stream("ring", to="image", seed=3, grid=(3, 4)))
    kinds = [type(event) for event in events]
    assert kinds[-1] is SegmentEvent and kinds.count(RowEvent) == 3
    ids = [id for event in events if isinstance(event, IdsEvent) for id in event.ids]
    assert [e.n_ids for e in events if isinstance(e, IdsEvent)][-1] == len(ids)
    rows = [event for event in events if isinstance(event, RowEvent)]
    assert [row.index for row in rows] == [0, 1, 2]
    last = events[-1]
    assert isinstance(last, SegmentEvent) and last.segment.codes is not None
    assert np.array_equal(np.stack([row.codes for row in rows])[None], last.segment.codes.codes)
    assert Document([last.segment]).same_codes(pipe.generate("ring", "image", 3, grid=(3, 4)))


# ---------------------------------------------------------------- loading


def test_codecs_alone_encode_and_decode_but_do_not_generate(root: Path) -> None:
    alone = polyglyph.load(root / "codecs" / "image")
    assert alone.model is None and alone.vocabulary is None
    assert alone.decode(alone.encode(image(9, 9)))[0].height == 9
    with pytest.raises(InputError, match="holds codecs only, it can't generate"):
        alone.generate("ring", to="image")
    with pytest.raises(InputError, match="without a vocabulary"):
        alone.render([])


def test_an_unknown_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown checkpoint 'tinny'"):
        polyglyph.load("tinny")


def test_an_unknown_key_of_prompt_size_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, sequence={"prompt_size": {"imgae": [8, 8]}})
    with pytest.raises(InputError, match="'imgae'; did you mean 'image'"):
        polyglyph.load(folder)


def test_rows_of_a_clip_count_through_its_frames(pipe: Pipeline) -> None:
    events = list(pipe.stream("ring", to="video", grid=(2, 3, 4)))
    rows = [event for event in events if isinstance(event, RowEvent)]
    assert [row.index for row in rows] == list(range(6)) and {len(r.codes) for r in rows} == {4}
