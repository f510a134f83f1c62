"""Blocks and launches. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .kernel import distance_kernel, restore_kernel


def token_distance(x: Tensor) -> Tensor:
    """As `token_distance` of the package, on the GPU of x."""
    rows, tokens, channels = x.shape
    x = x.contiguous()
    mean = x.mean(dim=1, dtype=torch.float32)
    out = torch.empty(rows, tokens, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(channels)
    with torch.cuda.device_of(x):
        distance_kernel[(rows * tokens,)](x, mean, tokens, channels, out, BLOCK=block, num_warps=_warps(block))
    return out


def restore_tokens(part: Tensor, index: Tensor, cached: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """As `restore_tokens` of the package, on the GPU of part."""
    rows, count, channels = part.shape
    assert cached.stride(-1) == 1
    part, index = part.contiguous(), index.contiguous()
    out = torch.empty(rows, target[0] * target[1], channels, dtype=part.dtype, device=part.device)
    block = triton.next_power_of_2(channels)
    with torch.cuda.device_of(part):
        restore_kernel[(target[0] * target[1], rows)](
            part, index, cached, *cached.stride()[:2], count, channels, *source, *target, out,
            STEPS=count.bit_length(), BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return out


def _warps(block: int) -> int:
    return min(8, max(1, block // 512))
