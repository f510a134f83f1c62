"""Triton kernels: one program a token, all of its channels at once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def distance_kernel(x_ptr, mean_ptr, tokens, channels, out_ptr, BLOCK: tl.constexpr):
    """Program i: squared distance of row i of `[R * N, C]` to its batch row's mean `[R, C]` fp32."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    x = tl.load(x_ptr + row * channels + column, mask=inside, other=0.0).to(tl.float32)
    away = x - tl.load(mean_ptr + row // tokens * channels + column, mask=inside, other=0.0)
    tl.store(out_ptr + row, tl.sum(away * away, 0))


@triton.jit
def restore_kernel(
    part_ptr, index_ptr, cached_ptr, cached_stride_r, cached_stride_n, count, channels,
    source_h, source_w, target_h, target_w, out_ptr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (t, r): token t of `[R, h' * w', C]`, from its place among the kept ones or from the cached window."""
    token = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    # the kept ones are sorted: halving finds the first that is not before this token
    low = 0
    high = count
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        value = tl.load(index_ptr + r * count + tl.minimum(middle, count - 1))
        before = (value < token) & (low < high)
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    found = tl.load(index_ptr + r * count + tl.minimum(low, count - 1))
    ran = (low < count) & (found == token)
    out_place = out_ptr + (r * target_h * target_w + token) * channels + column
    if ran:
        y = tl.load(part_ptr + (r * count + low) * channels + column, mask=inside, other=0.0)
        tl.store(out_place, y, mask=inside)
    else:
        row = token // target_w
        line = token % target_w
        top = row * source_h // target_h
        bottom = ((row + 1) * source_h + target_h - 1) // target_h
        left = line * source_w // target_w
        right = ((line + 1) * source_w + target_w - 1) // target_w
        total = tl.zeros([BLOCK], tl.float32)
        for i in range(top, bottom):
            for j in range(left, right):
                place = r * cached_stride_r + (i * source_w + j).to(tl.int64) * cached_stride_n + column
                total += tl.load(cached_ptr + place, mask=inside, other=0.0).to(tl.float32)
        mean = total / ((bottom - top) * (right - left)).to(tl.float32)
        tl.store(out_place, mean.to(out_ptr.dtype.element_ty), mask=inside)
