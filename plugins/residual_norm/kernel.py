"""Triton kernel: one program a row of the stream, held in registers between the sum and the norm."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def residual_norm_kernel(
    x_ptr, update_ptr, gate_ptr, scale_ptr, shift_ptr, gate_stride, scale_stride, shift_stride, tokens, channels, part_stride,
    stream_ptr, normed_ptr,
    PARTS: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr, ONE: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program i writes row i of `[R * N, C]`; gate, scale and shift belong to its batch row i // N.

    The update is the sum of `PARTS` tensors, none where that is 0.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    batch = (row // tokens).to(tl.int64)
    offset = row.to(tl.int64) * channels
    columns = tl.arange(0, BLOCK)
    inside = columns < channels
    x = tl.load(x_ptr + offset + columns, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    if PARTS > 0:
        update = tl.load(update_ptr + offset + columns, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            place = update_ptr + part * part_stride + offset + columns
            update += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            update = update * tl.load(gate_ptr + batch * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
        x = x + update
        tl.store(stream_ptr + offset + columns, x.to(stream_ptr.dtype.element_ty), mask=inside)
    if NORM:
        mean = tl.sum(x, 0) / channels
        centred = tl.where(inside, x - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, 0) / channels + EPS)
        scale = tl.load(scale_ptr + batch * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + batch * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
        if ONE:
            scale = scale + 1.0
        normed = centred * inverse * scale + shift
        tl.store(normed_ptr + offset + columns, normed.to(normed_ptr.dtype.element_ty), mask=inside)
