"""Triton kernel: one program a block of query rows, keys streamed once (online softmax), entropy beside the row sum.

Every pointer is followed by integers only, outputs last, so that the same function serves the torch op (compiled when first
called) and TensorRT (compiled ahead of time, `tensorrt.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# finite stand-ins of -inf: they give weight 0 without the NaN of 0 * -inf
LOWEST = tl.constexpr(-3.0e38)
UNSEEN = tl.constexpr(-1.0e30)


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _absorb(
    q, k_ptrs, v_ptrs, o, m, l, e, start, stop, factor, columns, depth,
    D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr, ENTROPY: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Fold one block of keys into the running output, maximum (in base 2), sum and entropy sum."""
    seen = start + columns < stop
    if MASKED and BLOCK_D != D:
        k = tl.load(k_ptrs, mask=seen[None, :] & (depth < D)[:, None], other=0.0)
        v = tl.load(v_ptrs, mask=seen[:, None] & (depth < D)[None, :], other=0.0)
    elif MASKED:
        k = tl.load(k_ptrs, mask=seen[None, :], other=0.0)
        v = tl.load(v_ptrs, mask=seen[:, None], other=0.0)
    elif BLOCK_D != D:
        k = tl.load(k_ptrs, mask=(depth < D)[:, None], other=0.0)
        v = tl.load(v_ptrs, mask=(depth < D)[None, :], other=0.0)
    else:
        k = tl.load(k_ptrs)
        v = tl.load(v_ptrs)
    if UPCAST:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    s = tl.dot(q, k, input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
    if MASKED:
        s = tl.where(seen[None, :], s, LOWEST)
    # the maximum is kept scaled and rounded: every x and every shift then subtract the very same number
    m_next = tl.maximum(m, tl.max(s, 1) * factor)
    x = s * factor - m_next[:, None]
    if MASKED:
        x = tl.where(seen[None, :], x, UNSEEN)
    p = tl.exp2(x)
    # bounded, because the first maximum is LOWEST and l is 0 there: no 0 * -inf
    shift = tl.maximum(m - m_next, UNSEEN)
    alpha = tl.exp2(shift)
    if ENTROPY:
        # one reduction for both sums: threads of several warps meet once
        row_p, row_px = tl.reduce((p, p * x), 1, _add_pairs)
        e = alpha * (e + l * shift) + row_px
        l = alpha * l + row_p
    else:
        l = alpha * l + tl.sum(p, 1)
    o = tl.dot(p.to(v.dtype), v, o * alpha[:, None], input_precision=PRECISION)
    return o, m_next, l, e


@triton.jit
def fae_forward(
    q_ptr, k_ptr, v_ptr,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    o_stride_b, o_stride_h, o_stride_n, heads, queries, keys,
    o_ptr, e_ptr,
    factor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    ENTROPY: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (i, b * heads + h, s) reads share s of the keys for rows i * BLOCK_Q ... of o `[B, H, Nq, D]`, e `[B, H, Nq]`.

    `factor` is scale * log2(e), at least 0. `UPCAST` computes in fp32, for the interpreter, whose bf16 products are wrong.
    With SPLITS > 1, o and e are the fp32 workspaces that `fae_combine` reads.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row_start = tl.program_id(0) * BLOCK_Q
    bh = tl.program_id(1).to(tl.int64)
    b = bh // heads
    h = bh % heads
    rows = row_start + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, BLOCK_K)
    depth = tl.arange(0, BLOCK_D)
    inside = (rows < queries)[:, None] & (depth < D)[None, :]
    q_ptrs = q_ptr + b * q_stride_b + h * q_stride_h + rows.to(tl.int64)[:, None] * q_stride_n + depth[None, :]
    q = tl.load(q_ptrs, mask=inside, other=0.0)  # [BLOCK_Q, BLOCK_D]
    if UPCAST:
        q = q.to(tl.float32)
    share = tl.cdiv(tl.cdiv(keys, BLOCK_K), SPLITS) * BLOCK_K
    first = tl.program_id(2) * share
    stop = tl.minimum(first + share, keys)
    columns_64 = (first + columns).to(tl.int64)
    k_ptrs = k_ptr + b * k_stride_b + h * k_stride_h + columns_64[None, :] * k_stride_n + depth[:, None]
    v_ptrs = v_ptr + b * v_stride_b + h * v_stride_h + columns_64[:, None] * v_stride_n + depth[None, :]
    o = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_Q], LOWEST, tl.float32)
    l = tl.zeros([BLOCK_Q], tl.float32)
    e = tl.zeros([BLOCK_Q], tl.float32)
    whole = first + (stop - first) // BLOCK_K * BLOCK_K
    for start in range(first, whole, BLOCK_K):
        o, m, l, e = _absorb(
            q, k_ptrs, v_ptrs, o, m, l, e, start, stop, factor, columns, depth, D, BLOCK_D, False, ENTROPY, PRECISION, UPCAST
        )  # fmt: skip
        k_ptrs += BLOCK_K * k_stride_n
        v_ptrs += BLOCK_K * v_stride_n
    if whole < stop:
        o, m, l, e = _absorb(
            q, k_ptrs, v_ptrs, o, m, l, e, whole, stop, factor, columns, depth, D, BLOCK_D, True, ENTROPY, PRECISION, UPCAST
        )  # fmt: skip
    if SPLITS == 1:
        o_ptrs = o_ptr + b * o_stride_b + h * o_stride_h + rows.to(tl.int64)[:, None] * o_stride_n + depth[None, :]
        tl.store(o_ptrs, (o * (1.0 / l)[:, None]).to(o_ptr.dtype.element_ty), mask=inside)
        if ENTROPY:
            tl.store(e_ptr + bh * queries + rows, _nats(l, e), mask=rows < queries)
    else:
        lines = tl.num_programs(1).to(tl.int64) * queries
        line = tl.program_id(2) * lines + bh * queries + rows  # [SPLITS, B * H * Nq]
        tl.store(o_ptr + line[:, None] * D + depth[None, :], o, mask=inside)
        tl.store(e_ptr + line, m, mask=rows < queries)
        tl.store(e_ptr + SPLITS * lines + line, l, mask=rows < queries)
        if ENTROPY:
            tl.store(e_ptr + 2 * SPLITS * lines + line, e, mask=rows < queries)


@triton.jit
def _nats(l, e):
    entropy = 0.6931471805599453 * (tl.log2(l) - e / l)
    # rounding may leave -1e-8; a comparison keeps NaN, a maximum would hide it
    return tl.where(entropy < 0.0, 0.0, entropy)


@triton.jit
def fae_combine(
    part_ptr, stats_ptr, o_stride_b, o_stride_h, o_stride_n, heads, queries, o_ptr, e_ptr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Program (row, b * heads + h) merges the SPLITS partial rows that `fae_forward` left."""
    row = tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    lines = tl.num_programs(1).to(tl.int64) * queries
    line = bh * queries + row
    depth = tl.arange(0, BLOCK_D)
    highest = tl.load(stats_ptr + line)
    for s in range(1, SPLITS):
        highest = tl.maximum(highest, tl.load(stats_ptr + s * lines + line))
    o = tl.zeros([BLOCK_D], tl.float32)
    l = 0.0
    e = 0.0
    for s in range(SPLITS):
        shift = tl.maximum(tl.load(stats_ptr + s * lines + line) - highest, UNSEEN)
        weight = tl.exp2(shift)
        part_l = tl.load(stats_ptr + (SPLITS + s) * lines + line)
        l += weight * part_l
        if ENTROPY:
            e += weight * (tl.load(stats_ptr + (2 * SPLITS + s) * lines + line) + part_l * shift)
        o += weight * tl.load(part_ptr + (s * lines + line) * D + depth, mask=depth < D, other=0.0)
    o_ptrs = o_ptr + (bh // heads) * o_stride_b + (bh % heads) * o_stride_h + row.to(tl.int64) * o_stride_n + depth
    tl.store(o_ptrs, (o / l).to(o_ptr.dtype.element_ty), mask=depth < D)
    if ENTROPY:
        tl.store(e_ptr + line, _nats(l, e))
