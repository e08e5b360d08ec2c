"""`generate`: any medium from any media."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from polyglyph.cli import files
from polyglyph.cli.codes import INDEX, write_errors
from polyglyph.cli.options import (
    AsJson,
    Checkpoint,
    Debug,
    Device,
    Force,
    Guidance,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from polyglyph.cli.outcome import Outcome, command, counted, printable
from polyglyph.cli.progress import progress

# Options that stand for a PART; what a file is read as.
SHORTHAND = {"--text": "text", "--image": "image", "--audio": "audio", "--video": "video"}
_MARK = "\0"  # no argument of a process can hold it
_KEYS = {"prompt", "to", "seed", "name"}


class PartsInOrder(TyperCommand):
    """Turns --image X and its kin into PARTs where they stand, so that the order is kept."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rewritten: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            option, equals, value = word.partition("=")
            if word == "--":
                rewritten += [word, *rest]
                break
            if option not in SHORTHAND or (not equals and not rest):
                rewritten.append(word)
                continue
            value = value if equals else rest.pop(0)
            rewritten.append(f"{_MARK}{SHORTHAND[option]}{_MARK}{value}")
        return super().parse_args(ctx, rewritten)


def _shorthand(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar=what, help=f"A PART: {what.lower()}; repeatable.")


def generate(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]...", help="A text, or @PATH of a medium; @@ is a literal @."
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="MODALITY", help="What to make.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE|DIR", help="Its suffix decides the format."),
    ] = None,
    text: Annotated[list[str] | None, _shorthand("text", "TEXT")] = None,
    image: Annotated[list[str] | None, _shorthand("image", "FILE")] = None,
    audio: Annotated[list[str] | None, _shorthand("audio", "FILE")] = None,
    video: Annotated[list[str] | None, _shorthand("video", "FILE")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl", help="Many: a prompt, or {prompt, to, seed, name}, a line."
        ),
    ] = None,
    seed: Seed = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    max_new: Annotated[int | None, typer.Option(help="Most ids of an answer.")] = None,
    checkpoint: Checkpoint = "tiny",
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a medium from a prompt of texts and media, in the order given."""
    with command("generate", as_json, debug) as outcome:
        from polyglyph.errors import InputError

        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        options |= {"guidance": guidance, "max_new": max_new}
        work = _Generating(outcome, checkpoint, device, options, force)
        if prompts is not None:
            if parts or output is None:
                raise InputError("--prompts FILE.jsonl takes no PART, and needs -o DIR")
            work.many(Path(prompts), to, Path(output), seed)
            return
        if not parts:
            raise InputError("expected a PART: a text, or @PATH of a medium ('' for no prompt)")
        if to is None:
            raise InputError(f"expected --to MODALITY: {', '.join(files.suffixes())}")
        work.one(parts, to, output, seed)


@dataclass
class _Request:
    """A line of --prompts."""

    line: int
    prompt: list[Any]
    to: str
    seed: int
    name: str


class _Generating:
    """One run of the verb."""

    def __init__(
        self, outcome: Outcome, checkpoint: str, device: str, options: dict[str, Any], force: bool
    ) -> None:
        self.outcome, self.checkpoint, self.device = outcome, checkpoint, device
        self.options, self.force = options, force

    def load(self, targets: Sequence[str]) -> Any:
        """The pipeline, once it is known to have every target."""
        from polyglyph.pipeline import load

        pipe = load(self.checkpoint, self.device)
        for to in targets:
            pipe.tokenizers[to]
        return pipe

    def one(self, words: Sequence[str], to: str, output: str | None, seed: int) -> None:
        from polyglyph.errors import InputError
        from polyglyph.media import modality_of

        _check_modality(to, "")
        prompt, inputs = read_parts(words)
        if output is not None:
            files.refuse_input(output, inputs)
            files.check_target(output, _modality(to), self.force)
        elif files.TEXT_SUFFIX not in files.suffixes()[_modality(to)]:
            raise InputError(f"expected -o FILE to write the {to} to; only text goes to stdout")
        for path, medium in inputs.items():
            files.note_all(self.outcome, path, medium)
        pipe = self.load([to])
        with progress("generating") as tell:
            document = self._with_progress(pipe, prompt, to, seed, tell)
        medium = document[0].content
        entry: dict[str, Any] = {"modality": modality_of(medium), "seed": seed}
        entry["shape"] = list(document[0].codes.codes.shape) if document[0].codes else []
        if output is None:
            self.outcome.add(**entry, text=medium)
            self.outcome.show(medium)
            return
        files.write(medium, Path(output), self.force)
        files.note_all(self.outcome, output, medium)
        self.outcome.add(**entry, file=printable(output))
        self.outcome.note(f"wrote {printable(output)}")

    def _with_progress(self, pipe: Any, prompt: Any, to: str, seed: int, tell: Any) -> Any:
        from polyglyph.pipeline import IdsEvent, SegmentEvent

        for event in pipe.stream(prompt, to, seed, **self.options):
            if isinstance(event, IdsEvent):
                tell(event.n_ids, pipe.context, f"generating {to}")
            if isinstance(event, SegmentEvent):
                return [event.segment]
        raise AssertionError("a stream ends with its segment")

    def many(self, path: Path, to: str | None, folder: Path, seed: int) -> None:
        """One file per line of a JSONL file, in batches of one target."""
        from polyglyph.checkpoint import atomic_file, shown
        from polyglyph.errors import InputError

        if folder.is_dir() and any(folder.iterdir()) and not self.force:
            raise InputError(f"output {shown(folder)} exists and is not empty; pass -f to write it")
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"output {shown(folder)} is a file; expected a folder")
        files.check_writable(os.fspath(folder))
        requests = self._requests(path, to, seed)
        pipe = self.load([])
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        with progress("generating") as tell:
            for target in dict.fromkeys(request.to for request in requests):
                same = [request for request in requests if request.to == target]
                for start in range(0, len(same), _batch_size()):
                    tell(done, len(requests), f"generating {target}")
                    batch = same[start : start + _batch_size()]
                    self._batch(pipe, batch, folder)
                    done += len(batch)
        self.outcome.results.sort(key=lambda entry: entry["line"])
        lines = "".join(json.dumps(entry) + "\n" for entry in self.outcome.results)
        with atomic_file(folder / INDEX, force=True) as temporary:
            temporary.write_text(lines, "utf-8")
        write_errors(folder, self.outcome)
        self.outcome.note(
            f"wrote {counted(len(self.outcome.results), 'file')} to {printable(folder)}/"
        )

    def _batch(self, pipe: Any, batch: Sequence[_Request], folder: Path) -> None:
        """Writes the answers of one batch; a prompt that can't be answered doesn't spoil others."""
        from polyglyph.errors import InputError

        try:
            prompts, seeds = [r.prompt for r in batch], [r.seed for r in batch]
            documents = pipe.generate_batch(prompts, batch[0].to, seeds, **self.options)
        except InputError as error:
            if len(batch) == 1:
                self.outcome.fail(error, f"line {batch[0].line}")
                return
            for request in batch:
                self._batch(pipe, [request], folder)
            return
        for request, document in zip(batch, documents, strict=True):
            medium = document[0].content
            target = folder / f"{request.name}{files.suffix_of(medium)}"
            files.write(medium, target, self.force)
            entry = {"line": request.line, "file": target.name, "modality": request.to}
            self.outcome.add(**entry, seed=request.seed)

    def _requests(self, path: Path, to: str | None, seed: int) -> list[_Request]:
        """The lines of the file that are right; the others are recorded as failed."""
        from polyglyph.checkpoint import shown
        from polyglyph.errors import InputError

        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"prompts {shown(path)} can't be read: {reason.lower()}") from error
        requests, names = [], files.Names()
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                made = _request(number, text, to, seed + number - 1, path.parent)
                made.name = names.of(made.name, "", keep_suffix=True)
                requests.append(made)
            except InputError as error:
                self.outcome.fail(error, f"line {number}")
        if not requests and not self.outcome.errors:
            raise InputError(f"prompts {shown(path)} is empty; expected one prompt a line")
        return requests


def _batch_size() -> int:
    from polyglyph.pipeline import ROWS_PER_BATCH

    return ROWS_PER_BATCH


def _request(number: int, text: str, to: str | None, seed: int, root: Path) -> _Request:
    """One line: a JSON string, a list of parts, or an object; bare text is a text."""
    from polyglyph.errors import InputError, unknown

    try:
        data = json.loads(text)
    except ValueError:
        data = text.strip()
    if isinstance(data, str | list):
        data = {"prompt": data}
    for key in data if isinstance(data, dict) else ():
        if key not in _KEYS:
            raise unknown(f"key of line {number}", key, sorted(_KEYS))
    if not isinstance(data, dict) or "prompt" not in data:
        raise InputError(f'line {number}: expected a prompt, or {{"prompt": ...}}; got {text[:60]}')
    words = data["prompt"] if isinstance(data["prompt"], list) else [data["prompt"]]
    target, chosen = data.get("to", to), data.get("seed", seed)
    name = data.get("name", f"{number:06d}")
    if not words or not all(isinstance(word, str) for word in [*words, name]):
        raise InputError(f"line {number}: prompt parts and name are strings; got {text[:60]}")
    if isinstance(chosen, bool) or not isinstance(chosen, int):
        raise InputError(f"line {number}: seed is a whole number; got {text[:60]}")
    if target is None:
        raise InputError(f'line {number} names no target; add "to", or pass --to')
    _check_modality(str(target), f" of line {number}")
    if Path(name).name != name:
        raise InputError(f"line {number}: name {name!r} is a path; expected a plain name")
    prompt, _ = read_parts(words, root)
    return _Request(number, prompt, target, chosen, name)


def _modality(span: str) -> str:
    """A span is called like its modality, or begins with it: audio-speech."""
    return span.partition("-")[0]


def _check_modality(to: str, where: str) -> None:
    """InputError with the nearest name, before anything slow, for what no checkpoint can have."""
    from polyglyph.errors import unknown

    if _modality(to) not in files.suffixes():
        raise unknown(f"modality{where}", to, files.suffixes())


def read_parts(words: Sequence[str], root: Path = Path()) -> tuple[list[Any], dict[str, Any]]:
    """(prompt, {path: what was read from it}). @PATH is a file, @@ begins a text with @."""
    from polyglyph.errors import InputError

    prompt: list[Any] = []
    inputs: dict[str, Any] = {}
    for word in words:
        modality: str | None = None
        if word.startswith(_MARK):
            _, modality, word = word.split(_MARK, 2)
            is_file = files.TEXT_SUFFIX not in files.suffixes()[modality]
            word = word.removeprefix("@") if is_file else word
        else:
            is_file = word.startswith("@") and not word.startswith("@@")
            word = word.removeprefix("@")
        if not is_file:
            prompt.append(word)
            continue
        if not word:
            raise InputError("a PART of @ alone names no file; @@ is a literal @")
        path = os.fspath(root / word)  # "" and "." leave it as it is
        inputs[path] = files.read(path, modality)
        prompt.append(inputs[path])
    return prompt, inputs
