"""Claims about documents and their JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from polyglyph.errors import FormatError, InputError
from polyglyph.sequence.document import Document, Segment
from polyglyph.tokenizers.base import CodeGrid


def grid(modality: str = "image") -> CodeGrid:
    return CodeGrid(modality, np.arange(6, dtype=np.int32).reshape(1, 2, 3))


def test_a_document_survives_json_with_text_paths_and_codes(tmp_path: Path) -> None:
    Picture.new("RGB", (9, 5), (255, 0, 0)).save(tmp_path / "a.png")
    document = Document(
        [
            Segment("text", "ein roter Kreis é\n", role="prompt", loss_weight=0.0),
            Segment("image", tmp_path / "a.png", role="target", meta={"split": "test"}),
            Segment("audio", CodeGrid("audio", np.zeros((2, 3), np.int32)), span="audio-speech"),
        ]
    )
    document[2].meta["codes_key"] = "000002.audio"
    data = json.loads(json.dumps(document.to_json(paths={1: "a.png"})))
    assert data["format"] == 1 and data["segments"][2]["codes_key"] == "000002.audio"
    codes = {"000002.audio": document[2].codes}
    again = Document.from_json(data, root=tmp_path, codes=codes)
    assert again == document
    assert again[0].text == "ein roter Kreis é\n"
    assert again[1].image.size == (9, 5) and again[1].image.getpixel((0, 0)) == (255, 0, 0)


def test_accessors_refuse_the_wrong_modality_and_codes_that_are_not_decoded() -> None:
    segment = Segment("image", grid())
    assert segment.codes is segment.content and segment.codec == "image"
    with pytest.raises(InputError, match=r"this segment is image; read it with \.image"):
        segment.audio  # noqa: B018
    with pytest.raises(InputError, match="decode them first"):
        segment.image  # noqa: B018
    with pytest.raises(InputError, match="modality audio got image codes"):
        Segment("audio", grid())


def test_same_codes_looks_at_codes_and_codec_only() -> None:
    one = Document([Segment("image", grid(), role="user")])
    assert one.same_codes(Document([Segment("image", "x.png", codes=grid(), role="target")]))
    assert not one.same_codes(Document([Segment("image", grid(), span="image-large")]))
    assert not one.same_codes(Document([*one, *one])) and not one.same_codes(Document())
    assert [s.modality for s in one.of("image")] == ["image"] and not list(one.of("text"))


def test_a_medium_without_path_or_key_cannot_go_into_json() -> None:
    with pytest.raises(InputError, match="has no path"):
        Document([Segment("image", grid())]).to_json()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "something else"),
        ({"format": 2, "segments": []}, "format 2, this version reads up to 1"),
        ({"segments": []}, "format None"),
        ({"format": 1, "segments": [3]}, "segment 0 .* names no modality"),
        ({"format": 1, "segments": [{"modality": "text"}]}, "exactly one of text"),
        ({"format": 1, "segments": [{"modality": "text", "text": 3}]}, "exactly one of text"),
        ({"format": 1, "segments": [{"modality": "text", "text": "", "x": 1}]}, "field 'x'"),
        (
            {"format": 1, "segments": [{"modality": "text", "text": "", "loss_weight": -1}]},
            "loss_weight -1",
        ),
        ({"format": 1, "segments": [{"modality": "text", "text": "", "meta": []}]}, "an object"),
        ({"format": 1, "segments": [{"modality": "text", "text": "", "span": 1}]}, "span 1"),
        ({"format": 1, "segments": [{"modality": "image", "codes_key": "k"}]}, "codes 'k'"),
    ],
)
def test_broken_json_is_refused_naming_segment_and_field(data: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Document.from_json(data)
