"""Gated residual and the norm after it, in one pass over the stream: what stands between two matrix products of a block.

    stream = x + update * gate
    normed = layer_norm(stream) * scale + shift

Without an update the stream is x itself; without a scale there is no norm. One row of C values is read once and written once.
"""

from __future__ import annotations

from torch import Tensor

from . import reference

_WIDEST = 16_384


def residual_norm(
    x: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    one: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Add a gated update, then normalise and modulate.

    Args:
        x: `[R, N, C]`, contiguous.
        update: `[R, N, C]`, contiguous, or `[S, R, N, C]` whose sum over S it is, or None.
        gate: `[R, C]` or `[1, C]`, multiplies the update; None is 1.
        scale: `[R, C]` or `[1, C]`, multiplies the normalised stream; None leaves the norm out.
        shift: As `scale`.
        one: Multiply by 1 + scale, as adaptive norms do, instead of by scale.

    Returns:
        The stream `[R, N, C]`, which is `x` itself without an update, and the normalised one, or None. Statistics, products
        and sums are fp32; eps is 1e-6.
    """
    if not x.is_cuda or x.shape[-1] > _WIDEST:
        return reference.residual_norm(x, update, gate, scale, shift, one)
    from .launch import residual_norm as launch

    return launch(x, update, gate, scale, shift, one)
