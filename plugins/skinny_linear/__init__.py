"""Linear layers of few rows, whose time is that of reading the weights.

A program begins to load its slice of the weights while the kernel before it still runs, and waits for that kernel's result
only then (`plugins.dependent`). Where outputs are fewer than would fill the GPU, the inner dimension is cut as well and each
share leaves a partial sum; the kernel that reads the result adds them up, in order. Anything else is torch's own linear.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS_MAX = 128
"""Above, reading the rows costs more than reading the weights."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """A linear layer, perhaps with tanh GELU.

    Args:
        x: `[..., C]`, contiguous.
        weight: `[F, C]`, contiguous; written by nobody while the layer runs.
        bias: `[F]` or None.
        gelu: Apply GELU to the result.

    Returns:
        `[..., F]` in x's dtype; sums are fp32.
    """
    rows = x.flatten(0, -2)
    if _suits(rows, weight):
        from .launch import skinny_linear

        found = skinny_linear(rows, weight, bias, gelu)
    elif not gelu:
        found = F.linear(rows, weight, bias)
    elif x.is_cuda and bias is not None:
        found = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
    else:
        found = F.gelu(F.linear(rows, weight, bias), approximate="tanh")
    return found.view(*x.shape[:-1], -1)


def partial_sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear`, but the result may be `[S, ..., F]` fp32, whose sum over S it is: one dimension more than x has."""
    rows = x.flatten(0, -2)
    if not _suits(rows, weight):
        return linear(x, weight, bias)
    from .launch import skinny_parts

    found = skinny_parts(rows, weight, bias)
    return found.view(len(found), *x.shape[:-1], -1)


def summed(parts: Tensor, like: Tensor) -> Tensor:
    """Partial sums `[S, ..., F]` added up in the dtype of `like`, `[..., C]`; a tensor of like's dimensions as it is."""
    return parts if parts.ndim == like.ndim else parts.sum(dim=0).to(like.dtype)


def _suits(rows: Tensor, weight: Tensor) -> bool:
    if not rows.is_cuda or not 0 < len(rows) <= ROWS_MAX:
        return False
    from .launch import suits

    return suits(rows, weight)
