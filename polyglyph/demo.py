"""The tour: about a dozen prompts through a checkpoint, media through its codecs, one HTML page.

Prompts with the same target go in one batch. Every result is saved as a file and read back from it
by the world's checkers. Knows no network: it stands on the pipeline and on `eval`'s pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyglyph.assembly import load_parts
from polyglyph.checkpoint import atomic_folder, find_checkpoint
from polyglyph.data.shapes.claims import Verdict
from polyglyph.data.shapes.examples import Example, check_prompt, make_example, verdict
from polyglyph.data.sources.shapes import to_media, to_plain
from polyglyph.errors import PolyglyphError, missing_extra
from polyglyph.eval.demo_page import render_page
from polyglyph.eval.files import as_filed, file_bytes, suffix_of
from polyglyph.eval.metrics import bits, clip_ssim, mel_distance, psnr, si_sdr, ssim
from polyglyph.eval.scoring import Progress, no_progress
from polyglyph.media import MODALITY_OF, Audio, Image, Video, load, mix_channels, resample

# What is asked in words: (pair, target, prompt, note).
WORDS: tuple[tuple[str, str, str, str], ...] = (
    ("text_to_image", "image", "a small green triangle left of a big red circle", ""),
    ("text_to_image", "image", "a big white ring above a small blue square", ""),
    (
        "text_to_image",
        "image",
        "a big yellow square in the centre",
        "no training scene holds a yellow square",
    ),
    ("text_to_video", "video", "a big blue ring on the left moving right", ""),
    ("text_to_video", "video", "a small red triangle at the bottom moving up", ""),
    ("text_to_audio", "audio", "a big red circle, then a small green triangle rising", ""),
)
# What is asked about a test scene: (pair, number of things).
SCENES: tuple[tuple[str, int], ...] = (
    ("image_to_text", 2),
    ("video_to_text", 1),
    ("audio_to_text", 2),
    ("image_to_audio", 2),
    ("audio_to_image", 2),
    ("image_question_to_text", 3),
    ("image_question_to_text", 2),
    ("image_instruction_to_image", 2),
    ("image_phrase_to_region", 3),
)
# What the text beside a picture is.
ASKED = {
    "image_question_to_text": "image + question",
    "image_instruction_to_image": "image + instruction",
    "image_phrase_to_region": "image + phrase",
}
# Codecs of real media that come with the package; no model of it knows their codes.
RICH = ("rich-image", "rich-audio")
SPEECH = "Polyglyph reads and makes text, pictures, clips and sounds."
PHOTOS = ("astronaut.png", "chelsea.png")  # inside scikit-image's wheel
MOST_PIXELS = 640  # of a picture's longer side; a clip's is half of it
MOST_FRAMES = 24
MOST_SECONDS = 10.0


@dataclass
class Stop:
    """One prompt of the tour, and what came back."""

    pair: str
    to: str
    parts: list[Any]  # str and media, in order
    judge: Callable[[Any], Verdict]  # of the answer as plain values
    seed: int
    note: str = ""
    truth: Any = None  # the right answer as plain values, where there is one
    answer: Any = None
    codes: np.ndarray | None = None  # (Q, *grid) of the answer
    part_codes: list[np.ndarray | None] = field(default_factory=list)
    found: Verdict | None = None
    seconds: float = 0.0
    file: str = ""

    @property
    def source(self) -> str:
        """What goes in: "image", "image + question"."""
        return ASKED.get(self.pair) or " + ".join(MODALITY_OF(part) for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """One entry of the summary."""
        assert self.found is not None
        return {
            "pair": self.pair,
            "prompt": [p if isinstance(p, str) else MODALITY_OF(p) for p in self.parts],
            "file": self.file,
            "answer": self.answer if isinstance(self.answer, str) else self.to,
            "ok": self.found.ok,
            "detail": list(self.found.detail),
            "seconds": self.seconds,
        }


@dataclass
class Copy:
    """One medium through its codec."""

    name: str
    original: Any
    result: Any = None
    codes: np.ndarray | None = None
    numbers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    file: str = ""

    def to_json(self) -> dict[str, Any]:
        """One entry of the summary."""
        plain = {name: getattr(self, name) for name in ("name", "file", "numbers", "notes")}
        return plain | {"seconds": self.seconds}


@dataclass
class Tour:
    """Everything that the page shows."""

    checkpoint: str
    stops: list[Stop]
    copies: list[Copy]
    n_parameters: dict[str, int]  # of the model and of each codec
    notes: list[str]
    errors: list[dict[str, str]]  # {source, type, message} of given files that can't be shown
    seconds: float = 0.0
    peak_bytes: int = 0
    hardware: str = ""

    def summary(self, index: Path) -> dict[str, Any]:
        """What happened, JSON-able."""
        return {
            "index": str(index),
            "checkpoint": self.checkpoint,
            "right": sum(bool(stop.found and stop.found.ok) for stop in self.stops),
            "results": [stop.to_json() for stop in self.stops],
            "reconstructions": [copy.to_json() for copy in self.copies],
            "n_parameters": self.n_parameters,
            "notes": self.notes,
            "errors": self.errors,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


def run_demo(
    out: str | Path,
    files: Iterable[str | Path] = (),
    checkpoint: str | Path = "tiny",
    seed: int = 0,
    force: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes the tour into the folder `out`: results as files, and index.html; returns a summary.

    `files` are pictures, sounds and clips to reconstruct besides; one that can't be read is listed
    in the summary's `errors` and spoils nothing. `force` replaces an existing folder.
    """
    began = time.perf_counter()
    out = Path(out)
    with atomic_folder(out, force=force) as folder:
        from polyglyph.pipeline import load as load_pipeline

        progress(0, 1, "loading the checkpoint")
        pipe = load_pipeline(checkpoint)
        summary = tour(pipe, folder, files, str(checkpoint), seed, progress, began)
    return summary | {"index": str(out / "index.html")}


def tour(
    pipe: Any,
    folder: Path,
    files: Iterable[str | Path] = (),
    checkpoint: str = "checkpoint",
    seed: int = 0,
    progress: Progress = no_progress,
    began: float | None = None,
) -> dict[str, Any]:
    """`run_demo` with a loaded pipeline, into a folder that exists. `began` is when the clock
    started, by `time.perf_counter`."""
    from polyglyph.eval.machine import describe_machine, peak_bytes

    began = time.perf_counter() if began is None else began
    notes: list[str] = []
    copies, errors = given_media(files)
    own, missing = own_media()
    notes += missing
    through = with_codecs(own + copies, pipe.tokenizers)
    copies = [copy for copy, _ in through]
    stops = plan(seed)
    possible = [s for s in stops if {s.to, *map(MODALITY_OF, s.parts)} <= set(pipe.tokenizers)]
    if len(possible) < len(stops):
        notes.append(f"{len(stops) - len(possible)} prompts are of spans that it lacks")
    targets = list(dict.fromkeys(stop.to for stop in possible))
    n_steps = len(targets) + len(copies) + 1
    for step, to in enumerate(targets):
        progress(step, n_steps, f"generating {to}")
        answer_all(pipe, [stop for stop in possible if stop.to == to])
    for step, (copy, tokenizer) in enumerate(through, len(targets)):
        progress(step, n_steps, f"reconstructing {copy.name}")
        reconstruct(tokenizer, copy)
    progress(n_steps - 1, n_steps, "writing the page")
    add_prompt_codes(pipe, possible)
    write_files(folder, possible, copies)
    found = Tour(checkpoint, possible, copies, count_parameters(pipe), notes, errors)
    found.seconds = time.perf_counter() - began
    found.peak_bytes, found.hardware = peak_bytes(), describe_machine()
    (folder / "index.html").write_text(render_page(found), "utf-8")
    progress(n_steps, n_steps, "done")
    return found.summary(folder / "index.html")


def plan(seed: int) -> list[Stop]:
    """The prompts, in the order of the page."""
    stops = []
    for i, (pair, to, words, note) in enumerate(WORDS):

        def judge(plain: Any, words: str = words, to: str = to) -> Verdict:
            return check_prompt(words, to, plain)

        stops.append(Stop(pair, to, [words], judge, seed + i, note))
    for i, (pair, n_objects) in enumerate(SCENES, len(WORDS)):
        example = make_example(pair, seed, i, "test", n_objects)
        stops.append(_of_example(example, seed + i))
    return stops


def _of_example(example: Example, seed: int) -> Stop:
    to, truth = example.target
    parts = [to_media(part) for part in example.prompt]
    return Stop(example.task, to, parts, lambda plain: verdict(example, plain), seed, truth=truth)


def answer_all(pipe: Any, stops: Sequence[Stop]) -> None:
    """One batch; the seconds of each result are its share of the batch's."""
    began = time.perf_counter()
    documents = pipe.generate_batch(
        [stop.parts for stop in stops], to=stops[0].to, seed=[stop.seed for stop in stops]
    )
    each = (time.perf_counter() - began) / len(stops)
    for stop, document in zip(stops, documents, strict=True):
        segment = document[0]
        stop.answer, stop.seconds = segment.content, each
        stop.codes = None if segment.codes is None else segment.codes.codes
        stop.found = stop.judge(to_plain(as_filed(stop.answer)))


def add_prompt_codes(pipe: Any, stops: Sequence[Stop]) -> None:
    """The codes of the prompts' parts as the model read them, for their mosaics."""
    for stop in stops:
        codes = [segment.codes for segment in pipe.prompt(stop.parts)]
        stop.part_codes = [None if grid is None else grid.codes for grid in codes]


def count_parameters(pipe: Any) -> dict[str, int]:
    """{"model": n, "image": n, ...}; a codec without weights is left out."""
    counts = {"model": sum(p.numel() for p in pipe.model.parameters())}
    for span, tokenizer in pipe.tokenizers.items():
        net = getattr(tokenizer, "net", None)
        if net is not None:
            counts[span] = sum(p.numel() for p in net.parameters())
    return counts


# --- reconstructions ---------------------------------------------------------------------------


def own_media() -> tuple[list[Copy], list[str]]:
    """A photograph or two and a spoken sentence; a note for each extra that is not installed."""
    makers: tuple[Callable[[], list[Copy]], ...] = (photographs, spoken)
    copies, notes = [], []
    for make in makers:
        try:
            copies += make()
        except PolyglyphError as error:
            notes.append(str(error))
    return copies, notes


def photographs() -> list[Copy]:
    """The photographs inside scikit-image's wheel; MissingExtraError without it."""
    import importlib.util

    # Found, not imported: its `data` module would import a second reader of pictures.
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise missing_extra("scikit-image", "eval")
    home = Path(found.origin).parent / "data"
    return [shorten(Copy(f"photograph {name}", Image(home / name))) for name in PHOTOS]


def spoken() -> list[Copy]:
    """A sentence through espeak-ng; MissingExtraError without the extra."""
    from polyglyph.data.shapes.speech import speech

    return [Copy(f"speech: “{SPEECH}”", speech(SPEECH))]


def given_media(files: Iterable[str | Path]) -> tuple[list[Copy], list[dict[str, str]]]:
    """What can be read of the given files, and an error for each of the others."""
    copies: list[Copy] = []
    errors = []
    for path in files:
        try:
            medium: Any = load(path)
            copies.append(shorten(Copy(Path(path).name, medium, notes=list(medium.notes))))
        except PolyglyphError as error:
            kind = type(error).__name__
            errors.append({"source": str(path), "type": kind, "message": str(error)})
    return copies, errors


def with_codecs(copies: Iterable[Copy], tokenizers: Mapping[str, Any]) -> list[tuple[Copy, Any]]:
    """Each with the model's codec of its modality, then again with a rich one where there is one.

    What no codec of the model carries is left out."""
    rich = {
        span: (name, tokenizer)
        for name in RICH
        for span, tokenizer in load_parts(find_checkpoint(name), name=name).tokenizers.items()
    }
    through: list[tuple[Copy, Any]] = []
    for copy in copies:
        span = MODALITY_OF(copy.original)
        if span not in tokenizers:
            continue
        through.append((copy, tokenizers[span]))
        if span in rich:
            name, tokenizer = rich[span]
            again = Copy(f"{copy.name}, by {name}", copy.original, notes=list(copy.notes))
            through.append((again, tokenizer))
    return through


def _short_image(copy: Copy) -> None:
    image = copy.original
    if max(image.width, image.height) > MOST_PIXELS:
        copy.notes.append(f"{image.width}×{image.height} was made smaller for this page")
        small = image.pil.copy()
        small.thumbnail((MOST_PIXELS, MOST_PIXELS))
        copy.original = Image(small)


def _short_audio(copy: Copy) -> None:
    audio = copy.original
    if audio.duration_s > MOST_SECONDS:
        copy.notes.append(f"the first {MOST_SECONDS:g} s of {audio.duration_s:.1f} s")
        end = round(MOST_SECONDS * audio.sample_rate)
        copy.original = Audio(audio.samples[:, :end], audio.sample_rate)


def _short_video(copy: Copy) -> None:
    video = copy.original
    if video.audio is not None:
        copy.notes.append("its sound was left out here")
    if video.n_frames > MOST_FRAMES:
        copy.notes.append(f"the first {MOST_FRAMES} of {video.n_frames} frames")
    # Every n-th pixel is enough for a page, and keeps a big clip from filling the memory.
    stride = -(-max(video.width, video.height) // (MOST_PIXELS // 2))
    if stride > 1:
        copy.notes.append(f"{video.width}×{video.height} was made smaller for this page")
    frames = np.ascontiguousarray(video.frames[:MOST_FRAMES, ::stride, ::stride])
    copy.original = Video(frames, video.fps)


_SHORTEN: dict[str, Callable[[Copy], None]] = {
    "image": _short_image,
    "audio": _short_audio,
    "video": _short_video,
}


def shorten(copy: Copy) -> Copy:
    """Cut to what a page shows, with a note; regions and actions are as they are."""
    _SHORTEN.get(MODALITY_OF(copy.original), lambda _: None)(copy)
    return copy


def _image_numbers(a: Image, b: Image) -> dict[str, str]:
    return {"PSNR": f"{psnr(a.array, b.array):.1f} dB", "SSIM": f"{ssim(a.array, b.array):.3f}"}


def _video_numbers(a: Video, b: Video) -> dict[str, str]:
    cut = b.frames[: a.n_frames, : a.height, : a.width]  # a file may pad odd sizes
    return {"PSNR": f"{psnr(a.frames, cut):.1f} dB", "SSIM": f"{clip_ssim(a.frames, cut):.3f}"}


def _audio_numbers(a: Audio, b: Audio) -> dict[str, str]:
    target = resample(mix_channels(a.samples, 1), a.sample_rate, b.sample_rate)
    n = min(target.shape[-1], b.n_samples)
    target, result = target[:, :n], b.samples[:, :n]
    distance = mel_distance(result, target, b.sample_rate)
    return {"SI-SDR": f"{si_sdr(result, target):.1f} dB", "mel distance": f"{distance:.2f}"}


_NUMBERS: dict[str, Callable[[Any, Any], dict[str, str]]] = {
    "image": _image_numbers,
    "video": _video_numbers,
    "audio": _audio_numbers,
}


def reconstruct(tokenizer: Any, copy: Copy) -> None:
    """Media → codes → media; the numbers are of the result as its file holds it."""
    began = time.perf_counter()
    grid = tokenizer.encode(copy.original)
    copy.result = tokenizer.decode(grid)
    copy.seconds = time.perf_counter() - began
    copy.codes = grid.codes
    measure = _NUMBERS.get(MODALITY_OF(copy.original), lambda a, b: {})
    copy.numbers = measure(copy.original, as_filed(copy.result))
    copy.numbers["codes"] = f"{grid.n_tokens:,}"
    copy.numbers["size"] = f"{bits(grid, tokenizer.spec) / 8:,.0f} bytes"


def write_files(folder: Path, stops: Sequence[Stop], copies: Sequence[Copy]) -> None:
    """Every result under a name that says what it is."""
    rows: list[tuple[Any, str, Any]] = [(stop, stop.pair, stop.answer) for stop in stops]
    rows += [(copy, "reconstruction", copy.result) for copy in copies]
    for i, (row, name, medium) in enumerate(rows, 1):
        row.file = f"{i:02d}-{name.replace('_', '-')}{suffix_of(medium)}"
        (folder / row.file).write_bytes(file_bytes(medium))
