"""Blocks and launches. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..dependent import dependent
from .kernel import add_restored_kernel, distance_kernel, mean_kernel
from .reference import Size

TOKENS, CHANNELS, WARPS = 32, 64, 4
"""Of a program that adds."""
PARTS, MEAN_CHANNELS = 32, 64
"""Of a program that adds up partial sums."""


def token_distance(x: Tensor, mean: Tensor | None) -> Tensor:
    """As `token_distance` of the package, on the GPU of x."""
    rows, tokens, channels = x.shape
    x = x.contiguous()
    mean = x.mean(dim=1, dtype=torch.float32) if mean is None else mean
    out = torch.empty(rows, tokens, dtype=torch.float32, device=x.device)
    block, ahead = triton.next_power_of_2(channels), dependent(x)
    with torch.cuda.device_of(x):
        distance_kernel[(rows * tokens,)](
            x, mean, tokens, channels, out,
            BLOCK=block, DEPENDENT=ahead, num_warps=min(8, max(1, block // 512)), launch_pdl=ahead,
        )  # fmt: skip
    return out


def add_restored(
    x: Tensor,
    part: Tensor,
    gate: Tensor | None,
    slots: Tensor,
    cached: Tensor,
    source: Size,
    target: Size,
) -> tuple[Tensor, Tensor]:
    """As `add_restored` of the package, on the GPU of x."""
    rows, tokens, channels = x.shape
    assert cached.stride(-1) == 1
    assert gate is None or gate.stride(-1) == 1
    x, part, slots = x.contiguous(), part.contiguous(), slots.contiguous()
    out = torch.empty_like(x)
    blocks = triton.cdiv(tokens, TOKENS)
    sums = torch.empty(rows, blocks, channels, dtype=torch.float32, device=x.device)
    mean = torch.empty(rows, channels, dtype=torch.float32, device=x.device)
    ahead, block = dependent(x), min(CHANNELS, triton.next_power_of_2(channels))
    # a window of the mode 'area' begins and ends within a token of the cached scale
    windows = [triton.cdiv(small, large) + 1 for small, large in zip(source, target, strict=True)]
    with torch.cuda.device_of(x):
        add_restored_kernel[(blocks, triton.cdiv(channels, block), rows)](
            x, part, x if gate is None else gate, 0 if gate is None else gate.stride(0), slots, cached, *cached.stride()[:2],
            part.shape[1], channels, out, sums,
            SOURCE_H=source[0], SOURCE_W=source[1], TARGET_H=target[0], TARGET_W=target[1],
            WINDOW_H=windows[0], WINDOW_W=windows[1], GATE=gate is not None,
            TOKENS=TOKENS, BLOCK=block, DEPENDENT=ahead, num_warps=WARPS, launch_pdl=ahead,
        )  # fmt: skip
        mean_kernel[(triton.cdiv(channels, MEAN_CHANNELS), rows)](
            sums, blocks, tokens, channels, mean,
            PARTS=PARTS, BLOCK=MEAN_CHANNELS, DEPENDENT=ahead, num_warps=4, launch_pdl=ahead,
        )  # fmt: skip
    return out, mean
