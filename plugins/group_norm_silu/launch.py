"""Blocks, shares, launches. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .kernel import apply_kernel, merge_kernel, statistics_kernel

_TILE = 4096  # values a block: 32 for each of 128 threads
_PROGRAMS = 1056  # eight a multiprocessor of an H100: enough to hide the latency of the loads


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, shift: Tensor, eps: float, update: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `group_norm_silu` of the package, on the GPU of x."""
    x = x.contiguous(memory_format=torch.channels_last)
    if update is not None:
        update = update.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    pixels, block_c = height * width, triton.next_power_of_2(channels)
    block_p = max(1, _TILE // block_c)
    share = max(block_p, triton.cdiv(triton.cdiv(pixels, _PROGRAMS // batch or 1), block_p) * block_p)
    parts = triton.cdiv(pixels, share)
    group_width, parts_block = triton.next_power_of_2(channels // groups), triton.next_power_of_2(parts)
    stream = torch.empty_like(x) if update is not None else x
    out = torch.empty_like(x)
    mean, square = torch.empty(2, batch, parts, channels, dtype=torch.float32, device=x.device).unbind(0)
    factor, offset = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device).unbind(0)
    added = bias if update is not None else None
    with torch.cuda.device_of(x):
        statistics_kernel[(parts, batch)](
            x, x if update is None else update, x if bias is None else bias, pixels, share, stream, mean, square,
            C=channels, BLOCK_C=block_c, BLOCK_P=block_p, UPDATE=update is not None, BIAS=bias is not None, num_warps=4,
        )  # fmt: skip
        # with an update the bias is in the stream already
        later = bias is not None and added is None
        merge_kernel[(groups, batch)](
            mean, square, weight, shift, bias if later else weight, pixels, share, parts, eps, factor, offset,
            C=channels, WIDTH=channels // groups, BLOCK_W=group_width, BLOCK_S=min(_TILE // group_width, parts_block),
            BIAS=later, num_warps=4,
        )  # fmt: skip
        apply_kernel[(triton.cdiv(pixels, block_p), batch)](
            stream, factor, offset, pixels, out, C=channels, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4
        )
    return stream, out
