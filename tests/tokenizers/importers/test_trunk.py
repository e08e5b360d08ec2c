"""The published trunks: every key of theirs is one tensor of ours, and sizes are read off."""

from __future__ import annotations

import pytest
import torch
from published_codecs import Spec, make_state

from polyglyph.errors import FormatError
from polyglyph.tokenizers.importers.trunk import (
    as_config,
    check_stated,
    codebook_shape,
    infer_trunk,
    trunk_keys,
)
from polyglyph.tokenizers.vqgan import Vqgan, VqganConfig

SPECS = {
    "taming": Spec(multipliers=(1, 1, 2), n_blocks=2),
    "one level": Spec(multipliers=(1,), attention=(0,)),
    "no attention": Spec(multipliers=(1, 2), attention=()),
    "movq": Spec(multipliers=(1, 2), attention=(0, 1), spatial=True, spatial_conv=True),
}


def config_of(spec: Spec) -> VqganConfig:
    state = make_state(spec)
    size, d_code = codebook_shape(state, "quantize.embedding.weight", "file")
    fields = infer_trunk(state, "file")
    return as_config(
        VqganConfig, fields | {"quantizer": {"codebook_size": size, "d_code": d_code}}, "file"
    )


@pytest.mark.parametrize("name", SPECS)
def test_the_sizes_are_read_off_the_shapes(name: str) -> None:
    spec, config = SPECS[name], config_of(SPECS[name])
    assert (config.base, config.multipliers) == (spec.base, spec.multipliers)
    assert (config.n_res_blocks, config.attention_levels) == (spec.n_blocks, spec.attention)
    assert (config.z_channels, config.quantizer.d_code) == (spec.z, spec.d)
    assert config.decoder == ("movq" if spec.spatial else "plain")


@pytest.mark.parametrize("name", SPECS)
def test_keys_go_one_to_one(name: str) -> None:
    config = config_of(SPECS[name])
    keys = trunk_keys(config)
    renamed = [keys.rename(key) for key in make_state(SPECS[name])]
    assert len(set(renamed)) == len(renamed)
    with torch.device("meta"):
        ours = Vqgan(config).state_dict()
    assert {key.partition("@")[0] for key in renamed} == set(ours)


def test_a_gap_in_the_levels_is_refused() -> None:
    state = make_state(Spec())
    moved = {key.replace("down.1.", "down.7."): tensor for key, tensor in state.items()}
    with pytest.raises(FormatError, match="skip"):
        infer_trunk(moved, "file")


def test_sizes_that_make_no_codec_are_refused_in_one_line() -> None:
    fields = infer_trunk(make_state(Spec()), "file")
    with pytest.raises(FormatError) as caught:
        as_config(VqganConfig, fields | {"quantizer": {"codebook_size": 1, "d_code": 4}}, "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stated",
    [
        {"ch_mult": [1, 2, 4]},
        {"vq_config": {"channel_multiplier": [1, 1, 2], "embed_dim": 5}},
        {"ch_mult": [1, 1, 2], "double_z": True},
        {"ch_mult": [1, 1, 2], "num_attention_heads": 4},
    ],
)
def test_a_configuration_that_says_otherwise_is_refused(stated: dict[str, object]) -> None:
    config = config_of(Spec())
    check_stated(config, {"ch": 32, "ch_mult": [1, 1, 2], "hidden_size": 9}, "file")
    check_stated(config, {"model_type": "larger", "num_attention_heads": 32}, "file")
    with pytest.raises(FormatError, match="file"):
        check_stated(config, stated, "file")
