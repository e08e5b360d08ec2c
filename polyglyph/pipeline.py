"""The facade: any medium to any medium with one checkpoint.

    media ─encode─▶ codes ─render─▶ ids ─▶ transformer ─▶ ids ─parse─▶ codes ─decode─▶ media

Joins what the floors below do; knows no modality by name and no layout. Codecs run on the CPU in
fp32 from their stored values; the model runs on the device that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyglyph.assembly import (
    Parts,
    Tokenizers,
    build_tokens,
    load_model,
    load_parts,
    save_model_checkpoint,
    save_tokens,
)
from polyglyph.checkpoint import find_checkpoint, shown
from polyglyph.config import build
from polyglyph.device import note_once, pick_device
from polyglyph.errors import InputError
from polyglyph.fitting import PromptSize, fit
from polyglyph.media import Audio, Video, modality_of
from polyglyph.media import load as load_medium
from polyglyph.sequence.document import Document, Segment
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers.base import CodeGrid

if TYPE_CHECKING:
    from polyglyph.model.sampling import Sampling
    from polyglyph.model.transformer import Transformer

__all__ = [
    "IdsEvent", "Parts", "Pipeline", "RowEvent", "SegmentEvent", "Tokenizers", "build_tokens",
    "load", "save_model_checkpoint", "save_tokens",
]  # fmt: skip

# Rows of one forward; more prompts go through in turn.
ROWS_PER_BATCH = 32
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class IdsEvent:
    """New ids of the target; `n_ids` counts all so far, begin id and size included."""

    ids: tuple[int, ...]
    n_ids: int


@dataclass(frozen=True)
class RowEvent:
    """A row of codes is whole; rows count from 0 through all frames."""

    index: int
    codes: np.ndarray  # int32 (n,), as they were written


@dataclass(frozen=True)
class SegmentEvent:
    """The target is done and decoded."""

    segment: Segment
    seconds: float


Event = IdsEvent | RowEvent | SegmentEvent


def load(
    name_or_folder: str | Path = "tiny",
    device: str = "auto",
    *,
    verify: bool = True,
    kernels: str | None = None,
) -> Pipeline:
    """The pipeline of a checkpoint: a packaged name, a checkpoint folder or a run folder.

    device: "auto", "cpu", "cuda", "cuda:N" or "mps", for the model. `verify=False` skips the
    hashes of a large checkpoint. kernels: "auto", "torch" or "triton", for the whole process; None
    leaves what holds. InputError for an unknown name and for kernels that can't run here,
    FormatError for a damaged folder.
    """
    if kernels is not None:
        from polyglyph.kernels import backend

        backend.choose(kernels)
    folder = find_checkpoint(name_or_folder)
    parts = load_parts(folder, verify, name_or_folder)
    model = None
    if parts.manifest["kind"] == "model":
        model = load_model(folder, parts.manifest, pick_device(device))
    return Pipeline(parts, model, name=str(name_or_folder))


class Pipeline:
    """Codecs, grammar and model of one checkpoint.

    tokenizers: codecs by span, or by modality; they encode any size. model: None for a checkpoint
    of codecs, which encodes and decodes but does not generate. grammar, vocabulary: None for a
    single codec. manifest: what checkpoint.json says.
    """

    def __init__(self, parts: Parts, model: Transformer | None, name: str = "checkpoint") -> None:
        self.tokenizers: Tokenizers = parts.tokenizers
        self.vocabulary: Vocabulary | None = parts.vocabulary
        self.manifest = parts.manifest
        self.model = model
        self.name = name
        self._grammar = parts.grammar
        config = parts.manifest.get("config", {})
        sequence = config.get("sequence", {})
        source = f"checkpoint {shown(name)}"
        where = f"{source}, [sequence.prompt_size]"
        self.prompt_size = build(PromptSize, sequence.get("prompt_size") or {}, where)
        self.target_grids: dict[str, tuple[int, ...]] = {
            name: tuple(grid) for name, grid in (sequence.get("target_grid") or {}).items()
        }
        self._sampling = config.get("sampling") or {}

    @property
    def grammar(self) -> Grammar:
        """InputError for a checkpoint that has none."""
        if self._grammar is None:
            raise InputError(
                f"checkpoint {shown(self.name)} holds codecs without a vocabulary, so it knows no "
                f"ids; use a checkpoint of a model"
            )
        return self._grammar

    @property
    def context(self) -> int:
        """Ids that prompt and answer may have together."""
        return self._model().config.context

    def sampling(self, modality: str, **given: Any) -> Sampling:
        """How a target of `modality` is drawn: `given`, else the checkpoint's `[sampling]`."""
        from polyglyph.model.sampling import Sampling

        stored = self._sampling.get(modality, {})
        chosen = {name: value for name, value in given.items() if value is not None}
        return build(Sampling, {**stored, **chosen}, "sampling")

    # -- media and codes -------------------------------------------------------------------------

    def encode(self, medium: Any) -> list[CodeGrid]:
        """Codes of a text or medium of any size; of a clip with sound, those of both."""
        sound = medium.audio if isinstance(medium, Video) else None
        media = [medium] if sound is None else [medium, sound]
        return [self.tokenizers[modality_of(item)].encode(item) for item in media]

    def decode(self, grids: Sequence[CodeGrid]) -> list[Any]:
        """The media of grids, each by the codec that made it; a clip and a sound become one clip.
        FormatError for codes of another codec than the checkpoint's."""
        media = [self.tokenizers.that_made(grid).decode(grid) for grid in grids]
        clips = [medium for medium in media if isinstance(medium, Video)]
        sounds = [medium for medium in media if isinstance(medium, Audio)]
        if len(clips) == len(sounds) == 1:
            clips[0].audio = sounds[0]
            media = [medium for medium in media if medium is not sounds[0]]
        return media

    # -- documents and ids -----------------------------------------------------------------------

    def prompt(self, prompt: Any) -> Document:
        """A prompt as a document with codes; media are brought to the size of `prompt_size`.

        prompt: a str, a medium, codes, a Path (a media file), or a list of these; "" and [] are
        the empty prompt. A str is plain text, whatever it spells. InputError for anything else,
        and for a modality that the checkpoint hasn't."""
        parts = prompt if isinstance(prompt, list | tuple) else [prompt]
        return Document(self._segment(part) for part in parts if not _is_empty(part))

    def _segment(self, part: Any) -> Segment:
        span = None
        if isinstance(part, Segment):
            span = part.span
            part = part.content if part.codes is None else part.codes
        if isinstance(part, CodeGrid):
            if span is None and part.modality in self.tokenizers:
                made = self.tokenizers.that_made(part).span
                span = None if made == part.modality else made
            return Segment(part.modality, part, role="prompt", loss_weight=0.0, span=span)
        if isinstance(part, Path):
            part = load_medium(part)
        modality = modality_of(part)
        tokenizer = self.tokenizers[span or modality]
        medium = fit(part, self.prompt_size)
        for note in getattr(medium, "notes", ())[len(getattr(part, "notes", ())) :]:
            note_once(note)
        named = None if tokenizer.span == modality else tokenizer.span
        return Segment(modality, medium, "prompt", 0.0, tokenizer.encode(medium), named)

    def render(self, prompt: Any, *, complete: bool = False) -> np.ndarray:
        """The ids int64 (T,) of a prompt, or of a whole document with its eos if `complete`."""
        document = prompt if isinstance(prompt, Document) else self.prompt(prompt)
        if any(segment.codes is None for segment in document):
            document = self.prompt(list(document))
        return self.grammar.render(document, complete=complete).ids

    def parse(self, ids: Any, *, partial: bool = False) -> Document:
        """The document that ids (T,) spell, decoded to media.

        ParseError names the first id that is wrong or outside the vocabulary, its position, the
        slot and what was allowed there."""
        array = np.asarray(ids)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"ids are whole numbers in one row; got {array.dtype} of shape {array.shape}"
            )
        document = self.grammar.parse(array, partial=partial)
        for segment in document:
            self._decode_segment(segment)
        return document

    def _decode_segment(self, segment: Segment) -> Segment:
        assert segment.codes is not None
        segment.content = self.tokenizers[segment.codec].decode(segment.codes)
        return segment

    # -- generation ------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Any,
        to: str = "image",
        seed: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        max_new: int | None = None,
        grid: Sequence[int] | None = None,
    ) -> Document:
        """One segment of modality `to` that answers the prompt (see `prompt`).

        temperature, top_k, top_p, guidance: default to the checkpoint's `[sampling]` for `to`.
        max_new: most ids of the answer, its begin, size and end included. grid: the shape of its
        codes, such as (8, 8); by default the model writes it. The same seed gives the same ids on
        one machine. InputError for a modality that the checkpoint hasn't, a prompt that leaves no
        room in the context, and settings out of range."""
        options = _Options(temperature, top_k, top_p, guidance, max_new, grid)
        return self._generate([prompt], to, [_checked_seed(seed)], options)[0]

    def generate_batch(
        self,
        prompts: Sequence[Any],
        to: str = "image",
        seed: int | Sequence[int] = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        max_new: int | None = None,
        grid: Sequence[int] | None = None,
    ) -> list[Document]:
        """One document per prompt, as `generate`; prompt i has seed[i], or seed + i of a number.

        The rows of a batch don't influence each other."""
        if isinstance(seed, Sequence | np.ndarray):
            seeds = [_checked_seed(one) for one in seed]
        else:
            seeds = [_checked_seed(seed) + i for i in range(len(prompts))]
        if len(seeds) != len(prompts):
            raise InputError(f"expected one seed per prompt; got {len(seeds)} for {len(prompts)}")
        options = _Options(temperature, top_k, top_p, guidance, max_new, grid)
        documents: list[Document] = []
        for start in range(0, len(prompts), ROWS_PER_BATCH):
            part = slice(start, start + ROWS_PER_BATCH)
            documents += self._generate(prompts[part], to, seeds[part], options)
        return documents

    def stream(
        self,
        prompt: Any,
        to: str = "image",
        seed: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        max_new: int | None = None,
        grid: Sequence[int] | None = None,
    ) -> Iterator[Event]:
        """The events of one answer as it is made; closing the iterator stops the work.

        Ends with the SegmentEvent that `generate` would have returned as a document."""
        from polyglyph.streaming import run_in_thread

        options = _Options(temperature, top_k, top_p, guidance, max_new, grid)
        began = time.perf_counter()
        target = self._target(to, options)
        rows = self._rows([prompt], target, options)
        ends = self._row_ends(target.span)
        written = list(rows.prefix)
        yield IdsEvent(tuple(written), len(written))

        def work(on_ids: Any) -> list[list[int]]:
            return self._continue(rows, target, [_checked_seed(seed)], on_ids)

        row: list[int] = []
        n_rows = 0
        for new in run_in_thread(work):
            written += new
            row += new
            yield IdsEvent(tuple(new), len(written))
            if ends & set(new):
                codes = self._codes_of(target.span, row)
                row = []
                if len(codes):  # none between a row's end and its frame's
                    yield RowEvent(n_rows, codes)
                    n_rows += 1
        document = self._answer(written)
        yield SegmentEvent(document[0], time.perf_counter() - began)

    def _generate(
        self, prompts: Sequence[Any], to: str, seeds: list[int], options: _Options
    ) -> list[Document]:
        target = self._target(to, options)
        rows = self._rows(prompts, target, options)
        found = self._continue(rows, target, seeds, None)
        return [self._answer([*rows.prefix, *ids]) for ids in found]

    def _model(self) -> Transformer:
        if self.model is None:
            raise InputError(
                f"checkpoint {shown(self.name)} holds codecs only, it can't generate; use a "
                f"checkpoint of a model, such as 'tiny'"
            )
        return self.model

    def _target(self, to: str, options: _Options) -> _Target:
        model = self._model()
        tokenizer = self.tokenizers[to]
        span, modality = tokenizer.span, tokenizer.modality
        grid = options.grid
        if grid is None:
            grid = self.target_grids.get(span, self.target_grids.get(modality))
            grid = tokenizer.target_grid if grid is None else grid
        elif len(grid) != tokenizer.spec.grid_rank or min(grid) < 1:
            raise InputError(
                f"a grid of {to} codes has {tokenizer.spec.grid_rank} sizes from 1; got "
                f"{tuple(grid)}"
            )
        if options.max_new is not None and options.max_new < 1:
            raise InputError(f"max_new must be at least 1; got {options.max_new}")
        return _Target(
            to,
            span,
            tuple(self.grammar.begin_ids(span, grid).tolist()),
            self.sampling(modality, **options.sampling),
            min(model.config.context, options.max_new or model.config.context),
        )

    def _rows(self, prompts: Sequence[Any], target: _Target, options: _Options) -> _Rows:
        """The ids in front of every answer, and the automaton's state behind them."""
        context, automaton = self.context, self.grammar.automaton
        rows, states = [], []
        for prompt in prompts:
            ids = self.render(prompt)
            limit = min(context, len(ids) + target.most_new)
            # The eos that the answer leaves out has to fit into the automaton's budget too.
            state = self._between_segments(limit + 1 - len(ids))[None]
            for id in target.prefix:
                ranges = automaton.allowed_ranges(state)[0]
                if not ((ranges[:, 0] <= id) & (id < ranges[:, 1])).any():
                    raise self._no_room(len(ids), target, options)
                state = automaton.step(state, np.array([id]))
            rows.append([*ids.tolist(), *target.prefix])
            states.append(state[0])
        return _Rows(rows, np.array(states, np.int32).reshape(-1, 6), target.prefix)

    def _between_segments(self, room: int) -> np.ndarray:
        """The automaton's state (6,) where a segment may begin and `room` ids may follow.

        The same behind any whole prompt, so a prompt needn't be walked."""
        automaton = self.grammar.automaton
        bos = self.grammar.render(Document(), complete=False).ids
        return automaton.walk(bos, automaton.initial(room + len(bos)))[1]

    def _row_ends(self, span: str) -> set[int]:
        """The ids that end a row or a frame of `span`; none where its layout has none."""
        layout = self.grammar.dialect.layout(self.grammar.specs[span].modality)
        names = [name for name in (layout.row_end, layout.frame_end) if name is not None]
        return {self.grammar.vocabulary.control(name.format(span=span)) for name in names}

    def _codes_of(self, span: str, ids: Sequence[int]) -> np.ndarray:
        """The codes int32 (n,) of `span` among ids, in their order."""
        vocabulary = self.grammar.vocabulary
        found = [vocabulary.locate(id) for id in ids]
        return np.array([one[2] for one in found if one is not None and one[0] == span], np.int32)

    def _no_room(self, n_prompt: int, target: _Target, options: _Options) -> InputError:
        if options.max_new is not None and n_prompt + options.max_new < self.context:
            return InputError(
                f"max_new of {options.max_new} ids is too few for {target.name}; raise it, or "
                f"leave it out to use the context of {self.context} ids"
            )
        return InputError(
            f"the prompt has {n_prompt} ids, which leaves no room for {target.name} in the "
            f"context of {self.context}; shorten it or use fewer media"
        )

    def _continue(
        self, rows: _Rows, target: _Target, seeds: list[int], on_ids: Any
    ) -> list[list[int]]:
        from polyglyph.model.generate import generate

        if not rows.ids:
            return []
        empty = [*self.grammar.render(Document(), complete=False).ids.tolist(), *target.prefix]
        automaton = self.grammar.automaton
        between = self._between_segments(1)[0]
        return generate(
            self._model(),
            rows.ids,
            automaton,
            rows.states,
            max_new=self.context,
            seeds=seeds,
            sampling=target.sampling,
            unconditional=[empty] * len(rows.ids) if target.sampling.guidance != 1.0 else None,
            stop=lambda states: (states[:, 0] == between) | automaton.is_end(states),
            on_ids=on_ids,
        )

    def _framed(self, ids: Sequence[int]) -> np.ndarray:
        """The ids of an answer as those of a whole document."""
        bos, eos = self.grammar.render(Document()).ids
        return np.array([bos, *ids, eos], np.int64)

    def _answer(self, ids: Sequence[int]) -> Document:
        document = self.grammar.parse(self._framed(ids))
        assert len(document) == 1, document
        document[0].role = "target"
        self._decode_segment(document[0])
        return document


@dataclass(frozen=True)
class _Options:
    """What a caller may ask of an answer; None: the default."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    guidance: float | None
    max_new: int | None
    grid: Sequence[int] | None

    @property
    def sampling(self) -> Mapping[str, Any]:
        names = ("temperature", "top_k", "top_p", "guidance")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Target:
    """What is to be made."""

    name: str  # as the caller said it
    span: str
    prefix: tuple[int, ...]  # ids that every answer starts with
    sampling: Sampling
    most_new: int


@dataclass(frozen=True)
class _Rows:
    """What generation starts from."""

    ids: list[list[int]]
    states: np.ndarray  # (B, 6)
    prefix: tuple[int, ...] = field(default=())


def _is_empty(part: Any) -> bool:
    return isinstance(part, str) and not part


def _checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise InputError(f"a seed is a whole number; got {seed!r}")
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"a seed lies in 0..{MOST_SEED}; got {seed}")
    return int(seed)
