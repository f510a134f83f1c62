"""Tokens that ran put back among the others, which take the layer's update at an earlier scale, enlarged, in one pass."""

from __future__ import annotations

from torch import Tensor

from . import reference
from .reference import Size


def put_back(x: Tensor, part: Tensor, slots: Tensor, cached: Tensor, source: Size, target: Size) -> Tensor:
    """The residual stream after a layer that only some tokens ran.

    Args:
        x: `[R, h'*w', C]` before the layer.
        part: `[R, n, C]` after the layer, of the tokens that ran.
        slots: `[R, h'*w']` int32: where a token stands in `part`, or -1 where it did not run.
        cached: `[R, h*w, C]` update of the layer at the earlier scale; on CUDA without a copy where its last dimension is
            contiguous.
        source: (h, w) of the earlier scale.
        target: (h', w') of this one.

    Returns:
        `[R, h'*w', C]` in x's dtype, contiguous: of tokens that ran `part`, of the others x plus the update, enlarged
        bilinearly, corners not aligned.
    """
    if not x.is_cuda:
        return reference.put_back(x, part, slots, cached, source, target)
    from .launch import put_back as launch

    return launch(x, part, slots, cached, source, target)
