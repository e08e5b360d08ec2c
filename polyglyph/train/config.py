"""Sections that both kinds of run share, and the way from a name or file to a whole run.

A run is one TOML file without inheritance. The sections stand on top of the files they configure;
here are only the ones of no other file. Shipped runs are the files of polyglyph/configs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from polyglyph.config import Config, apply_sets, build, read_toml
from polyglyph.errors import ConfigError, InputError, unknown
from polyglyph.lookup import resolve

SHIPPED = Path(__file__).resolve().parent.parent / "configs"

RUNS = {
    "codec": "polyglyph.train.codec_loop:CodecRun",
    "features": "polyglyph.train.feature_loop:FeatureRun",
    "text": "polyglyph.train.text_loop:TextRun",
    "model": "polyglyph.train.model_loop:ModelRun",
}
LOOPS = {
    "codec": "polyglyph.train.codec_loop:train_codec",
    "features": "polyglyph.train.feature_loop:train_features",
    "text": "polyglyph.train.text_loop:train_text",
    "model": "polyglyph.train.model_loop:train_model",
}


class RunSection(Config):
    """`[run]`: what kind of run, how long, on what.

    dtype: of matrix products, under autocast; weights stay fp32 while they train.
    threads: of torch on a CPU; None leaves torch's own choice. kernels: "auto" takes Triton's for
    tensors on a GPU and torch's elsewhere (`polyglyph.kernels.backend`).
    """

    kind: Literal["codec", "features", "text", "model"]
    name: str = "run"
    steps: int = Field(ge=1)
    seed: int = 0
    kernels: Literal["auto", "torch", "triton"] = "auto"
    device: str = "auto"
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    threads: int | None = Field(None, ge=1)
    log_every: int = Field(10, ge=1)


def settle(run: RunSection) -> None:
    """Set what holds for the whole process: threads and kernels. ConfigError when the kernels
    asked for can't run here."""
    import torch

    from polyglyph.kernels import backend

    if run.threads:
        torch.set_num_threads(run.threads)
    try:
        backend.choose(run.kernels)
    except InputError as error:
        raise ConfigError(f"run.{error}") from error


def config_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_config(name_or_path: str) -> Path:
    """A shipped config's name, or the path of a TOML file."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        return path
    shipped = SHIPPED / f"{name_or_path}.toml"
    if shipped.is_file():
        return shipped
    raise unknown("config", name_or_path, config_names(), ConfigError)


def load_run(name_or_path: str, sets: list[str] | None = None) -> Any:
    """The whole run (CodecRun, TextRun or ModelRun, by `run.kind`) of a name or file."""
    path = find_config(name_or_path)
    data = apply_sets(read_toml(path), sets or [])
    section = data.get("run")
    kind = section.get("kind") if isinstance(section, dict) else None
    if not isinstance(kind, str) or kind not in RUNS:
        raise ConfigError(f"config '{path}': run.kind must be one of {sorted(RUNS)}, got {kind!r}")
    source = f"config '{path}'" + (f" with --set {' '.join(sets)}" if sets else "")
    return build(resolve(RUNS[kind]), data, source)
