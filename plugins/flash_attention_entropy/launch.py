"""Which kernel and which tile serve a shape on this GPU, and the launch: no search at run time, the same choice every time.

The rules were read off the sweeps in `benchmarks/LOG.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..dependent import dependent
from .kernel import fae_combine, fae_forward

LOG2_E = math.log2(math.e)
# below this many query rows, tiles of 128 leave most of a Hopper GPU idle
HOPPER_QUERIES = 320
# Triton versions, from and below, whose Gluon the Hopper kernel was compiled with
GLUON_VERSIONS = ((3, 6), (3, 8))
# a share of the keys must be worth the pass that merges the shares
KEYS_A_SPLIT = 1024


@dataclass(frozen=True, slots=True)
class Tile:
    """Query rows and keys of a block, warps of a program, stages of the load pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int

    def shared_bytes(self, width: int, element_bytes: int) -> int:
        """Shared memory of the tiles, in bytes; `width` is the padded head width."""
        return (self.queries + 2 * self.keys * self.stages) * width * element_bytes


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, *, entropy: bool = True) -> tuple[Tensor, Tensor]:
    """Run FAE on the GPU of q.

    Args:
        q: `[B, H, Nq, D]`, fp16, bf16 or fp32, D a multiple of 16 up to 256, last dimension contiguous.
        k: `[B, H, Nk, D]`.
        v: `[B, H, Nk, D]`.
        scale: Multiplies the logits, at least 0.
        entropy: False leaves `e` unwritten, to time what entropy costs.

    Returns:
        `o` `[B, H, Nq, D]`, stored as `[B, Nq, H, D]`, and `e` `[B, H, Nq]` fp32, in nats.
    """
    batch, heads, queries, width = q.shape
    o = torch.empty(batch, queries, heads, width, dtype=q.dtype, device=q.device).transpose(1, 2)
    e = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if o.numel() == 0:
        return o, e
    with torch.cuda.device(q.device):
        if _suits_hopper(q, k, v):
            _launch_hopper(q, k, v, o, e, scale * LOG2_E, entropy)
        else:
            shared_bytes, processors = _limits(q.device.index)
            tile = choose(queries, k.shape[2], width, q.dtype, shared_bytes)
            shares = splits(triton.cdiv(queries, tile.queries) * batch * heads, k.shape[2], processors)
            launch_tile(q, k, v, o, e, scale * LOG2_E, tile, shares, entropy=entropy)
    return o, e


def choose(queries: int, keys: int, width: int, dtype: torch.dtype, shared_bytes: int) -> Tile:
    """The first tile of the preferences for a shape that fits `shared_bytes` of shared memory a program."""
    padded = triton.next_power_of_2(width)
    for tile in _preferences(queries, keys, padded, dtype):
        if tile.shared_bytes(padded, dtype.itemsize) <= shared_bytes:
            return tile
    return Tile(16, 16, 4, 1)


def _preferences(queries: int, keys: int, width: int, dtype: torch.dtype) -> Iterator[Tile]:
    if dtype == torch.float32:
        # products in full fp32 do not run on the matrix units: small tiles, many warps
        yield from (Tile(64, 32, 8, 2), Tile(32, 32, 4, 1), Tile(16, 32, 4, 1), Tile(16, 16, 4, 1))
    if queries <= 64 and keys <= 256 and width <= 128:
        yield Tile(16, 128 if keys > 64 else 64, 4, 2)
    if queries <= 16:
        yield Tile(16, 64, 4, 2)
    if width > 128:
        if queries > 320:
            yield Tile(128, 32, 8, 3)
        yield from (Tile(64, 32, 4, 3), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2))
    else:
        yield from (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2))


def splits(programs: int, keys: int, processors: int) -> int:
    """Into how many shares the keys are cut, so that a grid of few programs still fills the GPU."""
    return max(1, min(2 * processors // programs, keys // KEYS_A_SPLIT, 16))


@cache
def _limits(device: int) -> tuple[int, int]:
    """Shared memory a program may use, in bytes, and the number of multiprocessors."""
    found: Any = torch.cuda.get_device_properties(device)
    return int(found.shared_memory_per_block_optin), int(found.multi_processor_count)


def launch_tile(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, e: Tensor, factor: float, tile: Tile, shares: int = 1, *,
    entropy: bool = True, upcast: bool = False,
) -> None:  # fmt: skip
    """Run the Triton kernel with a given tile; with `shares` > 1 the keys are cut and a second kernel merges the shares."""
    batch, heads, queries, width = q.shape
    blocks, lines = triton.cdiv(queries, tile.queries), batch * heads
    part, stats = o, e
    if shares > 1:
        part = torch.empty(shares, lines, queries, width, dtype=torch.float32, device=q.device)
        stats = torch.empty(3, shares, lines, queries, dtype=torch.float32, device=q.device)
    ahead = dependent(q)
    constants = {"D": width, "BLOCK_D": triton.next_power_of_2(width), "SPLITS": shares, "ENTROPY": entropy}
    fae_forward[(blocks, lines, shares)](
        q, k, v, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3], heads, queries, k.shape[2],
        part, stats, factor, BLOCK_Q=tile.queries, BLOCK_K=tile.keys, PRECISION="ieee", UPCAST=upcast,
        DEPENDENT=ahead, num_warps=tile.warps, num_stages=tile.stages, launch_pdl=ahead, **constants,
    )  # fmt: skip
    if shares > 1:
        fae_combine[(queries, lines)](part, stats, *o.stride()[:3], heads, queries, o, e, num_warps=2, **constants)


@cache
def hopper_problem() -> str | None:
    """Why the Hopper kernel cannot be used by this Triton, or None when it can."""
    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not GLUON_VERSIONS[0] <= found < GLUON_VERSIONS[1]:
        # Gluon changes from release to release: 3.9 does not compile what 3.6 and 3.7 do
        return f"triton {triton.__version__} has another Gluon than the kernel is written for; use triton 3.6 or 3.7"
    return None


def _suits_hopper(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if q.dtype not in (torch.float16, torch.bfloat16) or torch.cuda.get_device_capability(q.device) != (9, 0):
        return False
    if q.shape[2] < HOPPER_QUERIES or q.shape[3] < 48 or not all(_loads_by_tma(tensor) for tensor in (q, k, v)):
        return False
    return hopper_problem() is None


def _loads_by_tma(tensor: Tensor) -> bool:
    """A descriptor needs a base and strides that are multiples of 16 bytes."""
    strided = [step for size, step in zip(tensor.shape[:3], tensor.stride()[:3], strict=True) if size > 1]
    return tensor.data_ptr() % 16 == 0 and all(step > 0 and step * tensor.element_size() % 16 == 0 for step in strided)


def _launch_hopper(q: Tensor, k: Tensor, v: Tensor, o: Tensor, e: Tensor, factor: float, entropy: bool) -> None:
    from triton.experimental.gluon import language as gl

    from .hopper import GROUPS, ROWS, fae_forward_hopper

    batch, heads, queries, width = q.shape
    block = max(64, triton.next_power_of_2(width))
    block_keys = 64 if block == 256 else 128
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    rows = int(ROWS.value)
    grid = (triton.cdiv(queries, rows * int(GROUPS.value)), batch * heads)
    q_desc = _descriptor(q, rows, block, layout)
    k_desc, v_desc = (_descriptor(tensor, block_keys, block, layout) for tensor in (k, v))
    fae_forward_hopper[grid](
        q_desc, k_desc, v_desc, *o.stride()[:3], heads, width, queries, k.shape[2], o, e, factor,
        STAGES=2, ENTROPY=entropy, num_warps=4,
    )  # fmt: skip


def _descriptor(tensor: Tensor, rows: int, block: int, layout: object) -> object:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # a dimension of size 1 may carry any stride; TMA wants a multiple of 16 bytes all the same
    strides = [step if size > 1 else block for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return TensorDescriptor(tensor, list(tensor.shape), [*strides[:3], 1], [1, 1, rows, block], layout)
