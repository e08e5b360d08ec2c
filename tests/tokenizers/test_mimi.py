"""Mimi's transformer: a stream equals the whole, and nothing is seen beyond the window."""

from __future__ import annotations

import torch

from polyglyph.tokenizers.mimi import DepthwiseUp, MimiConfig, Transformer

CONFIG = MimiConfig(d_latent=8, n_heads=2, d_ff=12, n_layers=1, window=4)


def transformer() -> Transformer:
    torch.manual_seed(0)
    net = Transformer(CONFIG)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net.eval()


@torch.no_grad()
def test_steps_that_follow_a_state_are_those_of_the_whole() -> None:
    net, x, state = transformer(), torch.randn(2, 13, 8), {}
    parts = [net(part, state) for part in (x[:, :1], x[:, 1:3], x[:, 3:12], x[:, 12:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), net(x, {}), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_step_sees_itself_and_the_window_before_it() -> None:
    net, x = transformer(), torch.randn(1, 12, 8)
    other = x.clone()
    other[:, 3] = torch.randn(8)
    changed = (net(x, {}) - net(other, {})).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [3, 4, 5, 6]


@torch.no_grad()
def test_each_channel_is_stretched_by_itself() -> None:
    up, x = DepthwiseUp(3, 2), torch.randn(1, 5, 3)
    torch.nn.init.normal_(up.weight)
    weight = up.weight.permute(2, 0, 1).reshape(3, 1, 4)
    due = torch.nn.functional.conv_transpose1d(x.transpose(1, 2), weight, stride=2, groups=3)
    torch.testing.assert_close(up(x, {}), due[..., :10].transpose(1, 2))
