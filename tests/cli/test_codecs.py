from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import make_codecs, picture, sound

from polyglyph import checkpoint
from polyglyph.cli.codecs import Codecs
from polyglyph.errors import FormatError, InputError
from polyglyph.media import Audio, Image, Video


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folders = make_codecs(tmp_path_factory.mktemp("others"), seed=1)
    return {folder.name: str(folder) for folder in folders}


def test_codes_go_back_through_the_codec_that_made_them(made: Path, others: dict[str, str]) -> None:
    clip = Video(np.stack([picture(16, 20, i) for i in range(3)]), 8.0, Audio(sound(900), 8000))
    codecs = Codecs(str(made / "model"), n_codebooks=2)
    grids = codecs.encode(clip)
    assert [grid.n_codebooks for grid in grids] == [1, 2]
    (back,) = codecs.decode(grids)
    assert back.n_frames == 3 and back.audio.n_samples == 450
    with pytest.raises(FormatError, match="decode them with the codec that made them"):
        Codecs(str(made / "model"), [others["audio"]]).decode(grids)


def test_named_codecs_do_without_a_checkpoint(others: dict[str, str]) -> None:
    codecs = Codecs("gone", [others["image"], others["audio"]], n_codebooks=1)
    assert codecs.codebooks_of("image") is None and codecs.codebooks_of("audio") == 1
    assert codecs.encode(Image(picture(16, 16)))[0].fingerprint == codecs.of("image").fingerprint
    with pytest.raises(InputError, match="unknown checkpoint 'gone'"):
        codecs.of("video")
    with pytest.raises(InputError, match="goes from 1 to 3 here; got 9"):
        Codecs("gone", [others["audio"]], n_codebooks=9)


def test_codes_of_a_packaged_codec_name_it(
    made: Path, others: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = Path(others["image"]).parent
    monkeypatch.setattr(checkpoint, "PACKAGED", packaged)
    grids = Codecs(others["image"]).encode(Image(picture(9, 9)))
    with pytest.raises(FormatError, match="try --codec image") as caught:
        Codecs(str(made / "model")).decode(grids)
    assert grids[0].fingerprint[:12] in str(caught.value)
    with pytest.raises(FormatError, match="try --codec image"):
        Codecs(str(made / "model"), [str(made / "codecs" / "image")]).decode_parts(grids)
    nameless = replace(grids[0], fingerprint="")  # anybody's
    assert Codecs(str(made / "model")).decode([nameless])[0].width == 9
