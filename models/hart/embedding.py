"""Embedding of a whole number (a level, a diffusion timestep): sinusoids through a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..layers import Linear

FREQUENCIES = 256
PERIOD_MAX = 10000.0


def sinusoid(number: int) -> Tensor:
    """128 cosines, then 128 sines, of a number: `[256]` fp32."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(PERIOD_MAX) * torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([(number * frequencies).cos(), (number * frequencies).sin()])


class SinusoidEmbedding(nn.Module):
    """The MLP, under the official name `mlp`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, sinusoids: Tensor) -> Tensor:
        """Of whole numbers, `[..., 256]` -> their vectors `[..., W]` in the dtype of the weights."""
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(sinusoids.to(dtype))  # type: ignore[no-any-return]
