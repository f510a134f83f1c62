"""Triton kernels: distances of tokens to their mean, and a residual stream plus a branch that only some tokens ran."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def distance_kernel(x_ptr, mean_ptr, tokens, channels, out_ptr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """Program i: squared distance of row i of `[R * N, C]` to its batch row's mean `[R, C]` fp32."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    x = tl.load(x_ptr + row * channels + column, mask=inside, other=0.0).to(tl.float32)
    away = x - tl.load(mean_ptr + row // tokens * channels + column, mask=inside, other=0.0)
    tl.store(out_ptr + row, tl.sum(away * away, 0))


@triton.jit
def mean_kernel(sums_ptr, parts, tokens, channels, mean_ptr, PARTS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """Program (c, r): columns c * BLOCK ... of the mean `[R, C]` from partial sums `[R, parts, C]`, in order."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    r = tl.program_id(1).to(tl.int64)
    inside = column < channels
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        place = (r * parts + part)[:, None] * channels + column[None, :]
        total += tl.sum(tl.load(sums_ptr + place, mask=(part < parts)[:, None] & inside[None, :], other=0.0), 0)
    tl.store(mean_ptr + r * channels + column, total / tokens, mask=inside)


@triton.jit
def add_restored_kernel(
    x_ptr, part_ptr, gate_ptr, gate_stride, slot_ptr, cached_ptr, cached_stride_r, cached_stride_n, count, channels,
    out_ptr, sums_ptr,
    SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, GATE: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (b, c, r): tokens b * TOKENS ..., columns c * BLOCK ... of `[R, h' * w', C]`, and the sum of its columns.

    A token's update comes from its place among the kept ones, after the gate, or from its window of the cached scale. Sizes
    are constants: every thread finds the windows of its tokens, and division by a number known only then is a loop.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = tl.program_id(2).to(tl.int64)
    tokens = TARGET_H * TARGET_W
    there, inside = token < tokens, column < channels
    slot = tl.load(slot_ptr + r * tokens + token, mask=there, other=-1)
    ran = slot >= 0
    # [TOKENS, BLOCK]
    part_place = (r * count + slot)[:, None] * channels + column[None, :]
    update = tl.load(part_ptr + part_place, mask=ran[:, None] & inside[None, :], other=0.0).to(tl.float32)
    if GATE:
        update = update * tl.load(gate_ptr + r * gate_stride + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    row, line = token // TARGET_W, token % TARGET_W
    top, bottom = row * SOURCE_H // TARGET_H, ((row + 1) * SOURCE_H + TARGET_H - 1) // TARGET_H
    left, right = line * SOURCE_W // TARGET_W, ((line + 1) * SOURCE_W + TARGET_W - 1) // TARGET_W
    cached = tl.zeros([TOKENS, BLOCK], tl.float32)
    for i in tl.static_range(WINDOW_H):
        for j in tl.static_range(WINDOW_W):
            seen = there & (ran == 0) & (top + i < bottom) & (left + j < right)
            source = ((top + i) * SOURCE_W + left + j).to(tl.int64)
            place = r * cached_stride_r + source[:, None] * cached_stride_n + column[None, :]
            cached += tl.load(cached_ptr + place, mask=seen[:, None] & inside[None, :], other=0.0).to(tl.float32)
    # a division a token, not one an element
    update += cached * (1.0 / ((bottom - top) * (right - left)).to(tl.float32))[:, None]
    place = (r * tokens + token)[:, None] * channels + column[None, :]
    whole = there[:, None] & inside[None, :]
    stream = (tl.load(x_ptr + place, mask=whole, other=0.0).to(tl.float32) + update).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place, stream, mask=whole)
    sums = tl.sum(tl.where(whole, stream.to(tl.float32), 0.0), 0)
    tl.store(sums_ptr + (r * tl.num_programs(0) + tl.program_id(0)) * channels + column, sums, mask=inside)
