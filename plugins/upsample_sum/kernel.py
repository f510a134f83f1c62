"""Triton kernel: one program a block of pixels of a line; each is read once and written four times."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def upsample_sum_kernel(
    x_ptr, update_ptr, bias_ptr, pixels, width, out_ptr, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """Program i: pixels i * BLOCK_P ... of all images, in channels-last memory."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    here = (pixel < pixels)[:, None] & (channel < C)[None, :]
    place = pixel[:, None] * C + channel[None, :]
    total = tl.load(x_ptr + place, mask=here, other=0.0).to(tl.float32)  # [BLOCK_P, BLOCK_C]
    total += tl.load(update_ptr + place, mask=here, other=0.0).to(tl.float32)
    total += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    total = total.to(out_ptr.dtype.element_ty)
    # lines of all images follow each other: line l becomes lines 2 l and 2 l + 1
    line = pixel // width
    corner = (line * 2 * (2 * width) + (pixel % width) * 2)[:, None] * C + channel[None, :]
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            tl.store(out_ptr + corner + (down * 2 * width + right) * C, total, mask=here)
