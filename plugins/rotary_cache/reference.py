"""The definition, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-12


def rotary_cache(qkv: Tensor, factor: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As `rotary_cache` of the package."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [R, H, N, D]
    turned = _rotate(F.normalize(q.float(), dim=-1, eps=EPS) * factor[:, None, None], cos, sin)
    keys.copy_(_rotate(F.normalize(k.float(), dim=-1, eps=EPS), cos, sin))
    values.copy_(v)
    q.copy_(turned)
    return q


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2)
