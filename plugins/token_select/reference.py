"""Token selection and row moves by definition: plain torch, any device.

The order is that of a stable `torch.sort`: equal scores by index, -0.0 equal to 0.0, NaN above +inf. So NaN is taken last
among the smallest and first among the largest, and a row has exactly one answer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def select(scores: Tensor, k: int, largest: bool) -> Tensor:
    """Indices of the k smallest (or largest) scores of each row, ascending by index; ties go to the lower index.

    Args:
        scores: `[R, N]`, fp16, bf16, fp32 or fp64; NaN counts as the greatest value.
        k: 1 to N.
        largest: Take the largest instead of the smallest.

    Returns:
        `[R, k]` int64, in 0..N-1, strictly ascending along a row.
    """
    # CUDA's radix sort looks at the bits, so one zero and one NaN: 0 / 0 gives a negative NaN on x86
    keys = torch.where(scores.isnan(), torch.nan, scores + 0.0)
    order = keys.sort(dim=-1, descending=largest, stable=True).indices
    return order[:, :k].sort(dim=-1).values


def slots(indices: Tensor, n: int) -> Tensor:
    """`[R, n]` int32: which of the indices `[R, k]` names a column, or -1."""
    found = torch.full((indices.shape[0], n), -1, dtype=torch.int32, device=indices.device)
    places = torch.arange(indices.shape[1], dtype=torch.int32, device=indices.device)
    return found.scatter(1, indices.long(), places.expand(indices.shape))


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of `x` `[B, N, C]` at `indices` `[B, k]` int32 or int64, in 0..N-1: `[B, k, C]`, contiguous."""
    return x.gather(1, _across(indices, x)).contiguous()


def scatter_rows(base: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """`base` `[B, N, C]` with `rows` `[B, k, C]` at `indices` `[B, k]`, distinct in a row: new, `[B, N, C]`, contiguous."""
    return base.scatter(1, _across(indices, base), rows).contiguous()


def _across(indices: Tensor, x: Tensor) -> Tensor:
    return indices.long().unsqueeze(-1).expand(-1, -1, x.shape[-1])
