"""Triton kernel: one program a token and a group of heads, for q, k and v at once."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _turned(x, cos, sin, EPS: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Unit length, then every pair (2p, 2p + 1) turned by its angle: `[HEADS, BLOCK_D]`."""
    x = x / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), EPS)[:, None]
    even, odd = tl.split(tl.reshape(x, [HEADS, BLOCK_D // 2, 2]))
    return tl.reshape(tl.join(cos * even - sin * odd, sin * even + cos * odd), [HEADS, BLOCK_D])


@triton.jit
def rotary_cache_kernel(
    factor_ptr, cos_ptr, sin_ptr, angle_stride_r, angle_stride_n, tokens, heads,
    k_stride_r, k_stride_h, k_stride_n, v_stride_r, v_stride_h, v_stride_n,
    qkv_ptr, k_ptr, v_ptr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr, EPS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (r * N + n, g) handles heads g * HEADS ... of token n in batch row r."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0).to(tl.int64)
    r = line // tokens
    n = line % tokens
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    depth = tl.arange(0, BLOCK_D)
    pair = tl.arange(0, BLOCK_D // 2)
    angles = r * angle_stride_r + n * angle_stride_n + pair
    cos = tl.load(cos_ptr + angles, mask=pair < D // 2, other=1.0)[None, :]
    sin = tl.load(sin_ptr + angles, mask=pair < D // 2, other=0.0)[None, :]
    inside = (head < heads)[:, None] & (depth < D)[None, :]
    place = head[:, None] * D + depth[None, :]  # [HEADS, BLOCK_D]
    third = heads * D
    row_ptr = qkv_ptr + line * 3 * third
    q = tl.load(row_ptr + place, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(row_ptr + third + place, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(row_ptr + 2 * third + place, mask=inside, other=0.0)
    factor = tl.load(factor_ptr + head, mask=head < heads, other=0.0)
    q = _turned(q, cos, sin, EPS, HEADS, BLOCK_D) * factor[:, None]
    k = _turned(k, cos, sin, EPS, HEADS, BLOCK_D)
    head64 = head.to(tl.int64)
    tl.store(row_ptr + place, q.to(qkv_ptr.dtype.element_ty), mask=inside)
    k_place = r * k_stride_r + n * k_stride_n + head64[:, None] * k_stride_h + depth[None, :]
    v_place = r * v_stride_r + n * v_stride_n + head64[:, None] * v_stride_h + depth[None, :]
    tl.store(k_ptr + k_place, k.to(k_ptr.dtype.element_ty), mask=inside)
    tl.store(v_ptr + v_place, v, mask=inside)
