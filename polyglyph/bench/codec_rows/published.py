"""Published codecs in our nets against their publishers' or transformers', on the same weights.

Both sides in turn, CPU seconds; the figure of a row is the ratio of medians (of 5, after one that
isn't counted), and rows say whether the codes are the same.
Weights are random, of the published sizes: codebooks are drawn among the latents, so that every
search is a choice. Ours goes through the tokenizer's door, the peer from tensor to tensor.

A row more is a line of PEERS and a function that builds its two sides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyglyph.bench.runner import BenchResult

N_TURNS = 5
# A relative difference of two fp64 distances under which a choice is rounding: a tie.
TIE = 1e-6
# (vectors (F, D), table (K, D)) of a codebook's search, fp64, given the codes before it.
Search = Callable[[int, np.ndarray], tuple[Any, Any]]


@dataclass(frozen=True)
class Sides:
    """Two codecs of one set of weights. Encoding gives codes (Q, …), decoding an array."""

    encode: tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]  # ours, theirs
    decode: tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]
    search: Search  # how a difference in the codes is judged
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A row or two: how its sides are made (quick: small ones), and the ratios that are due."""

    name: str
    build: Callable[[bool], Sides]
    encode: float | None
    decode: float | None


# --- measuring ---------------------------------------------------------------------------------


def rows(quick: bool, say: Callable[[str], None]) -> Iterator[BenchResult]:
    """Encoding and decoding of every peer."""
    for peer in PEERS:
        sides = peer.build(quick)
        for what in ("encode", "decode"):
            target = getattr(peer, what)
            if target is not None:
                name = f"{peer.name}, {what}"
                say(name)
                yield _measured(name, target, sides, what, 1 if quick else N_TURNS)


def _measured(name: str, target: float, sides: Sides, what: str, n_turns: int) -> BenchResult:
    import torch

    cpu_s: dict[str, list[float]] = {"ours": [], "theirs": []}
    last: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for turn in range(n_turns + 1):
            for side, call in zip(cpu_s, getattr(sides, what), strict=True):
                began = time.process_time()
                last[side] = call()
                if turn:  # the first one allocates
                    cpu_s[side].append(time.process_time() - began)
    ours, theirs = (statistics.median(values) for values in cpu_s.values())
    if what == "encode":
        facts = agreement(last["ours"], last["theirs"], sides.search)
        same = f"codes: {facts['same']:.4%} the same, {facts['ties']} ties, {facts['wrong']} wrong"
    else:
        n = len(last["theirs"])  # DAC's own decoder ends a few samples early
        distance = float(np.abs(last["ours"][:n] - last["theirs"]).max())
        facts = {"distance": distance, "peak": float(np.abs(last["theirs"]).max())}
        same = f"largest difference {distance:.1e} of {facts['peak']:.2g}"
    return BenchResult(
        name,
        theirs / ours,
        "×",
        target,
        at_most=False,
        summary=f"{ours:.3f} s against {theirs:.3f} s; {same}",
        samples={f"{side}_cpu_s": values for side, values in cpu_s.items()},
        facts=facts | sides.facts,
    )


def agreement(codes: np.ndarray, due: np.ndarray, search: Search) -> dict[str, Any]:
    """Shares and counts of codes (Q, …): a place's first difference is a tie or wrong.

    What follows a tie is another residual's and isn't judged."""
    assert codes.shape == due.shape, (codes.shape, due.shape)
    flat, expected = codes.reshape(len(codes), -1), due.reshape(len(due), -1)
    ties = wrong = 0
    for place in np.flatnonzero((flat != expected).any(axis=0)):
        q = int(np.flatnonzero(flat[:, place] != expected[:, place])[0])
        vectors, table = search(q, expected)
        two = table[[int(flat[q, place]), int(expected[q, place])]]
        a, b = (two - vectors[place]).square().sum(-1).tolist()
        is_tie = abs(a - b) <= TIE * max(a, b)
        ties, wrong = ties + is_tie, wrong + (not is_tie)
    return {"same": float((codes == due).mean()), "ties": ties, "wrong": wrong}


def residual_search(latents: Any, tables: Any) -> Search:
    """Euclidean residual search: latents (F, D), tables (Q, K, D)."""

    def search(q: int, due: np.ndarray) -> tuple[Any, Any]:
        residual = latents.double()
        for i in range(q):
            residual = residual - tables[i][due[i]].double()
        return residual, tables[q].double()

    return search


# --- sound --------------------------------------------------------------------------------------


def make_sound(duration_s: float, rate: int) -> Any:
    """Gliding tones under bursts of noise: (1, S) float32, peak under 1."""
    import torch

    generator = torch.Generator().manual_seed(0)
    n = int(duration_s * rate)
    t = torch.arange(n) / rate
    tones = sum(torch.sin(2 * torch.pi * f * t * (1 + 0.05 * t)) for f in (110.0, 331.0, 1250.0))
    bursts = torch.randn(n, generator=generator) * (torch.sin(2 * torch.pi * 3 * t) > 0)
    return (0.15 * tones + 0.1 * bursts).clamp(-1, 1)[None]


def drawn_tables(latents: Any, n_codebooks: int, size: int) -> Any:
    """Residual tables (Q, K, D) of latents (F, D), in which no latent finds itself.

    Rows are residuals, drawn, shortened and shaken: each table takes out a third, as trained ones
    do. Residuals that shrink faster soon differ by rounding alone."""
    import torch

    generator = torch.Generator().manual_seed(1)
    residual, tables = latents.clone(), []
    for _ in range(n_codebooks):
        rows = torch.randint(len(residual), (size,), generator=generator)
        noise = torch.randn(size, residual.shape[1], generator=generator)
        tables.append(0.6 * (residual[rows] + residual.std(0) * noise))
        residual = residual - tables[-1][torch.cdist(residual, tables[-1]).argmin(-1)]
    return torch.stack(tables)


def _sides(model: Any, load: Any, x: Any, n: int, codes: Callable, decode: Callable,
           search: Callable[[Any], Search]) -> Sides:  # fmt: skip
    """The two sides of a model of transformers: `codes(x)` (Q, F) and `decode(codes)` are its."""
    import torch

    from polyglyph.media import Audio
    from polyglyph.tokenizers.importers.weights import Source

    config = model.config.to_dict()
    tokenizer, _ = load(Source(Path("random"), dict(model.state_dict()), config))
    audio = Audio(x[0].numpy(), tokenizer.config.sample_rate)
    with torch.inference_mode():
        grid = tokenizer.encode(audio, n_codebooks=n)
        given = torch.from_numpy(grid.codes).long()
    return Sides(
        (lambda: tokenizer.encode(audio, n_codebooks=n).codes, lambda: codes(x).numpy()),
        (
            lambda: tokenizer.decode(grid).samples[0],
            lambda: decode(given)[: grid.meta.n_samples].numpy(),  # type: ignore[attr-defined]
        ),
        search(tokenizer),
        {"codes": list(grid.codes.shape), "parameters": sum(p.numel() for p in model.parameters())},
    )


def encodec_24khz(quick: bool) -> Sides:
    """8 codebooks (6 kbps) of the causal model, 10 s."""
    import torch
    from transformers import EncodecConfig, EncodecModel

    from polyglyph.tokenizers.importers.encodec import load

    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(num_filters=4 if quick else 32)).eval()
    x = make_sound(0.4 if quick else 10, 24_000)[None]
    with torch.no_grad():
        latents = model.encoder(x)[0].t()
        for layer, table in zip(model.quantizer.layers, drawn_tables(latents, 32, 1024)):
            layer.codebook.embed.copy_(table)
    return _sides(
        model,
        load,
        x[0][None],
        8,
        lambda x: model.encode(x, bandwidth=6.0).audio_codes[0, 0],
        lambda codes: model.decode(codes[None, None], [None]).audio_values[0, 0].clamp(-1, 1),
        lambda ours: residual_search(latents, ours.net.quantizer.codebook),
    )


def mimi(quick: bool) -> Sides:
    """8 codebooks, 10 s."""
    import torch
    from transformers import MimiConfig, MimiModel

    from polyglyph.tokenizers.importers.mimi import load

    torch.manual_seed(0)
    small = {"num_filters": 8, "num_hidden_layers": 2} if quick else {}
    model = MimiModel(MimiConfig(**small)).eval()
    x = make_sound(0.4 if quick else 10, 24_000)[None]
    split = model.quantizer
    with torch.no_grad():
        for key, weight in model.named_parameters():  # a constant latent is rounding, not choice
            if key.endswith("conv.bias"):
                weight.zero_()
        latents = model.encoder(x).latents
        halves = (
            split.semantic_residual_vector_quantizer,
            split.acoustic_residual_vector_quantizer,
        )
        for half in halves:
            tables = drawn_tables(half.input_proj(latents)[0].t(), len(half.layers), 2048)
            for layer, table in zip(half.layers, tables):
                layer.codebook.embed_sum.copy_(table)

    def search(ours: Any) -> Search:
        net, frames = ours.net.quantizer, latents[0].t()

        def found(q: int, due: np.ndarray) -> tuple[Any, Any]:
            if q == 0:
                return residual_search(net.semantic_in(frames), net.semantic.codebook)(0, due)
            return residual_search(net.acoustic_in(frames), net.acoustic.codebook)(q - 1, due[1:])

        return found

    return _sides(
        model,
        load,
        x[0][None],
        8,
        lambda x: model.encode(x, num_quantizers=8).audio_codes[0],
        lambda codes: model.decode(codes[None]).audio_values[0, 0].clamp(-1, 1),
        search,
    )


def dac_24khz(quick: bool) -> Sides:
    """32 codebooks of the 24 kHz model, 10 s."""
    import torch
    import torch.nn.functional as F
    from transformers import DacConfig, DacModel

    from polyglyph.tokenizers.importers.dac import load

    torch.manual_seed(0)
    small = {"encoder_hidden_size": 4, "decoder_hidden_size": 64} if quick else {}
    shape = {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24_000}
    model = DacModel(DacConfig(**shape, **small)).eval()
    x = make_sound(0.4 if quick else 10, 24_000)[None]
    parts = model.quantizer.quantizers
    with torch.no_grad():
        for key, weight in model.named_parameters():  # as wide as their inputs, so that all counts
            if weight.ndim == 3 and "snake" not in key and "quantizer" not in key:
                weight.mul_(0.7 / (weight.std() * weight[0].numel() ** 0.5))
        latents = model.encoder(x)
        residual = latents
        for part in parts:
            part.codebook.weight.copy_(drawn_tables(part.in_proj(residual)[0].t(), 1, 1024)[0])
            residual = residual - part(residual)[0]

    def search(ours: Any) -> Search:
        def found(q: int, due: np.ndarray) -> tuple[Any, Any]:
            left = latents[0].t().double()
            for i, part in enumerate(parts[: q + 1]):
                table = part.codebook.weight.double()
                low = left @ part.in_proj.weight[:, :, 0].double().t() + part.in_proj.bias.double()
                back = table[due[i]] @ part.out_proj.weight[:, :, 0].double().t()
                left = left - back - part.out_proj.bias.double()
            return F.normalize(low, dim=-1), F.normalize(table, dim=-1)

        return found

    return _sides(
        model,
        load,
        x[0][None],
        32,
        lambda x: model.encode(x).audio_codes[0],
        lambda codes: model.decode(audio_codes=codes[None]).audio_values[0],
        search,
    )


# --- pictures -----------------------------------------------------------------------------------


def make_picture(size: int) -> Any:
    """Slopes under fine texture: (1, 3, size, size) float32 in [-1, 1]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    slope = torch.linspace(-0.6, 0.6, size)
    smooth = torch.stack([slope[:, None] + 0 * slope, slope + 0 * slope[:, None], slope.sin() * 0.5
                          + slope[:, None] ** 2])  # fmt: skip
    return (smooth + 0.2 * torch.randn(3, size, size, generator=generator)).clamp(-1, 1)[None]


def _picture_sides(model: Any, load: Any, x: Any, codes: Callable, decode: Callable,
                   cosine: bool = False) -> Sides:  # fmt: skip
    """As `_sides`, from pixels to codes (1, h, w) and back, on both sides without the files' eight
    bits. The table is drawn among the latents."""
    import torch
    import torch.nn.functional as F

    from polyglyph.tokenizers.importers.weights import Source

    config = model.config.to_dict()
    tokenizer, _ = load(Source(Path("random"), dict(model.state_dict()), config))
    net = tokenizer.net
    with torch.inference_mode():
        latents = net.latents(x[:, None] if hasattr(net, "stride_t") else x)
        latents = latents.flatten(2)[0].t()  # (F, D)
        table = drawn_tables(
            F.normalize(latents, dim=-1) if cosine else latents,
            1,
            net.config.quantizer.codebook_size,
        )
        table = F.normalize(table, dim=-1) if cosine else table
        for book in (model.quantize.embedding.weight, net.quantizer.codebook[0]):
            book.copy_(table[0])
        given = net.encode(x)
    return Sides(
        (lambda: net.encode(x)[0].numpy(), lambda: codes(x).numpy()),
        (lambda: net.decode(given)[0].numpy(), lambda: decode(given[0]).clamp(-1, 1).numpy()),
        residual_search(F.normalize(latents.double(), dim=-1) if cosine else latents, table),
        {"codes": list(given.shape[1:]), "parameters": sum(p.numel() for p in model.parameters())},
    )


def emu3_still(quick: bool) -> Sides:
    """VisionVQ, one picture of 256 pixels a side."""
    import torch
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    from polyglyph.tokenizers.importers.emu3 import load_image

    torch.manual_seed(0)
    small = {"base_channels": 32, "hidden_size": 128, "codebook_size": 512} if quick else {}
    model = Emu3VQVAE(Emu3VQVAEConfig(**small)).eval()
    x = make_picture(32 if quick else 256)
    sizes = torch.tensor([x.shape[-2:]])
    return _picture_sides(
        model,
        load_image,
        x,
        lambda x: torch.stack(model.encode(x, image_sizes=sizes).image_tokens),
        lambda codes: model.decode(codes)[0],
    )


def llamagen(quick: bool) -> Sides:
    """VQ-16, one picture of 256 pixels a side."""
    import torch
    from transformers import JanusVQVAE, JanusVQVAEConfig

    from polyglyph.tokenizers.importers.llamagen import load

    torch.manual_seed(0)
    n = 2 if quick else 16  # codes a side
    small = {"base_channels": 32, "num_embeddings": 512} if quick else {}
    model = JanusVQVAE(JanusVQVAEConfig(num_patches=n, **small)).eval()
    return _picture_sides(
        model,
        load,
        make_picture(16 * n),
        lambda x: model.encode(x).image_tokens.reshape(1, n, n),
        lambda codes: model.decode(codes.reshape(1, -1))[0],
        cosine=True,
    )


PEERS = (
    Peer("EnCodec 24 kHz, 6 kbps, 10 s, against transformers", encodec_24khz, 1.3, 1.3),
    Peer("Mimi, 8 codebooks, 10 s, against transformers", mimi, 1.1, 1.1),
    Peer("DAC 24 kHz, 10 s, against transformers", dac_24khz, 1.5, 1.5),
    Peer("Emu3 VisionVQ, a still of 256², against transformers", emu3_still, 3.5, 3.0),
    Peer("LlamaGen VQ-16, 256², against transformers", llamagen, 1.1, 1.1),
)
