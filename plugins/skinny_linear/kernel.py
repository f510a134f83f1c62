"""Gluon kernel for Hopper: weights by TMA before the wait for the kernel ahead, rows after it; outputs are the wgmma's rows."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

FEATURES = gl.constexpr(64)  # outputs of a program: the height of a wgmma


@gluon.jit
def _fetch(desc, row, chunk, first, chunks, full, smem, STAGES: gl.constexpr):
    """Begin to load a chunk into its stage, if there is one."""
    stage = chunk % STAGES
    there = chunk < chunks
    mbarrier.expect(full.index(stage), desc.block_type.nbytes, pred=there)
    place = [row, first + chunk * desc.block_shape[1]]
    tma.async_copy_global_to_shared(desc, place, full.index(stage), smem.index(stage), pred=there)


@gluon.jit
def _gelu(x):
    """tanh GELU: 0.5 (1 + tanh y) = 1 - 1 / (1 + e^2y)."""
    y = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * (1.0 - 1.0 / (1.0 + gl.exp2(y * 2.8853900817779268)))


@gluon.jit
def skinny_linear_kernel(
    w_desc, x_desc, rows, features, chunks, bias_ptr, out_ptr,
    W_STAGES: gl.constexpr, X_STAGES: gl.constexpr, BIAS: gl.constexpr, GELU: gl.constexpr,
):  # fmt: skip
    """Program (i, s): outputs i * 64 ... of all rows from share s of the channels, into `[S, M, F]`; four warps.

    The descriptors are of `[F, C]` in blocks of `[64, 128]` and of `[M, C]` in blocks of `[rows of a block, 128]`; `chunks`
    counts the blocks of a share. The bias belongs to share 0.
    """
    ROWS: gl.constexpr = x_desc.block_shape[0]
    CHANNELS: gl.constexpr = x_desc.block_shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, ROWS, 16])
    # a warp stores the 64 outputs of a row side by side
    out_layout: gl.constexpr = gl.BlockedLayout([2, 1], [32, 1], [1, 4], [0, 1])
    w_smem = gl.allocate_shared_memory(w_desc.dtype, [W_STAGES, FEATURES, CHANNELS], w_desc.layout)
    x_smem = gl.allocate_shared_memory(x_desc.dtype, [X_STAGES, ROWS, CHANNELS], x_desc.layout)
    w_full = gl.allocate_shared_memory(gl.int64, [W_STAGES, 1], mbarrier.MBarrierLayout())
    x_full = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(W_STAGES):
        mbarrier.init(w_full.index(i), count=1)
    for i in gl.static_range(X_STAGES):
        mbarrier.init(x_full.index(i), count=1)
    start = gl.program_id(0) * FEATURES
    share = gl.program_id(1)
    first = share * chunks * CHANNELS
    gl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for i in gl.static_range(W_STAGES):
        _fetch(w_desc, start, i, first, chunks, w_full, w_smem, W_STAGES)
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for i in gl.static_range(X_STAGES):
        _fetch(x_desc, 0, i, first, chunks, x_full, x_smem, X_STAGES)
    sums = gl.zeros([FEATURES, ROWS], gl.float32, layout)
    for i in range(chunks):
        w_stage = i % W_STAGES
        x_stage = i % X_STAGES
        mbarrier.wait(w_full.index(w_stage), (i // W_STAGES) & 1)
        mbarrier.wait(x_full.index(x_stage), (i // X_STAGES) & 1)
        token = warpgroup_mma(w_smem.index(w_stage), x_smem.index(x_stage).permute((1, 0)), sums, is_async=True)
        # the product of the chunk before has ended, so its stages are free
        sums = warpgroup_mma_wait(1, [token])
        if i > 0:
            _fetch(x_desc, 0, i - 1 + X_STAGES, first, chunks, x_full, x_smem, X_STAGES)
            _fetch(w_desc, start, i - 1 + W_STAGES, first, chunks, w_full, w_smem, W_STAGES)
    sums = warpgroup_mma_wait(0, [sums])
    sums = gl.convert_layout(sums, out_layout)
    feature = start + gl.arange(0, FEATURES, gl.SliceLayout(1, out_layout))
    row = gl.arange(0, ROWS, gl.SliceLayout(0, out_layout))
    if BIAS:
        bias = gl.load(bias_ptr + feature, mask=(feature < features) & (share == 0), other=0.0)
        sums = sums + bias.to(gl.float32)[:, None]
    if GELU:
        sums = _gelu(sums)
    place = (share * rows + row)[None, :] * features + feature[:, None]
    inside = (row < rows)[None, :] & (feature < features)[:, None]
    gl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=inside)
