"""From the joint projection to attention's operands in one pass: unit length, learned factor, rotary positions, cache.

Queries are finished in place inside the projection; keys and values go straight to their places in the cache, so that no
concatenation and no copy of the past is ever made.
"""

from __future__ import annotations

from torch import Tensor

from . import reference


def rotary_cache(qkv: Tensor, factor: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Finish q in place, write k and v.

    Args:
        qkv: `[R, N, 3, H, D]`, contiguous; its first third is overwritten by the finished queries.
        factor: `[H]` fp32, multiplies the unit queries.
        cos: `[N, D / 2]`, or `[R, 1, N, D / 2]` where each row has its own tokens; fp32. Pairs (2p, 2p + 1) turn by angle p.
        sin: As `cos`.
        keys: `[R, H, N, D]`, any strides with a contiguous last dimension; written.
        values: As `keys`.

    Returns:
        q as `[R, H, N, D]`, a view of `qkv`.
    """
    if not qkv.is_cuda:
        return reference.rotary_cache(qkv, factor, cos, sin, keys, values)
    from .launch import rotary_cache as launch

    return launch(qkv, factor, cos, sin, keys, values)
