"""Heads a program, strides, launch. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..dependent import dependent
from .kernel import rotary_cache_kernel
from .reference import EPS

_VALUES = 512  # of each of q, k and v a program: four for each of 128 threads


def rotary_cache(qkv: Tensor, factor: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As `rotary_cache` of the package, on the GPU of qkv."""
    rows, tokens, _, heads, width = qkv.shape
    assert qkv.is_contiguous()
    assert keys.stride(-1) == values.stride(-1) == cos.stride(-1) == sin.stride(-1) == 1
    assert cos.stride() == sin.stride()
    block = triton.next_power_of_2(width)
    group = max(1, min(_VALUES // block, triton.next_power_of_2(heads)))
    own = cos.ndim == 4  # each row has its own tokens
    ahead = dependent(qkv)
    with torch.cuda.device_of(qkv):
        rotary_cache_kernel[(rows * tokens, triton.cdiv(heads, group))](
            factor, cos, sin, cos.stride(0) if own else 0, cos.stride(-2), tokens, heads,
            *keys.stride()[:3], *values.stride()[:3], qkv, keys, values,
            D=width, BLOCK_D=block, HEADS=group, EPS=EPS, DEPENDENT=ahead,
            num_warps=max(1, group * block // 128), launch_pdl=ahead,
        )  # fmt: skip
    return qkv[:, :, 0].transpose(1, 2)
