"""The definition, in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def put_back(x: Tensor, part: Tensor, slots: Tensor, cached: Tensor, source: Size, target: Size) -> Tensor:
    """As `put_back` of the package."""
    grid = cached.float().transpose(1, 2).unflatten(-1, source)
    enlarged = F.interpolate(grid, size=target, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    others = (x.float() + enlarged).to(x.dtype)
    place = slots.clamp_min(0).long().unsqueeze(-1).expand(-1, -1, part.shape[-1])
    return others.where((slots < 0).unsqueeze(-1), part.gather(1, place))
