"""Rotary positions of HART: the text in one dimension, the image in two, behind the last position of the text.

Both use rotate-half over the *whole* head. With the image's angles, the first half of the head for the row and the second
for the column, a component is thus mixed with its partner at the angle of the other axis: no true rotation, but what the
released model was trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...profiles.geometry import Size
from ..state import Rope

BASE = 10000.0


def frequencies(count: int) -> Tensor:
    """Falling from 1, of a sub-vector of `2 * count` components: `[count]` fp32; text takes D / 2, the image D / 4."""
    return BASE ** -(torch.arange(count, dtype=torch.int64).float() / count)


def _rope(angles: Tensor) -> Rope:
    """`[R, N, D]` -> cosines and sines."""
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def text_rope(positions: Tensor, frequencies: Tensor) -> Rope:
    """Rotary table of the text.

    Args:
        positions: `[R, T]` fp32.
        frequencies: `[D / 2]`.
    """
    angles = positions.unsqueeze(-1) * frequencies
    return _rope(torch.cat([angles, angles], dim=-1))


def grid_positions(size: Size, last: Size) -> Tensor:
    """Row and column of every token of a scale, measured on the last scale's grid and not rounded: `[2, h * w]` fp32."""
    rows, columns = (torch.arange(n) / n * m for n, m in zip(size, last, strict=True))
    h, w = size
    return torch.stack([rows[:, None].expand(h, w), columns[None, :].expand(h, w)]).flatten(1)


def image_rope(grid: Tensor, origin: Tensor, frequencies: Tensor) -> Rope:
    """Rotary table of a scale.

    Args:
        grid: `[2, N]` from `grid_positions`.
        origin: `[R, 1]` fp32, the last position of each row's text.
        frequencies: `[D / 4]`.
    """
    rows, columns = ((grid[axis] + origin).unsqueeze(-1) * frequencies for axis in range(2))
    return _rope(torch.cat([rows, rows, columns, columns], dim=-1))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """`[R, H, N, D]` -> the same; the table is rounded to the dtype of x first, as in the official code."""
    cos, sin = (table.to(x.dtype) for table in rope)
    first, second = x.unflatten(-1, (2, -1)).unbind(-2)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
