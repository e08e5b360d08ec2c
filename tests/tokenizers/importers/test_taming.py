"""taming's VQGAN: codes and pixels of the original layout, and every mismatch refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published_codecs import Forward, Spec, State, make_state, nearest

from polyglyph.checkpoint import save_tensors
from polyglyph.errors import FormatError, InputError
from polyglyph.tokenizers.importers import import_codec


def written(folder: Path, state: State, **more: Any) -> Path:
    torch.save({"state_dict": state, **more}, folder / "last.ckpt")
    return folder / "last.ckpt"


def pixels(height: int = 12, width: int = 20, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(n, 3, height, width, generator=generator) * 2 - 1


@pytest.mark.parametrize(
    "spec",
    [Spec(), Spec(multipliers=(1, 2), attention=(), n_blocks=2), Spec(attention=(0, 2), seed=3)],
    ids=["one level", "middle only", "two levels"],
)
@torch.no_grad()
def test_codes_and_pixels_are_those_of_the_original_layout(spec: Spec, tmp_path: Path) -> None:
    state = make_state(spec)
    more = {"loss.discriminator.main.0.weight": torch.ones(2), "model_ema.decay": torch.ones(())}
    tokenizer, report = import_codec(written(tmp_path, state | more, global_step=7))
    forward, x = Forward(spec, state), pixels()
    codes = tokenizer.net.encode(x)
    due = nearest(forward.latents(x), state["quantize.embedding.weight"])
    assert torch.equal(codes[:, 0], due) and len(torch.unique(due)) > 5
    zq = state["quantize.embedding.weight"][due].permute(0, 3, 1, 2)
    expected = forward.pixels(zq).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)
    assert report.kind == "taming" and set(report.loaded) == set(state)
    assert "global_step" in report.ignored and set(more) <= set(report.ignored)


@torch.no_grad()
def test_gumbel_codes_are_the_largest_scores(tmp_path: Path) -> None:
    spec = Spec(z=4, d=4)
    state = make_state(spec)
    table = state.pop("quantize.embedding.weight")
    generator = torch.Generator().manual_seed(8)
    state["quantize.embed.weight"] = table
    state["quantize.proj.weight"] = torch.randn(40, 4, 1, 1, generator=generator)
    state["quantize.proj.bias"] = torch.randn(40, generator=generator)
    tokenizer, _ = import_codec(written(tmp_path, state), "taming")
    forward, x = Forward(spec, state), pixels()
    scores = forward.conv("quantize.proj", forward.latents(x))
    codes = tokenizer.net.encode(x)
    assert torch.equal(codes[:, 0], scores.argmax(1))
    expected = forward.pixels(table[codes[:, 0]].permute(0, 3, 1, 2)).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.net.decode(codes), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_codes_of_a_pruned_table_count_its_rows(tmp_path: Path) -> None:
    spec = Spec()
    state = make_state(spec)
    used = torch.tensor([3, 1, 30, 12, 39])
    tokenizer, report = import_codec(written(tmp_path, state | {"quantize.used": used}))
    x = pixels()
    table = state["quantize.embedding.weight"][used]
    assert torch.equal(
        tokenizer.net.encode(x)[:, 0], nearest(Forward(spec, state).latents(x), table)
    )
    assert tokenizer.spec.codebook_size == 5 and "5 of 40" in report.notes[0]


def test_a_first_stage_is_found_in_a_larger_checkpoint(tmp_path: Path) -> None:
    state = {f"first_stage_model.{k}": v for k, v in make_state(Spec()).items()}
    more = {"model.diffusion_model.out.2.weight": torch.ones(3)}
    tokenizer, report = import_codec(written(tmp_path, state | more))
    assert tokenizer.spec.codebook_size == 40 and set(more) <= set(report.ignored)


MUTATIONS: dict[str, Any] = {
    "no middle norm": {"encoder.mid.block_1.norm2.bias": None},
    "no key of attention": {"decoder.up.2.attn.1.k.weight": None},
    "no codebook": {"quantize.embedding.weight": None},
    "a level skipped": {"encoder.down.4.block.0.conv1.weight": torch.ones(32, 32, 3, 3)},
    "an unknown key": {"encoder.time_conv.0.weight": torch.ones(2)},
    "a foreign shape": {"decoder.conv_out.weight": torch.ones(3, 32, 1, 1)},
    "a foreign codebook": {"quantize.embedding.weight": torch.ones(40, 5)},
    "a flat codebook": {"quantize.embedding.weight": torch.ones(160)},
    "no finite value": {"decoder.conv_out.bias": torch.tensor([1.0, torch.inf, 0.0])},
    "sizes of no net": {"encoder.conv_in.weight": torch.ones(24, 3, 3, 3)},
    "an empty tensor": {"encoder.conv_in.weight": torch.ones(0, 3, 3, 3)},
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_checkpoint_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    state = make_state(Spec())
    changed = {k: v for k, v in (state | MUTATIONS[name]).items() if v is not None}
    with pytest.raises(FormatError) as caught:
        import_codec(written(tmp_path, changed), "taming")
    assert "\n" not in str(caught.value) and "last.ckpt" in str(caught.value)


def test_a_checkpoint_without_its_decoder_is_refused(tmp_path: Path) -> None:
    state = {k: v for k, v in make_state(Spec()).items() if not k.startswith("decoder.")}
    with pytest.raises(FormatError, match="decoder"):
        import_codec(written(tmp_path, state), "taming")
    with pytest.raises(InputError, match="recognised"):
        import_codec(written(tmp_path, state))


def test_another_kind_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, make_state(Spec()))
    for kind in ("movq", "movq-ema", "emu3", "emu3-video"):
        with pytest.raises(FormatError):
            import_codec(path, kind)
    with pytest.raises(InputError, match="did you mean 'taming'"):
        import_codec(path, "tamming")


def test_damaged_bytes_are_refused_or_read(tmp_path: Path) -> None:
    spec = Spec(multipliers=(1,), attention=())
    save_tensors(tmp_path / "whole.safetensors", make_state(spec))
    torch.save({"state_dict": make_state(spec)}, tmp_path / "whole.ckpt")
    generator = torch.Generator().manual_seed(2)
    n_refused = 0
    for i in range(30):
        whole = tmp_path / ("whole.ckpt" if i % 2 else "whole.safetensors")
        data = bytearray(whole.read_bytes())
        n = len(data) if i % 3 else 6000  # every third in the header
        at = int(torch.randint(n, (1,), generator=generator))
        if i % 5:
            data[at] ^= 1 << (i % 8)
        else:
            del data[at:]
        broken = tmp_path / f"broken{whole.suffix}"
        broken.write_bytes(data)
        try:
            import_codec(broken)
        except InputError as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert 10 < n_refused < 30
