"""Tile and launch. Importing this needs Triton."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ..dependent import dependent
from .kernel import text_attention_kernel

_LOG2_E = math.log2(math.e)


def text_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """As `text_attention` of the package, on the GPU of q."""
    parts, whole = (len(q), q.stride(0)) if q.ndim > k.ndim else (1, 0)
    rows, tokens, heads, width = q.shape[-4:]
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    o = torch.empty(rows, tokens, heads, width, dtype=k.dtype, device=q.device)
    block_q, block_k, warps = _tile(tokens, k.dtype)
    ahead = dependent(q)
    with torch.cuda.device_of(q):
        text_attention_kernel[(triton.cdiv(tokens, block_q), rows * heads)](
            q, k, v, lengths, *q.stride()[-4:-1], *k.stride()[:3], *v.stride()[:3], heads, tokens, whole, scale * _LOG2_E, o,
            D=width, BLOCK_D=triton.next_power_of_2(width), BLOCK_Q=block_q, BLOCK_K=block_k, PRECISION="ieee",
            PARTS=parts, DEPENDENT=ahead, num_warps=warps, num_stages=2, launch_pdl=ahead,
        )  # fmt: skip
    return o


def _tile(tokens: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Tokens and keys of a block, warps; fp32 products do not run on the matrix units, so their tiles are small."""
    if dtype == torch.float32:
        return 16, 32, 4
    if tokens <= 64:
        return 16, 64, 4
    return (64, 64, 4) if tokens <= 512 else (128, 64, 8)
