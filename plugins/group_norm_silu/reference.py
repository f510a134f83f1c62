"""The definition, in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, shift: Tensor, eps: float, update: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `group_norm_silu` of the package."""
    stream = x.float()
    if update is not None:
        stream = stream + update.float()
    if bias is not None:
        stream = stream + bias.float()[:, None, None]
    kept = x if update is None else stream.to(x.dtype)
    # what the norm reads is what is kept: the sum is rounded once
    source = stream if update is None else kept.float()
    return kept, F.silu(F.group_norm(source, groups, weight.float(), shift.float(), eps)).to(x.dtype)
