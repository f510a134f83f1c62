"""Block size, warps and launch. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..dependent import dependent
from .kernel import residual_norm_kernel
from .reference import EPS


def residual_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, one: bool
) -> tuple[Tensor, Tensor | None]:
    """As `residual_norm` of the package, on the GPU of x."""
    tokens, channels = x.shape[1:]
    x = x.contiguous()
    stream = torch.empty_like(x) if update is not None else x
    normed = torch.empty_like(x) if scale is not None else None
    if x.numel() == 0 or (update is None and normed is None):
        return stream, normed
    block = triton.next_power_of_2(channels)
    parts = 0 if update is None else len(update) if update.ndim > x.ndim else 1
    ahead = dependent(x)
    with torch.cuda.device_of(x):
        residual_norm_kernel[(x.shape[0] * tokens,)](
            x, x if update is None else update.contiguous(), *(x if part is None else part for part in (gate, scale, shift)),
            *(_row_stride(part) for part in (gate, scale, shift)), tokens, channels, x.numel(),
            stream, x if normed is None else normed,
            PARTS=parts, GATE=gate is not None, NORM=normed is not None, ONE=one, EPS=EPS, BLOCK=block, DEPENDENT=ahead,
            num_warps=min(8, max(1, block // 512)), launch_pdl=ahead,
        )  # fmt: skip
    return stream, normed


def _row_stride(part: Tensor | None) -> int:
    """Elements from one batch row's vector to the next; 0 where all share one."""
    if part is None or part.shape[0] == 1:
        return 0
    assert part.stride(-1) == 1, "the vectors are contiguous"
    return part.stride(0)
