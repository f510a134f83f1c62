"""Multi-scale vector quantisation: code indices <-> residual codes, and the running sum that the next scale sees.

A scale's codes are enlarged to the last grid with a bicubic filter and smoothed by one of four convolutions, phi(h) =
h / 2 + conv(h) / 2, whichever stands nearest to the scale. The next scale sees the sum shrunk with 'area'.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.geometry import Size
from ...profiles.vq import VqConfig
from ..resize import AreaResize

PHIS = 4
PHI_SHARE = 0.5


def phi_index(scale: int, scales: int) -> int:
    """Which of the four convolutions a scale takes: the nearest of 1/12, 13/36, 23/36, 11/12 to its place in [0, 1].

    In exact numbers, of two equally near ones the later: so decide the official floating-point numbers for 10 scales.
    """
    place = Fraction(scale, scales - 1) if scales > 1 else Fraction(0)
    ticks = [Fraction(3 + 10 * i, 36) for i in range(PHIS)]
    return min(range(PHIS), key=lambda i: (abs(ticks[i] - place), -i))


class _Phis(nn.Module):
    """The convolutions under their official name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(PHIS))


class Quantizer(nn.Module):
    """The codebook and the convolutions; fp32 from code to sum, whatever the weights are."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.latent_channels)
        self.quant_resi = _Phis(config.latent_channels)

    def codes(self, index: Tensor) -> Tensor:
        """Indices `[B, N]` int64 -> codes `[B, N, d]` fp32."""
        return F.embedding(index, self.embedding.weight).float()

    def phi(self, h: Tensor, which: int) -> Tensor:
        """h / 2 + conv(h) / 2: `[B, d, H, W]` fp32 -> the same."""
        conv = self.quant_resi.qresi_ls[which]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        smoothed = F.conv2d(h, conv.weight.float(), conv.bias.float(), padding=1)
        return h * (1 - PHI_SHARE) + smoothed * PHI_SHARE

    def residual(self, codes: Tensor, size: Size, final: Size, which: int | None) -> Tensor:
        """What a scale adds to the sum: `[B, N, d]` codes, row-major -> `[B, d, *final]`; without phi where `which` is None."""
        h = enlarge(codes.transpose(1, 2).unflatten(-1, tuple(size)), final)
        return h if which is None else self.phi(h, which)

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the nearest code in Euclidean distance: `[B, N, d]` -> `[B, N]`."""
        return torch.cdist(x, self.embedding.weight.float()[None]).argmin(dim=-1)

    def tokenize(self, latent: Tensor, sizes: Sequence[Size]) -> tuple[list[Tensor], list[Tensor]]:
        """Residual quantisation of a latent, coarse to fine.

        Args:
            latent: `[B, d, H, W]` fp32; the last of `sizes` is (H, W).
            sizes: Token grids.

        Returns:
            Indices of each scale `[B, N]`; and for every scale but the first the input it would see in generation,
            `[B, N, d]`.
        """
        final, summed = sizes[-1], torch.zeros_like(latent)
        indices, inputs = [], []
        for scale, size in enumerate(sizes):
            if scale:
                inputs.append(_shrunk(summed, size))
            index = self.nearest(_shrunk(latent - summed, size))
            summed = summed + self.residual(self.codes(index), size, final, phi_index(scale, len(sizes)))
            indices.append(index)
        return indices, inputs


def enlarge(x: Tensor, size: Size) -> Tensor:
    """Bicubic, corners not aligned: `[B, d, h, w]` -> `[B, d, *size]`."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bicubic", align_corners=False)


def _shrunk(x: Tensor, size: Size) -> Tensor:
    """`[B, d, H, W]` -> `[B, N, d]`, as `TokensOf`; any size, but not for export."""
    return F.interpolate(x, size=tuple(size), mode="area").flatten(2).transpose(1, 2)


class TokensOf(AreaResize):
    """Running sum `[B, d, H, W]` fp32 -> what a scale sees, `[B, N, d]`, row-major."""

    def __init__(self, final: Size, size: Size, like: Tensor) -> None:
        """From the last grid to a scale's, on the device of `like`."""
        super().__init__(final, size, like.float())

    def forward(self, summed: Tensor) -> Tensor:
        return super().forward(summed).flatten(2).transpose(1, 2)
