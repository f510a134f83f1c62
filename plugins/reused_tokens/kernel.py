"""Triton kernel: a residual stream after a layer that only some tokens ran."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _places(at, SOURCE: tl.constexpr, TARGET: tl.constexpr):
    """The two cells that a position of the larger grid lies between, and the share of the second."""
    place = tl.maximum((at.to(tl.float32) + 0.5) * (SOURCE / TARGET) - 0.5, 0.0)
    low = place.to(tl.int32)
    return low, tl.minimum(low + 1, SOURCE - 1), place - low.to(tl.float32)


@triton.jit
def _cells(ptr, r, row, line, stride_r, stride_n, column, mask, WIDTH: tl.constexpr):
    """`[TOKENS, BLOCK]` of the earlier scale, fp32."""
    place = r * stride_r + (row * WIDTH + line).to(tl.int64)[:, None] * stride_n + column[None, :]
    return tl.load(ptr + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def put_back_kernel(
    x_ptr, part_ptr, slot_ptr, cached_ptr, cached_stride_r, cached_stride_n, count, channels, out_ptr,
    SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (b, c, r): tokens b * TOKENS ..., columns c * BLOCK ... of `[R, h' * w', C]`.

    A token that ran costs its part alone: neither the stream nor the earlier scale is read for it. Sizes are constants, since
    division by a number known only at run time is a loop.
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
    top, bottom, down = _places(token // TARGET_W, SOURCE_H, TARGET_H)
    left, right, along = _places(token % TARGET_W, SOURCE_W, TARGET_W)
    upper = _cells(cached_ptr, r, top, left, cached_stride_r, cached_stride_n, column, still, SOURCE_W) * (1 - along)[:, None]
    upper += _cells(cached_ptr, r, top, right, cached_stride_r, cached_stride_n, column, still, SOURCE_W) * along[:, None]
    lower = (
        _cells(cached_ptr, r, bottom, left, cached_stride_r, cached_stride_n, column, still, SOURCE_W) * (1 - along)[:, None]
    )
    lower += _cells(cached_ptr, r, bottom, right, cached_stride_r, cached_stride_n, column, still, SOURCE_W) * along[:, None]
    stream += upper * (1 - down)[:, None] + lower * down[:, None]
    whole = tl.where(ran, part, stream.to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + place, whole, mask=there[:, None] & inside)
