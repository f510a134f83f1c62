"""2-D rotary positions of Infinity (`rope2d_normalized_by_hw=2`): half of the pairs turn with the row, half with the column.

Row i of a scale with h rows stands at round(i * H / h), where H is the last scale of the 1M schedule of the same aspect
ratio whatever the budget; ties round to even.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...profiles.geometry import Size
from ..state import Rope


def positions(count: int, reference: int) -> Tensor:
    """Integer position of each row (or column) of a scale: `[count]` int64."""
    # multiply first: i * (H / h) would turn exact ties into 55.499...
    return torch.round(torch.arange(count, dtype=torch.float64) * reference / count).long()


def rope_table(size: Size, reference: Size, head_width: int) -> Tensor:
    """Cosines and sines of one scale.

    Args:
        size: (h, w) of the scale.
        reference: (h, w) of the last scale of the 1M schedule.
        head_width: D, divisible by 4.

    Returns:
        `[2, h * w, D / 2]` fp32: cos and sin; the first D / 4 angles belong to the row, the others to the column.
    """
    half = head_width // 2
    inverse = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.int64).float() / half)
    rows, columns = (torch.outer(positions(n, r).float(), inverse) for n, r in zip(size, reference, strict=True))
    h, w = size
    angles = torch.cat([rows[:, None, :].expand(h, w, half // 2), columns[None, :, :].expand(h, w, half // 2)], dim=-1).reshape(
        h * w, half
    )
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn interleaved pairs (2p, 2p + 1) of the head vector.

    Args:
        x: `[R, H, N, D]`.
        rope: Cosines and sines of the tokens of x.
    """
    cos, sin = rope
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2).to(x.dtype)
