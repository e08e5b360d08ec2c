"""Small random checkpoints of image codecs in their publishers' layouts, and a second forward.

The forward reads the publisher's own keys and shares no code with the package: plain functions
over a state dict, as the papers and the publishers describe them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


@dataclass
class Names:
    """How a publisher names the parts of one half. Level 0 is the finest in every argument."""

    down: str = "encoder.down.{0}.block.{1}"
    down_attention: str = "encoder.down.{0}.attn.{1}"
    downsample: str = "encoder.down.{0}.downsample.conv"
    up: str = "decoder.up.{0}.block.{1}"
    up_attention: str = "decoder.up.{0}.attn.{1}"
    upsample: str = "decoder.up.{0}.upsample.conv"
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    lowest_first: bool = False  # of the decoder's levels


TAMING = Names()
LLAMAGEN = Names(
    down="encoder.conv_blocks.{0}.res.{1}",
    down_attention="encoder.conv_blocks.{0}.attn.{1}",
    downsample="encoder.conv_blocks.{0}.downsample.conv",
    up="decoder.conv_blocks.{0}.res.{1}",
    up_attention="decoder.conv_blocks.{0}.attn.{1}",
    upsample="decoder.conv_blocks.{0}.upsample.conv",
    middle=("mid.0", "mid.1", "mid.2"),
    lowest_first=True,
)


@dataclass
class Spec:
    """A small codec: sizes as in the publishers' configurations."""

    names: Names = field(default_factory=Names)
    base: int = 32
    multipliers: tuple[int, ...] = (1, 1, 2)
    n_blocks: int = 1
    attention: tuple[int, ...] = (2,)
    z: int = 6
    d: int = 4
    size: int = 40
    spatial: bool = False  # MoVQ's decoder norms
    spatial_conv: bool = False
    kernel: tuple[int, ...] = (1, 1)  # of quant_conv and post_quant_conv
    seed: int = 0

    def up_index(self, level: int) -> int:
        return len(self.multipliers) - 1 - level if self.names.lowest_first else level


class _Maker:
    def __init__(self, spec: Spec) -> None:
        self.spec, self.state = spec, {}
        self.generator = torch.Generator().manual_seed(spec.seed)

    def random(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale + mean

    def conv(self, name: str, d_in: int, d_out: int, kernel: tuple[int, ...] = (3, 3)) -> None:
        fan_in = d_in * int(torch.tensor(kernel).prod())
        self.state[f"{name}.weight"] = self.random(d_out, d_in, *kernel, scale=fan_in**-0.5)
        self.state[f"{name}.bias"] = self.random(d_out, scale=0.1)

    def norm(self, name: str, width: int, spatial: bool = False) -> None:
        inner = f"{name}.norm_layer" if spatial else name
        self.state[f"{inner}.weight"] = self.random(width, scale=0.3, mean=1.0)
        self.state[f"{inner}.bias"] = self.random(width, scale=0.3)
        if spatial:
            self.conv(f"{name}.conv_y", self.spec.d, width, (1, 1))
            self.conv(f"{name}.conv_b", self.spec.d, width, (1, 1))
        if spatial and self.spec.spatial_conv:
            self.conv(f"{name}.conv", self.spec.d, self.spec.d)

    def block(self, name: str, d_in: int, d_out: int, spatial: bool) -> None:
        self.norm(f"{name}.norm1", d_in, spatial)
        self.conv(f"{name}.conv1", d_in, d_out)
        self.norm(f"{name}.norm2", d_out, spatial)
        self.conv(f"{name}.conv2", d_out, d_out)
        if d_in != d_out:
            self.conv(f"{name}.nin_shortcut", d_in, d_out, (1, 1))

    def attention(self, name: str, width: int, spatial: bool) -> None:
        self.norm(f"{name}.norm", width, spatial)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, (1, 1))

    def middle(self, side: str, width: int, spatial: bool) -> None:
        first, attention, second = (f"{side}.{name}" for name in self.spec.names.middle)
        self.block(first, width, width, spatial)
        self.attention(attention, width, spatial)
        self.block(second, width, width, spatial)


def make_state(spec: Spec) -> State:
    """A random checkpoint of `spec`, codebook as `quantize.embedding.weight`."""
    make, names, widths = _Maker(spec), spec.names, [spec.base * m for m in spec.multipliers]
    make.conv("encoder.conv_in", 3, spec.base)
    width = spec.base
    for level, out in enumerate(widths):
        for block in range(spec.n_blocks):
            make.block(names.down.format(level, block), width, out, False)
            width = out
            if level in spec.attention:
                make.attention(names.down_attention.format(level, block), width, False)
        if level < len(widths) - 1:
            make.conv(names.downsample.format(level), width, width)
    make.middle("encoder", width, False)
    make.norm("encoder.norm_out", width)
    make.conv("encoder.conv_out", width, spec.z)
    inner = "" if len(spec.kernel) == 2 else ".conv"
    make.conv(f"quant_conv{inner}", spec.z, spec.d, spec.kernel)
    make.conv(f"post_quant_conv{inner}", spec.d, spec.z, spec.kernel)
    make.state["quantize.embedding.weight"] = make.random(spec.size, spec.d)
    make.conv("decoder.conv_in", spec.z, width)
    make.middle("decoder", width, spec.spatial)
    for level in reversed(range(len(widths))):
        at = spec.up_index(level)
        for block in range(spec.n_blocks + 1):
            make.block(names.up.format(at, block), width, widths[level], spec.spatial)
            width = widths[level]
            if level in spec.attention:
                make.attention(names.up_attention.format(at, block), width, spec.spatial)
        if level:
            make.conv(names.upsample.format(at), width, width)
    make.norm("decoder.norm_out", width, spec.spatial)
    make.conv("decoder.conv_out", width, 3)
    return make.state


# --- the second forward ------------------------------------------------------------------------


class Forward:
    """Encoding and decoding over a state dict in the layout of `spec`."""

    def __init__(self, spec: Spec, state: State) -> None:
        self.spec, self.state = spec, state

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        pad = weight.shape[-1] // 2 if stride == 1 else 0
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride, pad)

    def norm(self, name: str, x: Tensor, zq: Tensor | None) -> Tensor:
        inner = name if zq is None else f"{name}.norm_layer"
        weight, bias = self.state[f"{inner}.weight"], self.state[f"{inner}.bias"]
        y = F.group_norm(x, 32, weight, bias, eps=1e-6)
        if zq is None:
            return y
        zq = F.interpolate(zq, size=x.shape[-2:], mode="nearest")
        if self.spec.spatial_conv:
            zq = self.conv(f"{name}.conv", zq)
        return y * self.conv(f"{name}.conv_y", zq) + self.conv(f"{name}.conv_b", zq)

    def block(self, name: str, x: Tensor, zq: Tensor | None) -> Tensor:
        h = self.norm(f"{name}.norm1", x, zq)
        h = self.conv(f"{name}.conv1", h * h.sigmoid())
        h = self.norm(f"{name}.norm2", h, zq)
        h = self.conv(f"{name}.conv2", h * h.sigmoid())
        shortcut = f"{name}.nin_shortcut"
        return h + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.state else x)

    def attention(self, name: str, x: Tensor, zq: Tensor | None) -> Tensor:
        b, c, height, width = x.shape
        y = self.norm(f"{name}.norm", x, zq)
        q, k, v = (self.conv(f"{name}.{part}", y).reshape(b, c, -1) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k * c**-0.5, dim=2)
        out = (v @ weights.transpose(1, 2)).reshape(b, c, height, width)
        return x + self.conv(f"{name}.proj_out", out)

    def middle(self, side: str, x: Tensor, zq: Tensor | None) -> Tensor:
        first, attention, second = (f"{side}.{name}" for name in self.spec.names.middle)
        x = self.attention(attention, self.block(first, x, zq), zq)
        return self.block(second, x, zq)

    def trunk_in(self, x: Tensor) -> Tensor:
        """Pixels to `encoder.conv_out`."""
        spec, names = self.spec, self.spec.names
        x = self.conv("encoder.conv_in", x)
        for level in range(len(spec.multipliers)):
            for block in range(spec.n_blocks):
                x = self.block(names.down.format(level, block), x, None)
                if level in spec.attention:
                    x = self.attention(names.down_attention.format(level, block), x, None)
            if level < len(spec.multipliers) - 1:
                x = self.conv(names.downsample.format(level), F.pad(x, (0, 1, 0, 1)), 2)
        x = self.norm("encoder.norm_out", self.middle("encoder", x, None), None)
        return self.conv("encoder.conv_out", x * x.sigmoid())

    def trunk_out(self, x: Tensor, zq: Tensor | None) -> Tensor:
        """What stands before `decoder.conv_in` to pixels."""
        spec, names = self.spec, self.spec.names
        x = self.middle("decoder", self.conv("decoder.conv_in", x), zq)
        for level in reversed(range(len(spec.multipliers))):
            at = spec.up_index(level)
            for block in range(spec.n_blocks + 1):
                x = self.block(names.up.format(at, block), x, zq)
                if level in spec.attention:
                    x = self.attention(names.up_attention.format(at, block), x, zq)
            if level:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(names.upsample.format(at), x)
        x = self.norm("decoder.norm_out", x, zq)
        return self.conv("decoder.conv_out", x * x.sigmoid())

    def latents(self, pixels: Tensor) -> Tensor:
        """What is quantized: (B, d, h, w)."""
        return self.conv("quant_conv", self.trunk_in(pixels))

    def pixels(self, zq: Tensor) -> Tensor:
        """Quantized vectors (B, d, h, w) to pixels, not clamped."""
        return self.trunk_out(self.conv("post_quant_conv", zq), zq if self.spec.spatial else None)


def nearest(z: Tensor, table: Tensor) -> Tensor:
    """Codes (B, h, w) of vectors (B, d, h, w) by the whole matrix of distances, in fp64."""
    b, d, h, w = z.shape
    x = z.permute(0, 2, 3, 1).reshape(-1, d).double()
    return torch.cdist(x, table.double()).argmin(1).reshape(b, h, w)


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every tensor of a peer's model away from where it starts, running statistics too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            elif tensor.ndim == 1:
                tensor.add_(noise * 0.3)
            elif "embedding" in name:
                tensor.copy_(noise)
            else:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
    return model.eval()


def some_pixels(*shape: int, seed: int = 5) -> Tensor:
    """Pixels in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
