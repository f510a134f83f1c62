"""The definition, in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def token_distance(x: Tensor, mean: Tensor | None) -> Tensor:
    """As `token_distance` of the package."""
    tokens = x.float()
    centre = tokens.mean(dim=1) if mean is None else mean
    return (tokens - centre.unsqueeze(1)).square().sum(dim=-1)


def add_restored(
    x: Tensor,
    part: Tensor,
    gate: Tensor | None,
    slots: Tensor,
    cached: Tensor,
    source: Size,
    target: Size,
) -> tuple[Tensor, Tensor]:
    """As `add_restored` of the package."""
    grid = cached.float().transpose(1, 2).unflatten(-1, source)
    enlarged = F.adaptive_avg_pool2d(grid, target).flatten(2).transpose(1, 2)
    ran = part.float() if gate is None else part.float() * gate.float().unsqueeze(1)
    place = slots.clamp_min(0).long().unsqueeze(-1).expand(-1, -1, part.shape[-1])
    update = enlarged.where((slots < 0).unsqueeze(-1), ran.gather(1, place))
    stream = (x.float() + update).to(x.dtype)
    return stream, stream.float().mean(dim=1)
