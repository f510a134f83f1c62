"""The definition, in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def enlarge(cached: Tensor, source: Size, target: Size, index: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """As `enlarge` of the package."""
    grid = cached.float().transpose(1, 2).unflatten(-1, source)
    found = F.interpolate(grid, size=target, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    if index is not None:
        found = found.gather(1, index.unsqueeze(-1).expand(-1, -1, found.shape[-1]))
    return found.to(cached.dtype).contiguous() if onto is None else (onto.float() + found).to(onto.dtype).contiguous()


def put_back(x: Tensor, part: Tensor, slots: Tensor, cached: Tensor, source: Size, target: Size) -> Tensor:
    """As `put_back` of the package."""
    place = slots.clamp_min(0).long().unsqueeze(-1).expand(-1, -1, part.shape[-1])
    return enlarge(cached, source, target, onto=x).where((slots < 0).unsqueeze(-1), part.gather(1, place))
