"""Triton kernel: one program a block of tokens of one head, all keys of its row streamed once (online softmax)."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def text_attention_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr,
    q_stride_r, q_stride_n, q_stride_h, k_stride_r, k_stride_h, k_stride_t, v_stride_r, v_stride_h, v_stride_t,
    heads, tokens, part_stride, factor, o_ptr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    PARTS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (i, r * H + h) writes tokens i * BLOCK_Q ... of o `[R, N, H, D]`; `factor` is scale * log2(e).

    q is the sum of `PARTS` tensors.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(1).to(tl.int64)
    r = line // heads
    h = line % heads
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, BLOCK_K)
    depth = tl.arange(0, BLOCK_D)
    length = tl.load(lengths_ptr + r).to(tl.int32)
    inside = (rows < tokens)[:, None] & (depth < D)[None, :]
    rows_64 = rows.to(tl.int64)
    q_place = r * q_stride_r + h * q_stride_h + rows_64[:, None] * q_stride_n + depth[None, :]
    q = tl.load(q_ptr + q_place, mask=inside, other=0.0)  # [BLOCK_Q, BLOCK_D]
    for part in tl.static_range(1, PARTS):
        q += tl.load(q_ptr + part * part_stride + q_place, mask=inside, other=0.0)
    q = q.to(o_ptr.dtype.element_ty)
    k_base = k_ptr + r * k_stride_r + h * k_stride_h
    v_base = v_ptr + r * v_stride_r + h * v_stride_h
    o = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_Q], -3.0e38, tl.float32)
    l = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, length, BLOCK_K):
        key = start + columns
        seen = key < length
        k = tl.load(k_base + key[None, :] * k_stride_t + depth[:, None], mask=seen[None, :] & (depth < D)[:, None], other=0.0)
        v = tl.load(v_base + key[:, None] * v_stride_t + depth[None, :], mask=seen[:, None] & (depth < D)[None, :], other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION) * factor
        s = tl.where(seen[None, :], s, -3.0e38)
        m_next = tl.maximum(m, tl.max(s, 1))
        p = tl.where(seen[None, :], tl.exp2(s - m_next[:, None]), 0.0)
        alpha = tl.exp2(m - m_next)
        l = l * alpha + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * alpha[:, None], input_precision=PRECISION)
        m = m_next
    o_place = ((r * tokens + rows_64[:, None]) * heads + h) * D + depth[None, :]
    tl.store(o_ptr + o_place, (o / l[:, None]).to(o_ptr.dtype.element_ty), mask=inside)
