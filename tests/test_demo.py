"""The tour on a checkpoint with random weights: what it writes, and what spoils nothing."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyglyph import demo
from polyglyph.data.shapes.captions import parse_caption
from polyglyph.data.shapes.examples import TASKS
from polyglyph.data.sources.shapes import Source
from polyglyph.errors import InputError, missing_extra
from polyglyph.eval.page import mosaic_pixels
from polyglyph.eval.runner import run_tasks
from polyglyph.media import Audio, Image, Video, load
from polyglyph.model.transformer import ModelConfig, Transformer
from polyglyph.pipeline import build_tokens, save_model_checkpoint
from polyglyph.pipeline import load as load_pipeline
from polyglyph.tokenizers.audio import AudioCodec, AudioCodecConfig, AudioTokenizer
from polyglyph.tokenizers.image import ImageCodec, ImageCodecConfig, ImageTokenizer
from polyglyph.tokenizers.quantize import QuantizerConfig
from polyglyph.tokenizers.text import TextTokenizer
from polyglyph.tokenizers.video import VideoCodec, VideoCodecConfig, VideoTokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codecs and a model of random weights; a few ids per medium."""
    torch.manual_seed(3)
    root = tmp_path_factory.mktemp("random")
    trunk: dict[str, Any] = {"base": 8, "multipliers": (1, 1), "attention": False, "patch": 16}
    quantizer = QuantizerConfig(codebook_size=37, d_code=4)
    rvq = QuantizerConfig(kind="rvq", codebook_size=19, n_codebooks=2, d_code=4)
    sound = AudioCodecConfig(
        strides=(32, 20),
        widths=(4, 8),
        encoder_units=(1, 1),
        decoder_units=(1, 1),
        d_latent=8,
        taps=1,
        quantizer=rvq,
    )
    captions = [text for index in range(60) for text in Source(0).captions(index)]
    codecs = [
        TextTokenizer.train(captions, 300),
        ImageTokenizer(ImageCodec(ImageCodecConfig(**trunk, quantizer=quantizer))),
        VideoTokenizer(VideoCodec(VideoCodecConfig(**trunk, quantizer=quantizer))),
        AudioTokenizer(AudioCodec(sound)),
    ]
    for codec in codecs:
        codec.save(root / codec.modality)
    parts = build_tokens([root / codec.modality for codec in codecs])
    assert parts.grammar is not None and parts.vocabulary is not None
    model = Transformer(
        ModelConfig(
            vocabulary_size=parts.vocabulary.size,
            d_model=16,
            n_layers=1,
            n_heads=2,
            n_kv_heads=1,
            d_ff=24,
            context=170,
        )
    )
    grids = {"image": [2, 2], "video": [2, 2, 2]}
    config = {"sequence": {"target_grid": grids}}
    folders = parts.folders
    tokenizers = parts.tokenizers
    save_model_checkpoint(root / "model", model, parts.grammar, tokenizers, config, folders=folders)
    return root / "model"


@pytest.fixture(scope="module")
def toured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One tour with three files of the user's, one of them broken."""
    root = tmp_path_factory.mktemp("tour")
    rng = np.random.default_rng(0)
    Image(rng.integers(0, 256, (53, 71, 3)).astype(np.uint8)).save(root / "mine.png")
    Video(rng.integers(0, 256, (5, 33, 47, 3)).astype(np.uint8), 6.0).save(root / "mine.mp4")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    files = [root / name for name in ("mine.png", "mine.mp4", "broken.png")]
    seen: list[tuple[int, int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "photographs", _one_small_photograph)
        summary = demo.run_demo(
            root / "out", files, checkpoint, progress=lambda *step: seen.append(step)
        )
    assert [done for done, _, _ in seen[1:]] == sorted(done for done, _, _ in seen[1:])
    assert seen[-1][0] == seen[-1][1]
    return root / "out", summary


def _one_small_photograph() -> list[demo.Copy]:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    return [demo.Copy("photograph", Image(pixels))]


class Page(HTMLParser):
    """Balanced tags; what is loaded must be embedded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.ids: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append((tag, named))
        self.ids.add(named.get("id", ""))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def of(self, *names: str) -> list[dict[str, str]]:
        return [named for tag, named in self.tags if tag in names]


def test_the_page_is_well_formed_and_embeds_everything_that_it_shows(
    toured: tuple[Path, Any],
) -> None:
    out, summary = toured
    text = (out / "index.html").read_text("utf-8")
    page = Page(text)
    assert not page.open
    sources = [named["src"] for named in page.of("img", "audio", "video")]
    assert len(sources) > 40 and all(source.startswith("data:") for source in sources)
    assert not page.of("script", "link", "iframe", "object")
    assert not re.search(r"url\(|@import|https?://", text)
    for named in page.of("a"):
        href = named["href"]
        assert href.lstrip("#") in page.ids if href.startswith("#") else (out / href).is_file()
    assert all("alt" in named for named in page.of("img"))
    assert Path(summary["index"]) == out / "index.html"


def test_every_pair_of_the_world_is_on_the_page_with_a_verdict(toured: tuple[Path, Any]) -> None:
    out, summary = toured
    assert {row["pair"] for row in summary["results"]} == set(TASKS)
    page = Page((out / "index.html").read_text("utf-8"))
    badges = [n["class"] for n in page.of("span") if "badge" in n.get("class", "")]
    assert len(badges) == len(summary["results"])
    right = sum(row["ok"] for row in summary["results"])
    assert badges.count("badge good") == right == summary["right"]


def test_results_are_files_of_what_was_asked_for(toured: tuple[Path, Any]) -> None:
    out, summary = toured
    suffix = {"text": ".txt", "image": ".png", "video": ".mp4", "audio": ".wav", "region": ".json"}
    for row in summary["results"]:
        target = row["pair"].rsplit("_", 1)[1]
        path = out / row["file"]
        assert path.suffix == suffix[target] and row["seconds"] > 0
        if target == "text":
            assert path.read_bytes().decode() == row["answer"]
        else:
            load(path, target)
    listed = {row["file"] for row in summary["results"] + summary["reconstructions"]}
    assert {path.name for path in out.iterdir()} == listed | {"index.html"}


def test_given_files_are_reconstructed_at_their_size_and_a_broken_one_spoils_nothing(
    toured: tuple[Path, Any],
) -> None:
    out, summary = toured
    rows = {row["name"]: row for row in summary["reconstructions"]}
    picture = load(out / rows["mine.png"]["file"])
    assert isinstance(picture, Image) and (picture.height, picture.width) == (53, 71)
    assert rows["mine.mp4"]["numbers"]["PSNR"].endswith("dB")
    assert "mine.mp4, by rich-image" not in rows
    (error,) = summary["errors"]
    assert error["source"].endswith("broken.png") and error["type"] == "MediaError"
    assert "broken.png" in (out / "index.html").read_text("utf-8")


def test_real_media_also_go_through_the_codecs_made_for_them(toured: tuple[Path, Any]) -> None:
    """By the page's numbers, and by a picture that both codecs are given here."""
    _, summary = toured
    rows = {row["name"]: row for row in summary["reconstructions"]}
    for name in ("rich-image", "rich-audio"):
        assert any(row.endswith(f", by {name}") for row in rows)
    ours, rich = rows["mine.png"], rows["mine.png, by rich-image"]
    assert rich["numbers"]["codes"] == "63"  # 53 × 71 pixels in patches of 8 × 8
    assert ours["file"] != rich["file"]
    photographs = [row for row in rows if row.startswith("photograph") and "by rich" not in row]
    psnr = {name: float(row["numbers"]["PSNR"].split()[0]) for name, row in rows.items()
            if "PSNR" in row["numbers"]}  # fmt: skip
    assert photographs
    for name in photographs:
        assert psnr[f"{name}, by rich-image"] > psnr[name] + 1


def test_the_same_seed_gives_the_same_answers(checkpoint: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(checkpoint)
    stops = [stop for stop in demo.plan(5) if stop.to == "image"]
    again = [stop for stop in demo.plan(5) if stop.to == "image"]
    demo.answer_all(pipe, stops)
    demo.answer_all(pipe, again[1:3])  # a smaller batch
    assert np.array_equal(stops[1].codes, again[1].codes)
    assert np.array_equal(stops[2].codes, again[2].codes)


def test_an_output_that_exists_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/keep.txt").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        demo.run_demo(tmp_path / "out", checkpoint="no such checkpoint")
    with pytest.raises(InputError, match="no such checkpoint"):
        demo.run_demo(tmp_path / "new", checkpoint="no such checkpoint")
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and len(list(tmp_path.rglob("*"))) == 2


def test_a_missing_extra_is_a_note_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> list[demo.Copy]:
        raise missing_extra("espeakng-loader", "speech")

    monkeypatch.setattr(demo, "spoken", silent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    copies, notes = demo.own_media()
    assert not copies
    assert "polyglyph[eval]" in notes[0] and "polyglyph[speech]" in notes[1]


def test_the_photographs_come_with_scikit_image() -> None:
    pytest.importorskip("skimage")
    photos = demo.photographs()
    assert [max(p.original.width, p.original.height) for p in photos] == [512, 451]


def test_long_media_are_cut_to_what_a_page_shows_and_say_so() -> None:
    wide = demo.shorten(demo.Copy("a", Image(np.zeros((30, 2000, 3), np.uint8))))
    assert wide.original.width == demo.MOST_PIXELS and wide.notes
    long = demo.shorten(demo.Copy("b", Audio(np.zeros((1, 30_000), np.float32), 1000)))
    assert long.original.duration_s == demo.MOST_SECONDS and long.notes
    clip = demo.shorten(demo.Copy("c", Video(np.zeros((40, 700, 8, 3), np.uint8), 8)))
    assert clip.original.n_frames == demo.MOST_FRAMES and clip.original.height <= 320


def test_the_prompts_are_words_of_the_world_about_legal_scenes() -> None:
    for _, _, words, _ in demo.WORDS:
        assert parse_caption(words).things
    assert len({stop.seed for stop in demo.plan(0)}) == len(demo.WORDS) + len(demo.SCENES)


def test_a_mosaic_has_one_pixel_per_code_and_one_colour_per_code() -> None:
    codes = np.arange(35).reshape(1, 5, 7)
    pixels = mosaic_pixels(codes)
    assert pixels.shape == (5, 7, 4)
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) == 35
    assert np.array_equal(mosaic_pixels(codes[:, ::-1]), pixels[::-1])
    assert mosaic_pixels(np.zeros((4, 25), int)).shape == (4, 25, 4)
    assert mosaic_pixels(np.zeros((1, 3, 8, 8), int)).shape == (8, 3 * 8 + 2, 4)


def test_the_evaluation_runs_on_such_a_checkpoint_and_all_outputs_parse(checkpoint: Path) -> None:
    pipe = load_pipeline(checkpoint)
    results = run_tasks(["validity", "text_to_image", "reconstruction_audio"], pipe, 3, seed=1)
    assert results["validity"].right.mean == 1
    assert results["validity"].n == 2 * 2 * 5
    assert results["text_to_image"].right.mean == 0
    assert results["reconstruction_audio"].metrics["bits"].n == 3


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

# Runs in the page: what did not decode, once everything had its time.
_PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const bad = [...document.images].filter(x => !x.naturalWidth).length;
  const media = [...document.querySelectorAll("audio, video")];
  const dumb = media.filter(x => x.error || !(x.duration > 0)).length;
  document.body.dataset.probe = [document.images.length, bad, media.length, dumb].join(" ");
}, 2500));
</script>"""


@pytest.mark.browser
def test_a_browser_decodes_every_picture_clip_and_sound_of_the_page(
    toured: tuple[Path, Any], tmp_path: Path
) -> None:
    out, _ = toured
    page = tmp_path / "page.html"
    page.write_text((out / "index.html").read_text("utf-8") + _PROBE, "utf-8")
    browser = next(filter(None, map(shutil.which, CHROMIUM)))
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    wait = ["--virtual-time-budget=8000", "--dump-dom"]
    command = [browser, *flags.split(), profile, *wait, page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'data-probe="(\d+) (\d+) (\d+) (\d+)"', dom)
    assert found, dom[-500:]
    n_images, bad_images, n_media, bad_media = map(int, found.groups())
    assert n_images > 20 and n_media > 10
    assert bad_images == 0 and bad_media == 0
