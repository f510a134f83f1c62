"""The definition, in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def token_distance(x: Tensor) -> Tensor:
    """As `token_distance` of the package."""
    tokens = x.float()
    return (tokens - tokens.mean(dim=1, keepdim=True)).square().sum(dim=-1)


def restore_tokens(part: Tensor, index: Tensor, cached: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """As `restore_tokens` of the package."""
    grid = cached.float().transpose(1, 2).unflatten(-1, source)
    enlarged = F.adaptive_avg_pool2d(grid, target).flatten(2).transpose(1, 2).to(part.dtype)
    return enlarged.scatter(1, index.unsqueeze(-1).expand(-1, -1, part.shape[-1]), part)
