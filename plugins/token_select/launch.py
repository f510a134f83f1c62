"""Block sizes, warps and launches of the Triton kernels. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import reference
from .kernel import gather_kernel, invert_kernel, merge_kernel, select_kernel

# a row must fit into the registers of one block: 1,024 threads with 16 keys each
MAX_SCORES = 16_384
# low bits that are constant in the fp32 keys of each dtype, rounded down to even
_CONSTANT_BITS = {torch.float32: 0, torch.float16: 12, torch.bfloat16: 16}
# a copy does not look at its values: any dtype travels as a word of its size
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# two loads of 16 bytes for each of 128 threads
_TILE_BYTES = 4096
_INVERT_BLOCK = 4096


def select(scores: Tensor, k: int, largest: bool) -> Tensor:
    """As `reference.select`; which also serves rows of more than 16,384 scores, and fp64."""
    if not _suits(scores):
        return reference.select(scores, k, largest)
    return _select(scores, k, largest, None)


def select_with_slots(scores: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor]:
    """As `select_with_slots` of the package."""
    if not _suits(scores):
        index = reference.select(scores, k, largest)
        return index, reference.slots(index, scores.shape[1])
    slots = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
    return _select(scores, k, largest, slots), slots


def _suits(scores: Tensor) -> bool:
    return scores.shape[1] <= MAX_SCORES and scores.dtype in _CONSTANT_BITS


def _select(scores: Tensor, k: int, largest: bool, slots: Tensor | None) -> Tensor:
    scores, n = _dense(scores), scores.shape[1]
    out = torch.empty(scores.shape[0], k, dtype=torch.int64, device=scores.device)
    if out.numel() == 0:
        return out
    block = max(128, triton.next_power_of_2(n))
    with torch.cuda.device_of(scores):
        select_kernel[(scores.shape[0],)](
            scores, scores.stride(0), n, k, out, out if slots is None else slots,
            LARGEST=largest, DROP=_CONSTANT_BITS[scores.dtype], SLOTS=slots is not None, BLOCK=block,
            num_warps=max(4, block // 512),
        )  # fmt: skip
    return out


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """As `reference.gather_rows`, but an index outside 0..N-1 gives a row of zeros."""
    (batch, n, width), count = x.shape, indices.shape[1]
    if x.itemsize not in _WORDS:
        return reference.gather_rows(x, indices)
    out = torch.empty(batch, count, width, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    source, indices = _words(x), _dense(indices)
    block_n, block_c = _tile(width, x.itemsize)
    grid = (triton.cdiv(count, block_n), triton.cdiv(width, block_c), batch)
    with torch.cuda.device_of(x):
        gather_kernel[grid](
            source, *source.stride()[:2], indices, indices.stride(0), n, count, width, _words(out),
            BLOCK_N=block_n, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


def scatter_rows(base: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """As `reference.scatter_rows`, but an index outside 0..N-1 writes nothing."""
    (batch, n, width), count = base.shape, indices.shape[1]
    if base.itemsize not in _WORDS:
        return reference.scatter_rows(base, indices, rows)
    out = torch.empty(batch, n, width, dtype=base.dtype, device=base.device)
    if out.numel() == 0:
        return out
    slot = torch.empty(batch, n, dtype=torch.int32, device=base.device)
    old, new, indices = _words(base), _words(rows), _dense(indices)
    block_n, block_c = _tile(width, base.itemsize)
    block = min(max(128, triton.next_power_of_2(n)), _INVERT_BLOCK)
    grid = (triton.cdiv(n, block_n), triton.cdiv(width, block_c), batch)
    with torch.cuda.device_of(base):
        invert_kernel[(batch,)](indices, indices.stride(0), n, count, slot, BLOCK=block, num_warps=max(4, block // 512))
        merge_kernel[grid](
            old, *old.stride()[:2], new, *new.stride()[:2], slot, n, width, _words(out),
            BLOCK_N=block_n, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


def _dense(x: Tensor) -> Tensor:
    """`x` itself where its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _words(x: Tensor) -> Tensor:
    return _dense(x).view(_WORDS[x.itemsize])


def _tile(width: int, itemsize: int) -> tuple[int, int]:
    """(rows, channels) of a tile of `_TILE_BYTES`, both powers of two."""
    block_c = min(triton.next_power_of_2(max(1, width)), _TILE_BYTES // itemsize)
    return _TILE_BYTES // (block_c * itemsize), block_c
