"""What tokens take over from an earlier scale, enlarged: alone, added to a stream, or beside the tokens that ran.

PyTorch's bilinear kernel gives a pixel to a thread, which then walks all channels; here they have thousands. So tokens stay
tokens, and channels are read side by side.
"""

from __future__ import annotations

from torch import Tensor

from . import reference
from .reference import Size


def enlarge(cached: Tensor, source: Size, target: Size, index: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """Tokens of an earlier scale, enlarged bilinearly, corners not aligned.

    Args:
        cached: `[R, h*w, C]`; on CUDA without a copy where its last dimension is contiguous.
        source: (h, w) of the earlier scale.
        target: (h', w') of this one.
        index: `[R, n]` int64, the tokens of this scale that are wanted, in 0..h'*w'-1; None for all.
        onto: `[R, n, C]` they are added to, or None.

    Returns:
        `[R, n, C]`, contiguous, in the dtype of `onto`, else of `cached`.
    """
    if not cached.is_cuda:
        return reference.enlarge(cached, source, target, index, onto)
    from .launch import enlarge as launch

    return launch(cached, source, target, index, onto)


def put_back(x: Tensor, part: Tensor, slots: Tensor, cached: Tensor, source: Size, target: Size) -> Tensor:
    """The residual stream after a layer that only some tokens ran.

    Args:
        x: `[R, h'*w', C]` before the layer.
        part: `[R, n, C]` after the layer, of the tokens that ran.
        slots: `[R, h'*w']` int32: where a token stands in `part`, or -1 where it did not run.
        cached: `[R, h*w, C]` update of the layer at the earlier scale, as of `enlarge`.
        source: (h, w) of the earlier scale.
        target: (h', w') of this one.

    Returns:
        `[R, h'*w', C]` in x's dtype, contiguous: of tokens that ran `part`, of the others x plus the update, enlarged.
    """
    if not x.is_cuda:
        return reference.put_back(x, part, slots, cached, source, target)
    from .launch import put_back as launch

    return launch(x, part, slots, cached, source, target)
