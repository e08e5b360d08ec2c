"""EnCodec's windows of a second: how they are cut, and laid over one another."""

from __future__ import annotations

import torch

from polyglyph.tokenizers.encodec import Encodec, EncodecConfig, EncodecTokenizer, OverlapAdd


def overlap_add(waves: list[torch.Tensor], step: int) -> torch.Tensor:
    whole = OverlapAdd(step)
    return torch.cat([*map(whole.push, waves), whole.finish()], dim=1)


def test_windows_of_one_sound_add_up_to_it() -> None:
    sound = torch.randn(2, 25)
    waves = [sound[:, start : start + 10].clone() for start in (0, 8, 16)]
    torch.testing.assert_close(overlap_add(waves, 8), sound)


def test_each_window_counts_by_the_distance_from_its_own_end() -> None:
    out = overlap_add([torch.zeros(1, 8), torch.ones(1, 8)], 6)
    assert out.shape == (1, 14) and out[0, :6].eq(0).all() and out[0, 8:].eq(1).all()
    assert 0 < out[0, 6] < out[0, 7] < 1


def test_generated_frames_are_cut_into_whole_windows_and_a_rest() -> None:
    config = EncodecConfig(
        width=2, ratios=(4, 2), d_code=2, codebook_size=4, n_codebooks=2, sample_rate=1000,
        causal=False, norm="group", chunk_s=0.08, overlap=0.1, normalize=True,
    )  # fmt: skip
    tokenizer = EncodecTokenizer(Encodec(config))
    assert tokenizer.default_meta((23,)).n_samples == 2 * 72 + 3 * 8
    assert tokenizer.default_meta((4,)).n_samples == 32
