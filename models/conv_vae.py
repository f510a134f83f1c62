"""The convolutional encoder and decoder that the VAEs of all families share: residual blocks, level by level.

What differs is given by `Layers`: the modules that hold a convolution and a norm (and so the names in the released files),
and whether single-head attention stands in the middle and behind each block of the deepest level.
`up.{level}` and `down.{level}` count from full resolution (0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
GROUPS_ODD = 24


class Layers(NamedTuple):
    """What an encoder or decoder is made of."""

    conv: Callable[..., nn.Module]
    """Takes the arguments of `nn.Conv2d`."""
    norm: Callable[[int], nn.Module]
    """Channels -> group norm and swish."""
    attention: Callable[[int], nn.Module] | None = None
    """Channels -> attention over all positions, residual included; None has none."""


class SwishNorm(nn.GroupNorm):
    """Group norm and swish: 32 groups, 24 where the width does not divide by 32."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS if channels % GROUPS == 0 else GROUPS_ODD, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class ResBlock(nn.Module):
    """norm - swish - conv, twice, and a 1 x 1 shortcut where the widths differ."""

    def __init__(self, layers: Layers, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = layers.norm(inputs), layers.conv(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = layers.norm(outputs), layers.conv(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = layers.conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + y  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """3 x 3, stride 2, padded by one pixel at the right and the bottom only."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.conv = layers.conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest x 2, then 3 x 3."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.conv = layers.conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where asked, and the step to the next where there is one."""

    def __init__(
        self, layers: Layers, inputs: int, outputs: int, blocks: int, step: type[nn.Module] | None, attends: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(layers, inputs if i == 0 else outputs, outputs) for i in range(blocks))
        if layers.attention is not None and attends:
            self.attn = nn.ModuleList(layers.attention(outputs) for _ in range(blocks))
        if step is Downsample:
            self.downsample = Downsample(layers, outputs)
        elif step is Upsample:
            self.upsample = Upsample(layers, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if hasattr(self, "attn"):
                x = self.attn[index](x)
        step = getattr(self, "downsample", None) or getattr(self, "upsample", None)
        return step(x) if step is not None else x


class Middle(nn.Module):
    """Two blocks, with attention between them where the layers have it."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResBlock(layers, channels, channels), ResBlock(layers, channels, channels)
        if layers.attention is not None:
            self.attn_1 = layers.attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return self.block_2(self.attn_1(x) if hasattr(self, "attn_1") else x)  # type: ignore[no-any-return]


class ConvEncoder(nn.Module):
    """Image `[B, 3, h, w]` in [-1, 1] -> latent `[B, d, h / stride, w / stride]`.

    Args:
        layers: What it is made of.
        latent: Channels d.
        base: Channels at full resolution, times one factor of `mult` a level.
        mult: A factor a level; stride is 2 ** (levels - 1).
        blocks: Residual blocks a level.
    """

    def __init__(self, layers: Layers, latent: int, base: int, mult: Sequence[int], blocks: int) -> None:
        super().__init__()
        widths = [base * m for m in mult]
        deepest = len(widths) - 1
        self.conv_in = layers.conv(3, base, 3, padding=1)
        self.down = nn.ModuleList(
            Level(layers, [base, *widths][i], width, blocks, Downsample if i < deepest else None, i == deepest)
            for i, width in enumerate(widths)
        )
        self.mid = Middle(layers, widths[-1])
        self.norm_out, self.conv_out = layers.norm(widths[-1]), layers.conv(widths[-1], latent, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))  # type: ignore[no-any-return]


class ConvDecoder(nn.Module):
    """Latent `[B, d, h, w]` -> image `[B, 3, h * stride, w * stride]`, about [-1, 1], not clamped.

    Args are those of `ConvEncoder`; a level has one residual block more.
    """

    def __init__(self, layers: Layers, latent: int, base: int, mult: Sequence[int], blocks: int) -> None:
        super().__init__()
        widths = [base * m for m in mult]
        deepest = len(widths) - 1
        self.conv_in = layers.conv(latent, widths[-1], 3, padding=1)
        self.mid = Middle(layers, widths[-1])
        self.up = nn.ModuleList(
            Level(layers, widths[min(i + 1, deepest)], width, blocks + 1, Upsample if i > 0 else None, i == deepest)
            for i, width in enumerate(widths)
        )
        self.norm_out, self.conv_out = layers.norm(widths[0]), layers.conv(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        # codes are summed in fp32 whatever the weights are
        x = self.mid(self.conv_in(latent.to(next(self.parameters()).dtype)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))  # type: ignore[no-any-return]


def to_uint8(decoded: Tensor) -> Tensor:
    """Decoder output `[B, 3, h, w]` -> uint8 RGB `[B, h, w, 3]`: clamp to [-1, 1], (x + 1) / 2 * 255, cut off."""
    return (((decoded.clamp(-1, 1) + 1) / 2) * 255).to(torch.uint8).permute(0, 2, 3, 1)
