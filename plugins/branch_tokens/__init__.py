"""Tokens chosen anew for each branch of a layer, and the branch's output completed from an earlier scale (FastVAR).

`token_distance` scores tokens by their squared distance to the mean token; `add_restored` adds to the residual stream the
outputs of those that ran beside the cached ones, enlarged by the mean over windows (the mode 'area'), in one pass that also
leaves the mean token the next choice begins with.
"""

from __future__ import annotations

from torch import Tensor

from . import reference
from .reference import Size


def token_distance(x: Tensor, mean: Tensor | None = None) -> Tensor:
    """Squared distance of every token to the mean token of its row.

    Args:
        x: `[R, N, C]`, contiguous.
        mean: `[R, C]` fp32, the mean over N where it is known.

    Returns:
        `[R, N]` fp32.
    """
    if not x.is_cuda:
        return reference.token_distance(x, mean)
    from .launch import token_distance as launch

    return launch(x, mean)


def add_restored(
    x: Tensor,
    part: Tensor,
    gate: Tensor | None,
    slots: Tensor,
    cached: Tensor,
    source: Size,
    target: Size,
) -> tuple[Tensor, Tensor]:
    """The residual stream plus a branch: of the tokens that ran its gated output, of the others the cached one, enlarged.

    Args:
        x: `[R, h'*w', C]`, contiguous.
        part: `[R, n, C]`, contiguous: the branch before its gate.
        gate: `[R, C]`, last dimension contiguous, or None for 1.
        slots: `[R, h'*w']` int32: where a token stands in `part`, or -1 where it did not run.
        cached: `[R, h*w, C]`, last dimension contiguous, after the gate.
        source: (h, w) of the cached scale.
        target: (h', w') of this one.

    Returns:
        The stream `[R, h'*w', C]` in x's dtype, contiguous, and its mean token `[R, C]` fp32.
    """
    if not x.is_cuda:
        return reference.add_restored(x, part, gate, slots, cached, source, target)
    from .launch import add_restored as launch

    return launch(x, part, gate, slots, cached, source, target)
