"""Triton kernels: statistics of pixel blocks (and the sum), their merging, then the norm; two passes over the image in all."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def statistics_kernel(
    x_ptr, update_ptr, bias_ptr, pixels, share, stream_ptr, mean_ptr, square_ptr,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, UPDATE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Program (i, b): mean and sum of squared distances to it of every channel over pixels i * share ... of image b."""
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    inside = channel < C
    first = part * share
    stop = tl.minimum(first + share, pixels)
    # distances are summed from the share's first pixel: squares of a large mean would drown them
    start_place = (image * pixels + first.to(tl.int64)) * C + channel
    pivot = tl.load(x_ptr + start_place, mask=inside, other=0.0).to(tl.float32)
    if UPDATE:
        pivot += tl.load(update_ptr + start_place, mask=inside, other=0.0).to(tl.float32)
    # summed over the block only after the loop: threads of several warps meet once
    totals = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    for start in range(first, stop, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        here = (pixel < stop)[:, None] & inside[None, :]
        place = (image * pixels + pixel.to(tl.int64))[:, None] * C + channel[None, :]
        value = tl.load(x_ptr + place, mask=here, other=0.0).to(tl.float32)  # [BLOCK_P, BLOCK_C]
        if UPDATE:
            value += tl.load(update_ptr + place, mask=here, other=0.0).to(tl.float32)
        if BIAS:
            value = tl.where(here, value + bias, 0.0)
        if UPDATE:
            rounded = value.to(stream_ptr.dtype.element_ty)
            tl.store(stream_ptr + place, rounded, mask=here)
            value = rounded.to(tl.float32)
        value = tl.where(here, value - pivot[None, :], 0.0)
        totals += value
        squares += value * value
    total = tl.sum(totals, 0)
    square = tl.sum(squares, 0)
    count = (stop - first).to(tl.float32)
    away = total / count
    line = (image * tl.num_programs(0) + part) * C + channel
    tl.store(mean_ptr + line, pivot + away, mask=inside)
    tl.store(square_ptr + line, tl.maximum(square - total * away, 0.0), mask=inside)


@triton.jit
def merge_kernel(
    mean_ptr, square_ptr, weight_ptr, shift_ptr, bias_ptr, pixels, share, parts, eps, factor_ptr, offset_ptr,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Program (g, b): the shares of group g to factor and offset of its WIDTH channels, `[B, C]` fp32."""
    group = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_W)
    channel = group * WIDTH + lane
    wide = lane < WIDTH
    total = tl.zeros([BLOCK_S, BLOCK_W], tl.float32)
    for start in range(0, parts, BLOCK_S):
        part = start + tl.arange(0, BLOCK_S)
        here = (part < parts)[:, None] & wide[None, :]
        count = tl.minimum(share, pixels - part * share).to(tl.float32)[:, None]
        line = (image * parts + part)[:, None] * C + channel[None, :]
        total += tl.where(here, tl.load(mean_ptr + line, mask=here, other=0.0) * count, 0.0)
    size = (pixels * WIDTH).to(tl.float32)
    mean = tl.sum(tl.sum(total, 1), 0) / size
    spread = tl.zeros([BLOCK_S, BLOCK_W], tl.float32)
    for start in range(0, parts, BLOCK_S):
        part = start + tl.arange(0, BLOCK_S)
        here = (part < parts)[:, None] & wide[None, :]
        count = tl.minimum(share, pixels - part * share).to(tl.float32)[:, None]
        line = (image * parts + part)[:, None] * C + channel[None, :]
        away = tl.load(mean_ptr + line, mask=here, other=0.0) - mean
        spread += tl.where(here, tl.load(square_ptr + line, mask=here, other=0.0) + count * away * away, 0.0)
    variance = tl.sum(tl.sum(spread, 1), 0) / size
    factor = tl.load(weight_ptr + channel, mask=wide, other=0.0).to(tl.float32) * tl.rsqrt(variance + eps)
    offset = tl.load(shift_ptr + channel, mask=wide, other=0.0).to(tl.float32) - mean * factor
    if BIAS:
        offset += factor * tl.load(bias_ptr + channel, mask=wide, other=0.0).to(tl.float32)
    tl.store(factor_ptr + image * C + channel, factor, mask=wide)
    tl.store(offset_ptr + image * C + channel, offset, mask=wide)


@triton.jit
def apply_kernel(
    x_ptr, factor_ptr, offset_ptr, pixels, out_ptr,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Program (i, b): silu(x * factor + offset) of BLOCK_P pixels of image b."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    inside = channel < C
    here = (pixel < pixels)[:, None] & inside[None, :]
    place = (image * pixels + pixel.to(tl.int64))[:, None] * C + channel[None, :]
    factor = tl.load(factor_ptr + image * C + channel, mask=inside, other=0.0)[None, :]
    offset = tl.load(offset_ptr + image * C + channel, mask=inside, other=0.0)[None, :]
    y = tl.load(x_ptr + place, mask=here, other=0.0).to(tl.float32) * factor + offset
    tl.store(out_ptr + place, (y / (1.0 + tl.exp(-y))).to(out_ptr.dtype.element_ty), mask=here)
