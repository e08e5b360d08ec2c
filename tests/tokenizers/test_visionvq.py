"""The picture and video net of Emu3: causal in time, and no work that a still doesn't need."""

from __future__ import annotations

import pytest
import torch
from published_codecs import shaken, some_pixels
from torch import Tensor, nn

from polyglyph.tokenizers import visionvq
from polyglyph.tokenizers.visionvq import RunningNorm, TimeDown, TimeUp, VisionVq, VisionVqConfig


@pytest.fixture
def net() -> VisionVq:
    config = VisionVqConfig(
        base=8,
        multipliers=(1, 2),
        n_res_blocks=1,
        attention_levels=(1,),
        n_groups=4,
        quantizer={"codebook_size": 40, "d_code": 4},
    )
    torch.manual_seed(0)
    net = shaken(VisionVq(config), 2)
    with torch.no_grad():
        z = net.latents(some_pixels(1, 40, 3, 16, 16)).permute(0, 2, 3, 4, 1).reshape(-1, 4)
        net.quantizer.codebook[0] = z[torch.randperm(len(z))[:40]]
    return net


def calls(module: nn.Module) -> list[int]:
    """The batch sizes that `module` is called with from here on."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


@torch.no_grad()
def test_a_still_is_a_clip_of_one_frame_and_of_four_equal_ones(net: VisionVq) -> None:
    x = some_pixels(2, 3, 6, 10)
    still = net.encode(x)
    assert still.shape == (2, 1, 3, 5) and len(still.unique()) > 5
    assert torch.equal(net.encode(x[:, None])[:, :, 0], still)
    assert torch.equal(net.encode(x[:, None].expand(-1, 4, -1, -1, -1))[:, :, 0], still)
    clip = net.decode(still[:, :, None])
    torch.testing.assert_close(net.decode(still), clip[:, 0])
    assert clip.shape == (2, 4, 3, 6, 10)


@torch.no_grad()
def test_a_still_costs_one_frame_of_either_trunk(net: VisionVq) -> None:
    encoded, decoded = calls(net.encoder), calls(net.decoder)
    net.decode(net.encode(some_pixels(1, 3, 6, 10)))
    assert encoded == [1] and decoded == [1]


@torch.no_grad()
def test_frames_go_through_the_trunk_in_parts(
    net: VisionVq, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = some_pixels(1, 8, 3, 6, 10)
    codes = net.encode(x)
    frames = net.decode(codes)
    monkeypatch.setattr(visionvq, "_ELEMENTS_PER_BATCH", 3 * 8 * 60)
    encoded, decoded = calls(net.encoder), calls(net.decoder)
    assert torch.equal(net.encode(x), codes)
    torch.testing.assert_close(net.decode(codes), frames, rtol=1e-5, atol=1e-5)
    assert encoded == decoded == [3, 3, 2]


@torch.no_grad()
def test_later_frames_and_codes_change_nothing_before_them(net: VisionVq) -> None:
    x = some_pixels(1, 12, 3, 6, 10)
    changed = x.clone()
    changed[:, 8:] = -changed[:, 8:]
    codes, others = net.encode(x), net.encode(changed)
    assert torch.equal(codes[:, :, :2], others[:, :, :2])
    assert not torch.equal(codes, others)
    frames, after = net.decode(codes), net.decode(others)
    assert torch.equal(frames[:, :8], after[:, :8])


def test_a_running_norm_is_a_batch_norm_in_evaluation() -> None:
    peer = shaken(nn.BatchNorm3d(4), 3)
    assert isinstance(peer, nn.BatchNorm3d)
    norm = RunningNorm(4)
    state = {k.replace("running_", ""): v for k, v in peer.state_dict().items()}
    norm.load_state_dict({k: v for k, v in state.items() if "num" not in k})
    x = torch.randn(2, 4, 3, 5, 2)
    torch.testing.assert_close(norm.train()(x), peer(x))


@torch.no_grad()
def test_time_is_halved_and_doubled() -> None:
    x = torch.randn(1, 4, 6, 2, 3)
    for layer, n in ((TimeDown(4), 3), (TimeUp(4), 12)):
        y: Tensor = layer(x)
        assert y.shape == (1, 4, n, 2, 3)
        torch.testing.assert_close(layer(x[:, :, :2]), y[:, :, : n // 3])
