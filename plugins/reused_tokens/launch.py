"""Blocks and launches. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..dependent import dependent
from .kernel import put_back_kernel
from .reference import Size

TOKENS, CHANNELS, WARPS = 32, 64, 4
"""Of a program."""


def put_back(x: Tensor, part: Tensor, slots: Tensor, cached: Tensor, source: Size, target: Size) -> Tensor:
    """As `put_back` of the package, on the GPU of x."""
    rows, tokens, channels = x.shape
    x, part, slots = x.contiguous(), part.contiguous(), slots.contiguous()
    cached = cached if cached.stride(-1) == 1 else cached.contiguous()
    out = torch.empty_like(x)
    ahead, block = dependent(x), min(CHANNELS, triton.next_power_of_2(channels))
    with torch.cuda.device_of(x):
        put_back_kernel[(triton.cdiv(tokens, TOKENS), triton.cdiv(channels, block), rows)](
            x, part, slots, cached, *cached.stride()[:2], part.shape[1], channels, out,
            SOURCE_H=source[0], SOURCE_W=source[1], TARGET_H=target[0], TARGET_W=target[1],
            TOKENS=TOKENS, BLOCK=block, DEPENDENT=ahead, num_warps=WARPS, launch_pdl=ahead,
        )  # fmt: skip
    return out
