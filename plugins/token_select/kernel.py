"""Triton kernels: selection, one program a row with the whole row in registers; row moves, one tile of rows a program.

Selection looks for a bound between the k smallest scores and the others, two bits of the key a round. A round compares every
key with three thresholds and adds the three counts, packed into one int64, in one block-wide sum. Counted in instructions for
N = 4096 on one SM, not measured, that beats one bit a round (twice the block-wide sums, whose latency rules), three bits (seven
comparisons a key, whose throughput rules) and `tl.histogram` (a ballot for every bit of every key, a popcount for every bin).
The search stops early when a threshold has exactly k keys below it: after 7 to 12 of 16 rounds for random fp32 scores.
Nothing is atomic and nothing depends on the order of the warps.
"""

from __future__ import annotations

import triton
import triton.language as tl

# NaN and the padding of a row; padding comes after every score of the row, so a tie never takes it
GREATEST = tl.constexpr(0x7FFFFFFF)
# bits of +inf: a greater magnitude is NaN
INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def _keys(x, inside, LARGEST: tl.constexpr, DROP: tl.constexpr):
    """int32 keys in the order of the fp32 scores; reversed where the largest are asked for."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # a negative float falls as its magnitude grows; one key for both zeros, one for every NaN
    key = tl.where(bits < 0, ~magnitude, magnitude)
    key = tl.where(magnitude == 0, 0, key)
    key = tl.where(magnitude > INFINITE, GREATEST, key)
    if LARGEST:
        key = ~key
    return tl.where(inside, key, GREATEST) >> DROP


@triton.jit(do_not_specialize=["k"])
def select_kernel(
    scores_ptr, scores_stride_r, n, k,
    out_ptr, slot_ptr,
    LARGEST: tl.constexpr, DROP: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program r writes the k chosen columns of row r, ascending, to out `[R, k]` int64; N <= BLOCK <= 16,384.

    With `SLOTS` also slot `[R, N]` int32: the place of a column among the chosen ones, or -1.

    `DROP` is the even number of low key bits that the scores' dtype leaves constant.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    x = tl.load(scores_ptr + row * scores_stride_r + columns, mask=columns < n, other=0.0).to(tl.float32)
    key = _keys(x, columns < n, LARGEST, DROP)  # [BLOCK]
    # always: `below` keys are under `bound`, below <= k, and more than k keys are under bound + 4 * step (or there is no such)
    bound = -(1 << (31 - DROP))
    below = 0
    step = 1 << (30 - DROP)
    while (step != 0) & (below != k):
        low = bound + step
        mid = low + step
        high = mid + step
        # a count is at most 16,384, so 16 bits each
        counts = (key < low).to(tl.int64) + ((key < mid).to(tl.int64) << 16) + ((key < high).to(tl.int64) << 32)
        counts = tl.sum(counts, 0)
        under_low = (counts & 0xFFFF).to(tl.int32)
        under_mid = ((counts >> 16) & 0xFFFF).to(tl.int32)
        under_high = (counts >> 32).to(tl.int32)
        bound = tl.where(under_high <= k, high, tl.where(under_mid <= k, mid, tl.where(under_low <= k, low, bound)))
        below = tl.where(
            under_high <= k, under_high, tl.where(under_mid <= k, under_mid, tl.where(under_low <= k, under_low, below))
        )
        step = step >> 2
    # the first `missing` keys equal to the bound fill up; none when the search stopped early
    missing = k - below
    under = key < bound
    equal = key == bound
    seen = tl.cumsum(under.to(tl.int32) + (equal.to(tl.int32) << 16), 0)
    equal_seen = seen >> 16
    taken = under | (equal & (equal_seen <= missing))
    # widened only in the address: so 4 bytes a key change layout before the store, not 8, and N = 16,384 does not spill
    slot = tl.where(taken, (seen & 0xFFFF) + tl.minimum(equal_seen, missing) - 1, -1)
    tl.store(out_ptr + row * k + slot.to(tl.int64), columns.to(tl.int64), mask=slot >= 0)
    if SLOTS:
        tl.store(slot_ptr + row * n + columns, slot, mask=columns < n)


@triton.jit(do_not_specialize=["n", "count"])
def gather_kernel(
    x_ptr, x_stride_b, x_stride_n, index_ptr, index_stride_b, n, count, width,
    out_ptr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (i, j, b) fills rows i * BLOCK_N ... and channels j * BLOCK_C ... of out `[B, count, width]`."""
    b = tl.program_id(2).to(tl.int64)
    slots = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (slots < count)[:, None] & (depth < width)[None, :]
    index = tl.load(index_ptr + b * index_stride_b + slots, mask=slots < count, other=-1).to(tl.int64)
    # an index outside reads nothing: a caller's mistake must not fault the whole process
    valid = (index >= 0) & (index < n)
    x_ptrs = x_ptr + b * x_stride_b + index[:, None] * x_stride_n + depth[None, :]
    rows = tl.load(x_ptrs, mask=inside & valid[:, None], other=0)  # [BLOCK_N, BLOCK_C]
    tl.store(out_ptr + (b * count + slots)[:, None] * width + depth[None, :], rows, mask=inside)


@triton.jit(do_not_specialize=["n", "count"])
def invert_kernel(index_ptr, index_stride_b, n, count, slot_ptr, BLOCK: tl.constexpr):
    """Program b writes slot `[B, n]` int32: which of the `count` indices names a row, or -1."""
    b = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    for start in range(0, n, BLOCK):
        tl.store(slot_ptr + b * n + start + lane, tl.full([BLOCK], -1, tl.int32), mask=start + lane < n)
    # every -1 must lie in memory before another thread writes over it
    tl.debug_barrier()
    for start in range(0, count, BLOCK):
        index = tl.load(index_ptr + b * index_stride_b + start + lane, mask=start + lane < count, other=-1).to(tl.int64)
        tl.store(slot_ptr + b * n + index, start + lane, mask=(index >= 0) & (index < n))


@triton.jit(do_not_specialize=["n"])
def merge_kernel(
    base_ptr, base_stride_b, base_stride_n, rows_ptr, rows_stride_b, rows_stride_n, slot_ptr, n, width,
    out_ptr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (i, j, b) fills a tile of out `[B, n, width]`, each row from `rows` or from `base`: one pass, no clone before."""
    b = tl.program_id(2).to(tl.int64)
    places = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (places < n)[:, None] & (depth < width)[None, :]
    slot = tl.load(slot_ptr + b * n + places, mask=places < n, other=-1).to(tl.int64)
    new = (slot >= 0)[:, None]
    base_ptrs = base_ptr + b * base_stride_b + places[:, None] * base_stride_n + depth[None, :]
    rows_ptrs = rows_ptr + b * rows_stride_b + slot[:, None] * rows_stride_n + depth[None, :]
    kept = tl.load(base_ptrs, mask=inside & (slot < 0)[:, None], other=0)  # [BLOCK_N, BLOCK_C]
    put = tl.load(rows_ptrs, mask=inside & new, other=0)
    tl.store(out_ptr + (b * n + places)[:, None] * width + depth[None, :], tl.where(new, put, kept), mask=inside)
