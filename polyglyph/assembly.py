"""Joins codecs, vocabulary, grammar and model from a checkpoint folder, and writes such folders.

    checkpoint.json config.toml vocabulary.json model.safetensors tokenizers/<span>/

A folder of kind "codec" holds codecs, with or without a vocabulary; one of kind "model" holds all.
Everything is checked against the manifest before it is used. Knows nothing of prompts or runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyglyph.checkpoint import (
    MANIFEST,
    atomic_folder,
    find_checkpoint,
    load_tensors,
    read_manifest,
    save_tensors,
    shown,
    write_manifest,
)
from polyglyph.config import Config, build
from polyglyph.errors import FormatError, InputError, unknown
from polyglyph.lookup import find
from polyglyph.sequence.dialects import DIALECTS
from polyglyph.sequence.grammar import Grammar
from polyglyph.sequence.layout import Dialect
from polyglyph.sequence.vocabulary import Vocabulary
from polyglyph.tokenizers import TABLE, load_tokenizer
from polyglyph.tokenizers.base import CodeGrid, Tokenizer, read_codec_json

if TYPE_CHECKING:
    import torch

    from polyglyph.model.transformer import Transformer

VOCABULARY = "vocabulary.json"
WEIGHTS = "model.safetensors"
# Codecs that nobody trains: they come with every vocabulary that is built.
UNTRAINED = ("region", "action")


class Tokenizers(Mapping[str, Tokenizer]):
    """Codecs by span, in the order of the vocabulary; a modality's name finds its first codec."""

    def __init__(self, by_span: Mapping[str, Tokenizer], owner: str = "this checkpoint") -> None:
        self._by_span = dict(by_span)
        self._owner = owner

    def __getitem__(self, name: str) -> Tokenizer:
        if name in self._by_span:
            return self._by_span[name]
        for tokenizer in self._by_span.values():
            if tokenizer.modality == name:
                return tokenizer
        raise UnknownSpan.of(name, self._owner, self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_span)

    def __len__(self) -> int:
        return len(self._by_span)

    def that_made(self, codes: CodeGrid) -> Tokenizer:
        """The codec of these codes: of its modality's, the one with their fingerprint, else the
        first (it refuses codes of a stranger, and takes those that name no codec)."""
        first = self[codes.modality]
        fitting = (t for t in self.values() if t.modality == first.modality)
        return next((t for t in fitting if t.fingerprint == codes.fingerprint), first)

    @property
    def names(self) -> list[str]:
        """Spans, and modalities that no span is named like."""
        modalities = (tokenizer.modality for tokenizer in self._by_span.values())
        return list(dict.fromkeys([*self._by_span, *modalities]))


class UnknownSpan(InputError, KeyError):
    """A codec that isn't there; a KeyError too, as of any mapping."""

    __str__ = Exception.__str__  # KeyError would put the sentence into quotes

    @classmethod
    def of(cls, name: str, owner: str, names: Sequence[str]) -> UnknownSpan:
        """Names the nearest codec that `owner` has."""
        return cls(str(unknown(f"modality of {owner}", str(name), names)))


@dataclass
class Parts:
    """All of a checkpoint but its model."""

    tokenizers: Tokenizers
    vocabulary: Vocabulary | None = None
    grammar: Grammar | None = None
    folders: dict[str, Path] = field(default_factory=dict)  # span → where its codec is saved
    manifest: dict[str, Any] = field(default_factory=dict)


def make_grammar(
    tokenizers: Mapping[str, Tokenizer], vocabulary: Vocabulary, dialect: Dialect
) -> Grammar:
    """The grammar over these codecs: it refuses others' codes and gives full-size metas."""
    return Grammar(
        dialect,
        vocabulary,
        {span: tokenizer.spec for span, tokenizer in tokenizers.items()},
        {span: tokenizer.fingerprint for span, tokenizer in tokenizers.items()},
        {span: tokenizer.default_meta for span, tokenizer in tokenizers.items()},
    )


# --- reading -----------------------------------------------------------------------------------


def load_parts(folder: str | Path, verify: bool = True, name: str | Path | None = None) -> Parts:
    """Codecs, vocabulary and grammar of a checkpoint folder; `name` is what messages call it.

    FormatError where a file is missing, damaged or not the one that the manifest names."""
    folder = Path(folder)
    manifest = read_manifest(folder, verify=verify)
    tokenizers, folders = {}, {}
    for span, entry in manifest.get("tokenizers", {}).items():
        folders[span] = folder / entry["path"]
        tokenizers[span] = load_tokenizer(folders[span])
        found = tokenizers[span].fingerprint
        if found != entry["fingerprint"] or tokenizers[span].span != span:
            raise FormatError(
                f"checkpoint {shown(folder)}: its {span} codec is {tokenizers[span].span} "
                f"{found[:12]}, {MANIFEST} says {entry['fingerprint'][:12]}; put the codec back "
                f"that the checkpoint was made with"
            )
    owner = f"checkpoint {folder.name if name is None else name}"
    parts = Parts(Tokenizers(tokenizers, owner), manifest=manifest)
    parts.folders = folders
    if (folder / VOCABULARY).is_file():
        parts.vocabulary = _load_vocabulary(folder, manifest)
        dialect = Dialect.from_json(manifest["dialect"])
        parts.grammar = make_grammar(tokenizers, parts.vocabulary, dialect)
    return parts


def _load_vocabulary(folder: Path, manifest: Mapping[str, Any]) -> Vocabulary:
    path = folder / VOCABULARY
    try:
        vocabulary = Vocabulary.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{shown(path)} can't be read as JSON: {error}") from error
    due = manifest.get("vocabulary_sha256")
    if due is not None and vocabulary.sha256 != due:
        raise FormatError(
            f"{shown(path)} is vocabulary {vocabulary.sha256[:12]}, {MANIFEST} says {due[:12]}; "
            f"the ids of another vocabulary mean other codes"
        )
    return vocabulary


def load_model(
    folder: str | Path, manifest: Mapping[str, Any], device: torch.device | str = "cpu"
) -> Transformer:
    """The transformer of a checkpoint folder, in fp32 whatever it is stored as."""
    from polyglyph.model.transformer import ModelConfig, Transformer

    folder = Path(folder)
    config = build(ModelConfig, manifest["config"]["model"], f"checkpoint {shown(folder)}, [model]")
    model = Transformer(config)
    tensors = load_tensors(folder / WEIGHTS)
    expected = model.state_dict()
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    wrong = [k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape]
    if missing or extra or wrong:
        raise FormatError(
            f"{shown(folder / WEIGHTS)} doesn't fit its config: {len(missing)} tensors missing, "
            f"{len(extra)} unknown, {len(wrong)} of another shape "
            f"(first: {sorted([*missing, *extra, *wrong])[0]})"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval().to(device)


# --- building and writing ----------------------------------------------------------------------


def build_tokens(
    codecs: Sequence[str | Path],
    *,
    dialect: str = "polyglyph",
    n_sizes: int = 512,
    untrained: Sequence[str] = UNTRAINED,
) -> Parts:
    """One vocabulary and grammar over saved codecs, in the order given.

    codecs: names or folders of checkpoints, runs, or single codecs. untrained: modalities whose
    codec is nothing but a config; added behind, where no codec of theirs was given. InputError
    where two codecs have one span."""
    folders: dict[str, Path] = {}
    for codec in codecs:
        for span, folder in _codecs_in(codec):
            if span in folders and folders[span] != folder:
                raise InputError(
                    f"codecs {shown(folders[span])} and {shown(folder)} both have the span "
                    f"{span!r}; leave one out, or train one with another codec.span"
                )
            folders[span] = folder
    tokenizers = {span: load_tokenizer(folder) for span, folder in folders.items()}
    have = {tokenizer.modality for tokenizer in tokenizers.values()}
    for modality in untrained:
        if modality not in have:
            made = find(TABLE, modality, "modality")()
            tokenizers[made.span] = made
    if dialect not in DIALECTS:
        raise unknown("dialect", dialect, DIALECTS)
    specs = [tokenizer.spec for tokenizer in tokenizers.values()]
    vocabulary = Vocabulary.build(specs, n_sizes=n_sizes)
    grammar = make_grammar(tokenizers, vocabulary, DIALECTS[dialect])
    return Parts(Tokenizers(tokenizers), vocabulary, grammar, folders)


def _codecs_in(codec: str | Path) -> list[tuple[str, Path]]:
    """(span, folder) of each codec under a name, a checkpoint, a run or a codec's own folder."""
    if (Path(codec) / "codec.json").is_file():
        folder = Path(codec)
        data = read_codec_json(folder)
        return [(data.get("span", data["modality"]), folder)]
    checkpoint = find_checkpoint(codec)
    entries = read_manifest(checkpoint).get("tokenizers", {})
    return [(span, checkpoint / entry["path"]) for span, entry in entries.items()]


def save_tokenizers(
    folder: Path, tokenizers: Mapping[str, Tokenizer], folders: Mapping[str, Path]
) -> dict[str, dict[str, str]]:
    """Writes tokenizers/<span>/ into `folder`; returns the manifest's entries.

    Saved codecs are copied byte for byte, so that they stay the ones that made the codes."""
    entries = {}
    for span, tokenizer in tokenizers.items():
        target = folder / "tokenizers" / span
        if span in folders:
            shutil.copytree(folders[span], target, dirs_exist_ok=True)
        else:
            _save_as_stored(tokenizer, target)
        mark = read_codec_json(target)["fingerprint"]
        entries[span] = {"path": f"tokenizers/{span}", "fingerprint": mark}
    return entries


def _save_as_stored(tokenizer: Tokenizer, target: Path) -> None:
    """Saves a codec so that it keeps its fingerprint: its weights may have been stored in bf16."""
    tokenizer.save(target)
    found = read_codec_json(target)["fingerprint"]
    if not tokenizer.fingerprint or found == tokenizer.fingerprint:
        return
    import torch

    shutil.rmtree(target)
    tokenizer.save(target, dtype=torch.bfloat16)  # type: ignore[call-arg]
    found = read_codec_json(target)["fingerprint"]
    assert found == tokenizer.fingerprint, "a codec that was changed after it was loaded"


def save_tokens(folder: str | Path, parts: Parts, *, force: bool = False) -> None:
    """Writes codecs, vocabulary and dialect as a checkpoint of kind "codec"."""
    assert parts.grammar is not None and parts.vocabulary is not None
    with atomic_folder(folder, force) as temporary:
        entries = save_tokenizers(temporary, parts.tokenizers, parts.folders)
        _write_json(temporary / VOCABULARY, parts.vocabulary.to_json())
        write_manifest(
            temporary,
            "codec",
            {},
            dialect=parts.grammar.dialect.to_json(),
            vocabulary_sha256=parts.vocabulary.sha256,
            tokenizers=entries,
            origin="several codecs under one vocabulary",
        )


def save_model_checkpoint(
    folder: str | Path,
    model: Transformer,
    grammar: Grammar,
    tokenizers: Mapping[str, Tokenizer],
    config: Config | Mapping[str, Any],
    *,
    folders: Mapping[str, Path] | None = None,
    origin: str = "",
    licence: str = "Apache-2.0",
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> None:
    """Writes a checkpoint of kind "model", whole or not at all; an empty `folder` may exist.

    config: the whole run; its `[model]` is replaced by the model's own, `[sequence]` and
    `[sampling]` are what a pipeline reads. folders: span → saved codec, copied byte for byte;
    codecs without an entry are saved anew. dtype: of the stored weights, bf16 by default; they
    are loaded to fp32."""
    import tomli_w
    import torch

    stored = torch.bfloat16 if dtype is None else dtype
    plain = dict(config) if isinstance(config, Mapping) else config.model_dump(mode="json")
    plain["model"] = model.config.model_dump(mode="json")
    with atomic_folder(folder, force) as temporary:
        entries = save_tokenizers(temporary, tokenizers, folders or {})
        state = {name: tensor.to(stored) for name, tensor in model.state_dict().items()}
        save_tensors(temporary / WEIGHTS, state)
        _write_json(temporary / VOCABULARY, grammar.vocabulary.to_json())
        (temporary / "config.toml").write_text(tomli_w.dumps(_without_none(plain)), "utf-8")
        write_manifest(
            temporary,
            "model",
            plain,
            dialect=grammar.dialect.to_json(),
            vocabulary_sha256=grammar.vocabulary.sha256,
            tokenizers=entries,
            origin=origin,
            licence=licence,
        )


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None has None as its default and is left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data) + "\n", "utf-8")
