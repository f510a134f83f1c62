"""Triton kernels: tokens of an earlier scale enlarged, and a residual stream after a layer that only some tokens ran.

Sizes are constants: every thread finds the cells of its tokens, and division by a number known only at run time is a loop.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _between(at, SOURCE: tl.constexpr, TARGET: tl.constexpr):
    """The two cells that a position of the larger grid lies between, and the share of the second."""
    place = tl.maximum((at.to(tl.float32) + 0.5) * (SOURCE / TARGET) - 0.5, 0.0)
    low = place.to(tl.int32)
    return low, tl.minimum(low + 1, SOURCE - 1), place - low.to(tl.float32)


@triton.jit
def _cells(ptr, row, line, stride, column, mask, WIDTH: tl.constexpr):
    """`[TOKENS, BLOCK]` of the earlier scale, fp32."""
    place = (row * WIDTH + line).to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(ptr + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _enlarged(
    ptr, stride, token, column, mask,
    SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
):  # fmt: skip
    """`[TOKENS, BLOCK]` fp32: what tokens of the larger scale take over from one row's map at `ptr`."""
    top, bottom, down = _between(token // TARGET_W, SOURCE_H, TARGET_H)
    left, right, along = _between(token % TARGET_W, SOURCE_W, TARGET_W)
    along, down = along[:, None], down[:, None]
    upper = _cells(ptr, top, left, stride, column, mask, SOURCE_W) * (1 - along)
    upper += _cells(ptr, top, right, stride, column, mask, SOURCE_W) * along
    lower = _cells(ptr, bottom, left, stride, column, mask, SOURCE_W) * (1 - along)
    lower += _cells(ptr, bottom, right, stride, column, mask, SOURCE_W) * along
    return upper * (1 - down) + lower * down


@triton.jit
def enlarge_kernel(
    cached_ptr, cached_stride_r, cached_stride_n, index_ptr, onto_ptr, count, channels, out_ptr,
    SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
    INDEX: tl.constexpr, ONTO: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (b, c, r): wanted tokens b * TOKENS ..., columns c * BLOCK ... of `[R, n, C]`."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = tl.program_id(2).to(tl.int64)
    mask = (at < count)[:, None] & (column < channels)[None, :]
    token = tl.load(index_ptr + r * count + at, mask=at < count, other=0).to(tl.int32) if INDEX else at
    row = cached_ptr + r * cached_stride_r
    found = _enlarged(row, cached_stride_n, token, column, mask, SOURCE_H, SOURCE_W, TARGET_H, TARGET_W)
    place = (r * count + at)[:, None] * channels + column[None, :]
    if ONTO:
        found += tl.load(onto_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, found.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def put_back_kernel(
    x_ptr, part_ptr, slot_ptr, cached_ptr, cached_stride_r, cached_stride_n, count, channels, out_ptr,
    SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (b, c, r): tokens b * TOKENS ..., columns c * BLOCK ... of `[R, h' * w', C]`.

    A token that ran costs its part alone: neither the stream nor the earlier scale is read for it.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = tl.program_id(2).to(tl.int64)
    there, inside = token < TARGET_H * TARGET_W, (column < channels)[None, :]
    slot = tl.load(slot_ptr + r * (TARGET_H * TARGET_W) + token, mask=there, other=-1)
    ran = (slot >= 0)[:, None] & inside
    still = (there & (slot < 0))[:, None] & inside
    place = (r * (TARGET_H * TARGET_W) + token)[:, None] * channels + column[None, :]
    part = tl.load(part_ptr + (r * count + slot)[:, None] * channels + column[None, :], mask=ran, other=0.0)
    stream = tl.load(x_ptr + place, mask=still, other=0.0).to(tl.float32)
    row = cached_ptr + r * cached_stride_r
    stream += _enlarged(row, cached_stride_n, token, column, still, SOURCE_H, SOURCE_W, TARGET_H, TARGET_W)
    whole = tl.where(ran, part, stream.to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + place, whole, mask=there[:, None] & inside)
