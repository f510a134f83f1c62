"""The BSQ-VAE of Infinity: a convolutional encoder and decoder without attention, and a quantiser without weights.

Names follow the released files, which carry an extra level: `decoder.mid.block_1.conv1.conv.weight`, `...norm1.norm.weight`.
The summed codes are fed to the decoder as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...profiles.infinity import VaeConfig
from ..conv_vae import ConvDecoder, ConvEncoder, Layers, SwishNorm, to_uint8

__all__ = ["BsqVae", "Decoder", "Encoder", "to_uint8"]


class _Conv(nn.Module):
    """A convolution under the official extra name `conv`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class _Norm(nn.Module):
    """Group norm and swish under the official extra name `norm`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = SwishNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


LAYERS = Layers(_Conv, _Norm)


class Encoder(ConvEncoder):
    """Image `[B, 3, h, w]` in [-1, 1] -> latent `[B, d, h / stride, w / stride]`."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(LAYERS, config.bits, config.base_channels, config.channel_mult, config.res_blocks)


class Decoder(ConvDecoder):
    """Summed codes `[B, d, h, w]` -> image `[B, 3, h * stride, w * stride]`, about [-1, 1], not clamped."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(LAYERS, config.bits, config.base_channels, config.channel_mult, config.res_blocks)


class _Lfq(nn.Module):
    """Powers of two that turn bits into an index; unused with bit labels, but the released files hold them."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        # 2 ** 63 wraps to the lowest int64, as in the released 64-bit VAE; shifted by numpy, as torch would import its compiler
        self.register_buffer("mask", torch.tensor(np.int64(1) << np.arange(bits - 1, -1, -1)))


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
