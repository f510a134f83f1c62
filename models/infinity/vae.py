"""The BSQ-VAE of Infinity: a convolutional encoder and decoder without attention, and a quantiser without weights.

Names follow the released files, which carry an extra level: `decoder.mid.block_1.conv1.conv.weight`, `...norm1.norm.weight`.
`decoder.up.{level}` counts from full resolution (0); the summed codes are fed to the decoder as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.model import VaeConfig

GROUPS = 32
GROUPS_ODD = 24


class _Conv(nn.Module):
    """A convolution under the official extra name `conv`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class _Norm(nn.Module):
    """Group norm and swish under the official extra name `norm`: 32 groups, 24 where the width does not divide by 32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS if channels % GROUPS == 0 else GROUPS_ODD, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class _ResBlock(nn.Module):
    """norm - swish - conv, twice, and a 1 x 1 shortcut where the widths differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _Norm(inputs), _Conv(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _Norm(outputs), _Conv(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = _Conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + y  # type: ignore[no-any-return]


class _Downsample(nn.Module):
    """3 x 3, stride 2, padded by one pixel at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class _Upsample(nn.Module):
    """Nearest x 2, then 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class _Level(nn.Module):
    """Blocks of one resolution, and the step to the next where there is one."""

    def __init__(self, inputs: int, outputs: int, blocks: int, step: type[nn.Module] | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        if step is _Downsample:
            self.downsample = _Downsample(outputs)
        elif step is _Upsample:
            self.upsample = _Upsample(outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        step = getattr(self, "downsample", None) or getattr(self, "upsample", None)
        return step(x) if step is not None else x


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = _ResBlock(channels, channels), _ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Image `[B, 3, h, w]` in [-1, 1] -> latent `[B, d, h / stride, w / stride]`."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_mult]
        self.conv_in = _Conv(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(
                ([config.base_channels, *widths])[i],
                width,
                config.res_blocks,
                _Downsample if i + 1 < len(widths) else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = _Middle(widths[-1])
        self.norm_out, self.conv_out = _Norm(widths[-1]), _Conv(widths[-1], config.bits, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Summed codes `[B, d, h, w]` -> image `[B, 3, h * stride, w * stride]`, about [-1, 1], not clamped."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_mult]
        self.conv_in = _Conv(config.bits, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        self.up = nn.ModuleList(
            _Level(widths[min(i + 1, len(widths) - 1)], width, config.res_blocks + 1, _Upsample if i > 0 else None)
            for i, width in enumerate(widths)
        )
        self.norm_out, self.conv_out = _Norm(widths[0]), _Conv(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        # codes are summed in fp32 whatever the weights are
        x = self.mid(self.conv_in(latent.to(self.conv_in.conv.weight.dtype)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))  # type: ignore[no-any-return]


class _Lfq(nn.Module):
    """Powers of two that turn bits into an index; unused with bit labels, but the released files hold them."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        # 2 ** 63 wraps to the lowest int64, as in the released 64-bit VAE
        self.register_buffer("mask", torch.ones(bits, dtype=torch.int64) << torch.arange(bits - 1, -1, -1))


class _Quantizer(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.lfq = _Lfq(bits)


class BsqVae(nn.Module):
    """Encoder, decoder, and the quantiser's buffers under both of their official names."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantizer = _Quantizer(config.bits)
        self.quantize = self.quantizer


def to_uint8(decoded: Tensor) -> Tensor:
    """Decoder output `[B, 3, h, w]` -> uint8 RGB `[B, h, w, 3]`: clamp to [-1, 1], (x + 1) / 2 * 255, cut off."""
    return (((decoded.clamp(-1, 1) + 1) / 2) * 255).to(torch.uint8).permute(0, 2, 3, 1)
