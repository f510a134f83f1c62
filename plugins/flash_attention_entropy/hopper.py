"""Gluon kernel for Hopper: one warp loads by TMA, two warpgroups own 64 query rows each.

One iteration issues the product with the next keys and the product with the last values, then runs the softmax while the
second product is still at work (the pipelining of FlashAttention-3, arXiv 2407.08608, section 3.2). The ragged block of keys
comes first, so that the loop needs no mask; TMA fills what lies outside a tensor with zeros. Entropy costs one
multiply-add an element: sum p * x beside sum p, with x the exponent that the softmax computes anyway.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

ROWS = gl.constexpr(64)  # query rows of a warpgroup: the height of a wgmma
GROUPS = gl.constexpr(2)


@gluon.jit
def _load(q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, b, h, row, keys):
    """The loading warp: all query rows once, then block after block of keys and values, the last block first."""
    STAGES: gl.constexpr = k_smem.shape[0]
    BLOCK_K: gl.constexpr = k_smem.shape[3]
    for w in gl.static_range(GROUPS):
        mbarrier.expect(q_full.index(w), q_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [b, h, row + w * ROWS, 0], q_full.index(w), q_smem.index(w))
    blocks = gl.cdiv(keys, BLOCK_K)
    for j in range(blocks):
        start = (blocks - 1 - j) * BLOCK_K
        stage = j % STAGES
        free = ((j // STAGES) & 1) ^ 1
        mbarrier.wait(k_empty.index(stage), free)
        mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [b, h, start, 0], k_full.index(stage), k_smem.index(stage))
        mbarrier.wait(v_empty.index(stage), free)
        mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [b, h, start, 0], v_full.index(stage), v_smem.index(stage))


@gluon.jit
def _row_sum(x):
    """Sum over the columns that a thread holds, `[ROWS, 4]`: the four threads of a row meet only after the loop."""
    return gl.sum(gl.sum(gl.reshape(x, [ROWS, x.shape[1] // 8, 4, 2]), 1), 2)


@gluon.jit
def _spread(x, like: gl.constexpr):
    """Row values `[ROWS]` as a column beside a tensor of layout `like`."""
    return gl.convert_layout(x, gl.SliceLayout(1, like))[:, None]


@gluon.jit
def _attend(
    q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty,
    o_ptr, e_ptr, o_offset, o_stride, e_offset, row, width, queries, keys, factor,
    w: gl.constexpr, ENTROPY: gl.constexpr,
):  # fmt: skip
    """Warpgroup w: online softmax of its 64 rows over all keys, logits in base 2."""
    STAGES: gl.constexpr = k_smem.shape[0]
    BLOCK_K: gl.constexpr = k_smem.shape[3]
    BLOCK_D: gl.constexpr = k_smem.shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_K, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)
    dtype: gl.constexpr = o_ptr.dtype.element_ty
    blocks = gl.cdiv(keys, BLOCK_K)
    zero = gl.zeros([ROWS, BLOCK_K], gl.float32, s_layout)

    mbarrier.wait(q_full.index(w), 0)
    q = q_smem.index(w).reshape([ROWS, BLOCK_D])
    mbarrier.wait(k_full.index(0), 0)
    s = warpgroup_mma(q, k_smem.index(0).reshape([BLOCK_K, BLOCK_D]).permute((1, 0)), zero, use_acc=False)
    mbarrier.arrive(k_empty.index(0))
    # a key outside counts nothing; finite stand-ins of -inf spare the NaN of 0 * -inf
    seen = ((blocks - 1) * BLOCK_K + gl.arange(0, BLOCK_K, gl.SliceLayout(0, s_layout)) < keys)[None, :]
    m = gl.max(gl.where(seen, s, -3.0e38), 1) * factor
    x = gl.where(seen, s * factor - m[:, None], -1.0e30)
    p = gl.exp2(x)
    l = _row_sum(p)
    e = _row_sum(p * x)
    part: gl.constexpr = l.type.layout
    p_half = gl.convert_layout(p.to(dtype), p_layout)
    o = gl.zeros([ROWS, BLOCK_D], gl.float32, o_layout)
    alpha = gl.full([ROWS], 1.0, gl.float32, gl.SliceLayout(1, s_layout))
    mbarrier.wait(k_full.index(1 % STAGES), (1 // STAGES) & 1, pred=blocks > 1)

    for j in range(1, blocks):
        stage = j % STAGES
        before = (j - 1) % STAGES
        after = (j + 1) % STAGES
        k = k_smem.index(stage).reshape([BLOCK_K, BLOCK_D]).permute((1, 0))
        s_token = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
        # nothing is outstanding but this product; the wait only keeps the scaling behind it, where it is free
        o = warpgroup_mma_wait(1, [o]) * _spread(alpha, o_layout)
        mbarrier.wait(v_full.index(before), ((j - 1) // STAGES) & 1)
        o_token = warpgroup_mma(p_half, v_smem.index(before).reshape([BLOCK_K, BLOCK_D]), o, is_async=True)
        s = warpgroup_mma_wait(1, [s_token])
        mbarrier.arrive(k_empty.index(stage))
        m_next = gl.maximum(m, gl.max(s, 1) * factor)
        x = s * factor - m_next[:, None]
        p = gl.exp2(x)
        shift = m - m_next
        alpha = gl.exp2(shift)
        if ENTROPY:
            e = _spread(alpha, part) * (e + l * _spread(shift, part)) + _row_sum(p * x)
        l = _spread(alpha, part) * l + _row_sum(p)
        m = m_next
        p_next = p.to(dtype)
        # this wait also ends a basic block: without it the assembler hoists the next one above the exponentials
        mbarrier.wait(k_full.index(after), ((j + 1) // STAGES) & 1, pred=j + 1 < blocks)
        o, p_half = warpgroup_mma_wait(0, [o_token, p_half])
        mbarrier.arrive(v_empty.index(before))
        p_half = gl.convert_layout(p_next, p_layout)

    o = o * _spread(alpha, o_layout)
    last = (blocks - 1) % STAGES
    mbarrier.wait(v_full.index(last), ((blocks - 1) // STAGES) & 1)
    o = warpgroup_mma(p_half, v_smem.index(last).reshape([BLOCK_K, BLOCK_D]), o)
    l = gl.convert_layout(gl.sum(l, 1), gl.SliceLayout(1, o_layout))
    e = gl.convert_layout(gl.sum(e, 1), gl.SliceLayout(1, o_layout))
    rows = row + w * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, o_layout))
    depth = gl.arange(0, BLOCK_D, gl.SliceLayout(0, o_layout))
    o_ptrs = o_ptr + o_offset + rows.to(gl.int64)[:, None] * o_stride + depth[None, :]
    gl.store(o_ptrs, (o * (1.0 / l)[:, None]).to(dtype), mask=(rows < queries)[:, None] & (depth < width)[None, :])
    if ENTROPY:
        entropy = 0.6931471805599453 * (gl.log2(l) - e / l)  # nats
        # rounding may leave -1e-8; a comparison keeps NaN, a maximum would hide it
        gl.store(e_ptr + e_offset + rows, gl.where(entropy < 0.0, 0.0, entropy), mask=rows < queries)


@gluon.jit
def fae_forward_hopper(
    q_desc, k_desc, v_desc, o_stride_b, o_stride_h, o_stride_n, heads, width, queries, keys, o_ptr, e_ptr, factor,
    STAGES: gl.constexpr, ENTROPY: gl.constexpr,
):  # fmt: skip
    """Program (i, b * heads + h) writes rows i * 128 ... of o `[B, H, Nq, D]` and e `[B, H, Nq]`; four warps.

    The descriptors are of `[B, H, N, D]` tensors in blocks of `[1, 1, 64, BLOCK_D]` (queries) and `[1, 1, BLOCK_K, BLOCK_D]`.
    `factor` is scale * log2(e), at least 0.
    """
    BLOCK_K: gl.constexpr = k_desc.block_shape[2]
    BLOCK_D: gl.constexpr = k_desc.block_shape[3]
    dtype: gl.constexpr = o_ptr.dtype.element_ty
    q_smem = gl.allocate_shared_memory(dtype, [GROUPS, 1, 1, ROWS, BLOCK_D], q_desc.layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_K, BLOCK_D], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_K, BLOCK_D], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(GROUPS):
        mbarrier.init(q_full.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=GROUPS)
    row = gl.program_id(0) * (ROWS * GROUPS)
    line = gl.program_id(1)
    b = line // heads
    h = line % heads
    o_offset = b.to(gl.int64) * o_stride_b + h.to(gl.int64) * o_stride_h
    e_offset = line.to(gl.int64) * queries
    gl.warp_specialize(
        [
            (_attend, (q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, o_ptr, e_ptr, o_offset, o_stride_n,
                       e_offset, row, width, queries, keys, factor, 0, ENTROPY)),
            (_attend, (q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, o_ptr, e_ptr, o_offset, o_stride_n,
                       e_offset, row, width, queries, keys, factor, 1, ENTROPY)),
            (_load, (q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty,
                     b, h, row, keys)),
        ],
        [4, 1],  # warps of the workers beside the first four
        [240, 24],  # their registers a thread
    )  # fmt: skip
