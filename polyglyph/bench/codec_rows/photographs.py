"""The shipped codec `rich-image` on photographs, of which it has never seen one, beside JPEG.

The eight colour photographs in scikit-image's wheel, at 256 × 256. JPEG (Pillow, optimised tables)
has the highest quality whose file needs no more bytes than our codes at log2(codebook_size) bits
each; WebP, by the same rule, is said beside. PSNR on 8-bit pixels, its mean over pictures.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyglyph.bench.runner import BenchResult
from polyglyph.errors import MissingExtraError, missing_extra

CODEC = "rich-image"
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SIDE = 256
MARGIN_DUE = 1.0  # dB


def rows(quick: bool, say: Callable[[str], None]) -> Iterator[BenchResult]:
    """The one row: mean PSNR over JPEG's."""
    name = f"photographs at {SIDE}², {CODEC}, mean PSNR over JPEG's"
    try:
        pictures = photographs()[: 2 if quick else len(PHOTOGRAPHS)]
    except MissingExtraError as error:
        yield BenchResult(name, None, "dB", MARGIN_DUE, False, f"not measured: {error}")
        return
    tokenizer, found = shipped(), []
    for file, picture in zip(PHOTOGRAPHS, pictures, strict=False):
        say(f"{name}: {file}")
        found.append(beside_jpeg(tokenizer, picture))
    yield result(name, found)


def result(name: str, found: list[Row]) -> BenchResult:
    """The row of all pictures; None where JPEG has no file as small of one of them."""
    ours, jpeg, webp = ([getattr(row, kind) for row in found] for kind in Row.NAMES)
    fits = len([value for value in webp if value is not None])
    said = f"WebP {means(webp):.2f} on {fits} of {len(found)}" if fits else "no WebP is as small"
    other, margin = means(jpeg), None
    if None not in jpeg and other is not None:
        margin = float(np.mean(ours)) - other
    return BenchResult(
        name,
        margin,
        "dB",
        MARGIN_DUE,
        at_most=False,
        summary=f"{np.mean(ours):.2f} dB against {'–' if other is None else f'{other:.2f}'} at "
        f"{found[0].n_bytes} bytes; {said}",
        facts={"photographs": {f: vars(r) for f, r in zip(PHOTOGRAPHS, found, strict=False)}},
    )


@dataclass(frozen=True)
class Row:
    """One picture: bytes of our codes, and PSNR in dB; None where no file is as small."""

    NAMES = ("ours", "jpeg", "webp")
    n_bytes: int
    ours: float
    jpeg: float | None
    webp: float | None


def shipped() -> Any:
    """The codec that comes with the package."""
    from polyglyph.assembly import load_parts
    from polyglyph.checkpoint import find_checkpoint

    return load_parts(find_checkpoint(CODEC), name=CODEC).tokenizers["image"]


def photographs() -> list[Any]:
    """`Image`s of SIDE × SIDE, in the order of PHOTOGRAPHS; MissingExtraError without the extra."""
    import importlib.util

    from polyglyph.fitting import PromptSize, fit
    from polyglyph.media import Image

    # Found, not imported: its `data` module would import a second reader of pictures.
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise missing_extra("scikit-image", "eval")
    home, size = Path(found.origin).parent / "data", PromptSize(image=(SIDE, SIDE))
    return [fit(Image(home / name), size) for name in PHOTOGRAPHS]


def beside_jpeg(tokenizer: Any, picture: Any) -> Row:
    """What codes, JPEG and WebP of at most as many bytes make of an `Image`."""
    from polyglyph.eval.metrics import bits, psnr

    grid = tokenizer.encode(picture)
    n_bytes = -(-int(bits(grid, tokenizer.spec)) // 8)
    files = (smallest_loss(picture.pil, kind, n_bytes) for kind in ("JPEG", "WEBP"))
    made = [tokenizer.decode(grid).array, *files]
    ours, *others = (None if m is None else float(psnr(m, picture.array)) for m in made)
    assert ours is not None
    return Row(n_bytes, ours, *others)


def smallest_loss(pil: Any, kind: str, n_bytes: int) -> np.ndarray | None:
    """Pixels of the best file of at most n_bytes; None where quality 1 needs more."""
    import PIL.Image

    options: dict[str, Any] = {"optimize": True} if kind == "JPEG" else {"method": 6}
    low = 1 if kind == "JPEG" else 0
    for quality in range(100, low - 1, -1):
        file = io.BytesIO()
        pil.save(file, kind, quality=quality, **options)
        if file.tell() <= n_bytes:
            return np.asarray(PIL.Image.open(file).convert("RGB"))
    return None


def means(values: list[float | None]) -> float | None:
    """Over those that are there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
