"""Causal convolutional trunk of the audio codec: SEANet as in SoundStream (arXiv:2107.03312) and
EnCodec (arXiv:2210.13438).

Strided convolutions with residual units between them, weight norm in training (folded away by
`fold_weight_norm`), ELU in the encoder, Snake (arXiv:2306.06546) in the decoder, dilated residual
units at the latent rate instead of EnCodec's LSTM. Every layer looks backwards only and pads with
zeros, so a longer input never changes earlier outputs, and a layer that is handed its last inputs
goes on where it stopped: chunks of a sound equal the whole. Knows nothing of codes or files.

Shapes: B batch, C channels, S samples or steps, F frames, D latent width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

State = dict[nn.Module, Tensor]
"""What each causal layer keeps of a stream: the last steps (B, C, n) of its input."""


class Snake(nn.Module):
    """x + sin²(αx) / α, α per channel: an activation that extrapolates periodic signals."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


def activation(name: str, channels: int) -> nn.Module:
    """ "elu" or "snake" for `channels` channels."""
    assert name in ("elu", "snake"), name
    return nn.ELU() if name == "elu" else Snake(channels)


def _start(conv: nn.Module, fan_in: int, gain: float = 1.0) -> nn.Module:
    """Variance-preserving weights, no bias. The library's default shrinks the signal by √3 in
    every layer: twenty layers on, biases rule, and training stands still for minutes."""
    nn.init.normal_(conv.weight, std=gain * fan_in**-0.5)
    nn.init.zeros_(conv.bias)
    return conv


class Causal(nn.Module):
    """A layer whose forward takes a stream's state too, reads its past there and leaves its own."""


class Chain(nn.Sequential):
    """Layers in a row; the state of a stream goes to those that have one."""

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        for layer in self:
            x = layer(x, state) if isinstance(layer, Causal | Chain) else layer(x)
        return x


def _with_past(layer: nn.Module, x: Tensor, n: int, state: State | None) -> Tensor:
    """x (B, C, steps) behind the n steps before it: zeros at the start of a stream."""
    if n == 0:
        return x
    if state is None or layer not in state:
        x = F.pad(x, (n, 0))
    else:
        x = torch.cat([state[layer], x], dim=-1)
    if state is not None:
        state[layer] = x[..., x.shape[-1] - n :].clone()
    return x


class CausalConv(Causal):
    """Convolution that pads (kernel − 1)·dilation + 1 − stride zeros on the left, none right."""

    def __init__(
        self, d_in: int, d_out: int, kernel: int, stride: int = 1, dilation: int = 1,
        gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        conv = nn.Conv1d(d_in, d_out, kernel, stride, dilation=dilation)
        self.conv = weight_norm(_start(conv, d_in * kernel, gain))
        self.padding = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.conv(_with_past(self, x, self.padding, state))


class CausalConvTranspose(Causal):
    """Transposed convolution, kernel ≥ stride; the kernel − stride last steps are cut, so that
    step i of the input first reaches output i·stride."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        conv = nn.ConvTranspose1d(d_in, d_out, kernel, stride)
        self.conv = weight_norm(_start(conv, d_in * kernel // stride), dim=1)
        self.stride = stride
        self.n_past = -(-kernel // stride) - 1  # steps before its own that reach an output

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        if state is None:
            return self.conv(x)[..., : x.shape[-1] * self.stride]
        y = self.conv(_with_past(self, x, self.n_past, state))
        return y[..., self.n_past * self.stride :][..., : x.shape[-1] * self.stride]


class ResidualUnit(Causal):
    """x + conv1(act(conv_k(act(x)))) with a dilated middle of half the width (true skip)."""

    def __init__(self, channels: int, dilation: int, act: str, kernel: int = 3) -> None:
        super().__init__()
        hidden = max(4, channels // 2)
        self.body = Chain(
            activation(act, channels),
            CausalConv(channels, hidden, kernel, dilation=dilation),
            activation(act, hidden),
            CausalConv(hidden, channels, 1, gain=0.3),
        )

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return x + self.body(x, state)


def _units(channels: int, n_units: int, act: str) -> list[nn.Module]:
    return [ResidualUnit(channels, 3**i, act) for i in range(n_units)]


class Analysis(Causal):
    """Strided convolution of the waveform, kernel `taps`·stride: (B, n_channels, S) to
    (B, C, S / stride).

    Computed on the polyphase form, which a CPU does several times faster than a convolution
    over one channel; full-rate layers would take half of the whole step."""

    def __init__(self, d_out: int, stride: int, taps: int, n_channels: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = CausalConv(n_channels * stride, d_out, taps)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        phases = x.unflatten(-1, (-1, self.stride)).transpose(2, 3)  # (B, channels, stride, steps)
        return self.conv(phases.flatten(1, 2), state)


class Synthesis(Causal):
    """Transposed twin of `Analysis`: (B, C, steps) to (B, n_channels, steps·stride)."""

    def __init__(self, d_in: int, stride: int, taps: int, n_channels: int = 1) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.conv = CausalConv(d_in, n_channels * stride, taps, gain=0.3)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        phases = self.conv(x, state).unflatten(1, (self.n_channels, -1))
        return phases.transpose(2, 3).flatten(2)  # (B, channels, steps, stride) → (B, channels, S)


class Encoder(nn.Module):
    """Sound (B, n_channels, S), S a multiple of the strides' product, to latents (B, D, F).

    `widths` are the channels after each stride, `n_units` the residual units there."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], n_units: Sequence[int],
        d_latent: int, act: str, taps: int, n_channels: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        assert len(widths) == len(n_units) == len(strides)
        layers: list[nn.Module] = [Analysis(widths[0], strides[0], taps, n_channels)]
        layers += _units(widths[0], n_units[0], act)
        for i in range(1, len(strides)):
            layers += [activation(act, widths[i - 1])]
            layers += [CausalConv(widths[i - 1], widths[i], 2 * strides[i], strides[i])]
            layers += _units(widths[i], n_units[i], act)
        layers += [activation(act, widths[-1]), CausalConv(widths[-1], d_latent, 3)]
        self.layers = Chain(*layers)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.layers(x, state)


class Decoder(nn.Module):
    """Latents (B, D, F) to sound (B, n_channels, S); arguments as in `Encoder`, in reverse."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], n_units: Sequence[int],
        d_latent: int, act: str, taps: int, n_channels: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        assert len(widths) == len(n_units) == len(strides)
        layers: list[nn.Module] = [CausalConv(d_latent, widths[-1], 3)]
        layers += _units(widths[-1], n_units[-1], act)
        for i in reversed(range(1, len(strides))):
            layers += [activation(act, widths[i])]
            layers += [CausalConvTranspose(widths[i], widths[i - 1], 2 * strides[i], strides[i])]
            layers += _units(widths[i - 1], n_units[i - 1], act)
        # The output stays linear: a tanh would cost loud, clipped sounds their level.
        layers += [activation(act, widths[0])]
        layers += [Synthesis(widths[0], strides[0], taps, n_channels)]
        self.layers = Chain(*layers)

    def forward(self, z: Tensor, state: State | None = None) -> Tensor:
        return self.layers(z, state)

    @property
    def last_weight(self) -> Tensor:
        """The last filters' weight as a leaf: its direction while weight norm is on."""
        conv = self.layers[-1].conv.conv
        return conv.parametrizations.weight.original1 if not is_folded(conv) else conv.weight


def fold_weight_norm(module: nn.Module) -> None:
    """Replaces every weight-normed weight by its value, in place; outputs stay the same.

    Not for a deep copy: it shares a class with its original, which would be folded half."""
    for child in module.modules():
        if parametrize.is_parametrized(child, "weight"):
            parametrize.remove_parametrizations(child, "weight", leave_parametrized=True)


def load_folded(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the state of a folded twin into a module that trains under weight norm.

    Direction and length of every weight are set from its value; strict in names and shapes."""
    normed = {
        f"{name}.weight"
        for name, child in module.named_modules()
        if parametrize.is_parametrized(child, "weight")
    }
    for key in normed:
        module.get_submodule(key.removesuffix(".weight")).weight = state[key]
    rest = {key: value for key, value in state.items() if key not in normed}
    missing, extra = module.load_state_dict(rest, strict=False)
    left = [key for key in missing if ".parametrizations.weight." not in key]
    assert not left and not extra, (left, extra)


def is_folded(module: nn.Module) -> bool:
    """Whether no weight norm is left in `module`."""
    return not any(parametrize.is_parametrized(child) for child in module.modules())


def folded_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` as its folded twin has it; copies."""
    state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    for name, child in module.named_modules():
        if parametrize.is_parametrized(child, "weight"):
            del state[f"{name}.parametrizations.weight.original0"]
            del state[f"{name}.parametrizations.weight.original1"]
            state[f"{name}.weight"] = child.weight.detach().clone()
    return state
