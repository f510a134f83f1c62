"""The definition, in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


def residual_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, one: bool
) -> tuple[Tensor, Tensor | None]:
    """As `residual_norm` of the package."""
    stream = x.float()
    if update is not None and update.ndim > x.ndim:
        update = update.float().sum(dim=0)
    if update is not None:
        stream = stream + (update.float() if gate is None else update.float() * gate.float()[:, None])
    kept = x if update is None else stream.to(x.dtype)
    if scale is None or shift is None:
        return kept, None
    factor = scale.float()[:, None] + (1 if one else 0)
    normed = F.layer_norm(stream, x.shape[-1:], eps=EPS) * factor + shift.float()[:, None]
    return kept, normed.to(x.dtype)
