"""Blocks and launches. Importing this needs Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..dependent import dependent
from .kernel import enlarge_kernel, put_back_kernel
from .reference import Size

TOKENS, CHANNELS, WARPS = 32, 64, 4
"""Of a program."""


def enlarge(cached: Tensor, source: Size, target: Size, index: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """As `enlarge` of the package, on the GPU of `cached`."""
    cached = _by_channels(cached)
    rows, _, channels = cached.shape
    count = target[0] * target[1] if index is None else index.shape[1]
    out = torch.empty(rows, count, channels, dtype=(cached if onto is None else onto).dtype, device=cached.device)
    with torch.cuda.device_of(cached):
        enlarge_kernel[_programs(count, channels, rows)](
            cached, *cached.stride()[:2], cached if index is None else index.contiguous(),
            out if onto is None else onto.contiguous(), count, channels, out,
            INDEX=index is not None, ONTO=onto is not None, **_constants(out, source, target),
        )  # fmt: skip
    return out


def put_back(x: Tensor, part: Tensor, slots: Tensor, cached: Tensor, source: Size, target: Size) -> Tensor:
    """As `put_back` of the package, on the GPU of x."""
    rows, tokens, channels = x.shape
    x, part, slots, cached = x.contiguous(), part.contiguous(), slots.contiguous(), _by_channels(cached)
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        put_back_kernel[_programs(tokens, channels, rows)](
            x, part, slots, cached, *cached.stride()[:2], part.shape[1], channels, out, **_constants(out, source, target)
        )
    return out


def _by_channels(cached: Tensor) -> Tensor:
    return cached if cached.stride(-1) == 1 else cached.contiguous()


def _programs(tokens: int, channels: int, rows: int) -> tuple[int, int, int]:
    return triton.cdiv(tokens, TOKENS), triton.cdiv(channels, _block(channels)), rows


def _block(channels: int) -> int:
    return min(CHANNELS, int(triton.next_power_of_2(channels)))


def _constants(out: Tensor, source: Size, target: Size) -> dict[str, Any]:
    ahead = dependent(out)
    return {
        "SOURCE_H": source[0], "SOURCE_W": source[1], "TARGET_H": target[0], "TARGET_W": target[1],
        "TOKENS": TOKENS, "BLOCK": _block(out.shape[-1]), "DEPENDENT": ahead, "num_warps": WARPS, "launch_pdl": ahead,
    }  # fmt: skip
