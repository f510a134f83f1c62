"""Attention of image tokens to the text: few keys, another number for each row, no mask tensor.

The loop over keys ends at the row's own length, read on the device: one captured graph serves every prompt, and a short prompt
costs what it is long.
"""

from __future__ import annotations

from torch import Tensor

from . import reference

WIDEST = 256


def text_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attend to the first `lengths[r]` keys of each row r.

    Args:
        q: `[R, N, H, D]`, last dimension contiguous, or `[S, R, N, H, D]` fp32 whose sum over S it is.
        k: `[R, H, T, D]`, any strides with a contiguous last dimension.
        v: As `k`.
        lengths: `[R]` int32 or int64, 1 to T.
        scale: Multiplies the logits, usually `D ** -0.5`.

    Returns:
        `[R, N, H, D]`, contiguous, in k's dtype.
    """
    if not q.is_cuda or q.shape[-1] > WIDEST or q.shape[-1] % 16:
        return reference.text_attention(q, k, v, lengths, scale)
    from .launch import text_attention as launch

    return launch(q, k, v, lengths, scale)
