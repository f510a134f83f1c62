"""Stages, shares and launch. Importing this needs Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..flash_attention_entropy.launch import hopper_problem

FEATURES, CHANNELS = 64, 128
"""Outputs of a program, channels of a chunk; as in the kernel."""
SHARED_BYTES = 216 * 1024
PROGRAMS = 132
CHUNKS_MIN = 4
"""Of a share."""


def suits(rows: Tensor, weight: Tensor) -> bool:
    """Whether the kernel can compute it: Hopper, 16 bits, whole chunks, addresses that TMA takes."""
    if rows.dtype not in (torch.float16, torch.bfloat16) or rows.dtype != weight.dtype or hopper_problem() is not None:
        return False
    if torch.cuda.get_device_capability(rows.device) != (9, 0) or not (rows.is_contiguous() and weight.is_contiguous()):
        return False
    return weight.shape[1] % CHANNELS == 0 and rows.data_ptr() % 16 == weight.data_ptr() % 16 == 0


def shares(features: int, channels: int) -> int:
    """Into how many the channels are cut: as long as programs fit on the GPU at once."""
    found, tiles, chunks = 1, triton.cdiv(features, FEATURES), channels // CHANNELS
    while tiles * found * 2 <= PROGRAMS and chunks % (found * 2) == 0 and chunks // found >= 2 * CHUNKS_MIN:
        found *= 2
    return found


def skinny_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """`[M, C]` -> `[M, F]`, as `linear` of the package."""
    out = torch.empty(len(rows), len(weight), dtype=rows.dtype, device=rows.device)
    _launch(rows, weight, bias, out, 1, gelu)
    return out


def skinny_parts(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[M, C]` -> `[S, M, F]` fp32, as `partial_sums` of the package."""
    count = shares(*weight.shape)
    out = torch.empty(count, len(rows), len(weight), dtype=torch.float32, device=rows.device)
    _launch(rows, weight, bias, out, count, False)
    return out


def _launch(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, count: int, gelu: bool) -> None:
    from .kernel import skinny_linear_kernel

    block = max(16, triton.next_power_of_2(len(rows)))
    chunks = weight.shape[1] // CHANNELS // count
    row_stages = min(chunks, 8 if block <= 64 else 4)
    row_bytes, weight_bytes = block * CHANNELS * 2, FEATURES * CHANNELS * 2
    weight_stages = min(chunks, (SHARED_BYTES - row_stages * row_bytes) // weight_bytes)
    with torch.cuda.device_of(rows):
        skinny_linear_kernel[(triton.cdiv(len(weight), FEATURES), count)](
            _descriptor(weight, FEATURES), _descriptor(rows, block), len(rows), len(weight), chunks,
            weight if bias is None else bias, out,
            W_STAGES=weight_stages, X_STAGES=row_stages, BIAS=bias is not None, GELU=gelu, num_warps=4, launch_pdl=True,
        )  # fmt: skip


def _descriptor(matrix: Tensor, block: int) -> Any:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.shape[1], 1], [block, CHANNELS], layout)
