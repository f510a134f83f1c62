"""Changing the grid of a map: bilinear as the models draw, and by the mean over windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..profiles.geometry import Size


def resize(x: Tensor, size: Size) -> Tensor:
    """Bilinear, corners not aligned, no antialias: `[B, d, h, w]` -> `[B, d, *size]`."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def area_weights(count: int, target: int) -> Tensor:
    """Rows that average `count` cells to `target` as 'area' does: cell i is the mean of floor(i n / m) .. ceil((i + 1) n / m).

    Returns:
        `[target, count]` fp32, every row sums to 1.
    """
    weights = torch.zeros(target, count)
    for i in range(target):
        first, stop = i * count // target, -(-(i + 1) * count // target)
        weights[i, first:stop] = 1 / (stop - first)
    return weights


class AreaResize(nn.Module):
    """Mean over windows, as the mode 'area', also where it enlarges.

    Two small matrices made once: ONNX has no adaptive pooling whose windows overlap, and a CUDA graph takes none from the host.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Size, target: Size, like: Tensor) -> None:
        """From (h, w) to (h', w'), with the device and dtype of `like`."""
        super().__init__()
        for name, count, wanted in zip(("rows", "columns"), source, target, strict=True):
            self.register_buffer(name, area_weights(count, wanted).to(like), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[R, C, h, w]` -> `[R, C, h', w']`."""
        return self.rows @ x @ self.columns.T
