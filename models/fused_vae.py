"""The convolutional decoders for a GPU: channels-last, every norm fused with the sum and the bias before it.

A convolution's bias, the sum of a block's two paths, the group norm and its swish would be four passes over an image of up to
half a gigabyte; here they are two. The convolutions are cuDNN's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..plugins.group_norm_silu import group_norm_silu
from ..plugins.upsample_sum import upsample_sum
from .conv_vae import ConvDecoder


class FusedDecoder(nn.Module):
    """A decoder's weights in channels-last copies, walked with fused norms: `[B, d, h, w]` -> `[B, 3, ...]`, not clamped.

    Args:
        decoder: The decoder.
        before: A convolution in front of it, as the VQVAE has one, or None.
    """

    def __init__(self, decoder: ConvDecoder, before: nn.Module | None = None) -> None:
        super().__init__()
        self.decoder = _channels_last(decoder)
        self.before = nn.Identity() if before is None else _channels_last(before)

    def forward(self, latent: Tensor) -> Tensor:
        decoder: Any = self.decoder
        dtype = _inner(decoder.conv_in).weight.dtype
        x = self.before(latent.to(dtype).contiguous(memory_format=torch.channels_last))
        stream = _block(decoder.mid.block_1, _Stream(decoder.conv_in(x)))
        if hasattr(decoder.mid, "attn_1"):
            stream = _Stream(decoder.mid.attn_1(stream.sum()))
        stream = _block(decoder.mid.block_2, stream)
        for level in reversed(decoder.up):
            for index, block in enumerate(level.block):
                stream = _block(block, stream)
                if hasattr(level, "attn"):
                    stream = _Stream(level.attn[index](stream.sum()))
            if hasattr(level, "upsample"):
                stream = _Stream(level.upsample.conv(stream.enlarged()))
        _, normed = stream.normed(decoder.norm_out)
        return decoder.conv_out(normed)  # type: ignore[no-any-return]


class _Stream:
    """An image, and what is still to be added to it: another, and the bias of the convolution that made that one."""

    def __init__(self, image: Tensor, update: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.image, self.update, self.bias = image, update, bias

    def normed(self, norm: Any) -> tuple[Tensor, Tensor]:
        """The whole sum, and its norm after the swish."""
        return _norm(norm, self.image, self.update, self.bias)

    def sum(self) -> Tensor:
        """The whole sum."""
        if self.update is None or self.bias is None:
            return self.image
        return self.image + (self.update + self.bias[:, None, None])

    def enlarged(self) -> Tensor:
        """The whole sum, twice the size."""
        if self.update is None or self.bias is None:
            return F.interpolate(self.image, scale_factor=2.0, mode="nearest")
        return upsample_sum(self.image, self.update, self.bias)


def _block(block: Any, stream: _Stream) -> _Stream:
    """norm - swish - conv, twice; the sum with the shortcut is left to the next norm."""
    whole, normed = stream.normed(block.norm1)
    _, normed = _norm(block.norm2, _convolved(block.conv1, normed), None, _inner(block.conv1).bias)
    shortcut = block.nin_shortcut(whole) if hasattr(block, "nin_shortcut") else whole
    return _Stream(shortcut, _convolved(block.conv2, normed), _inner(block.conv2).bias)


def _norm(norm: Any, x: Tensor, update: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    inner = _inner(norm)
    return group_norm_silu(x, inner.num_groups, inner.weight, inner.bias, inner.eps, update, bias)


def _convolved(layer: Any, x: Tensor) -> Tensor:
    """A convolution without its bias."""
    conv = _inner(layer)
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


def _inner(layer: Any) -> Any:
    """The convolution or norm itself: some released files hold it under a name of its own."""
    return getattr(layer, "conv", None) or getattr(layer, "norm", None) or layer


def _channels_last(module: nn.Module) -> nn.Module:
    """A copy, since the eager module reads its weights as they are stored."""
    return copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
