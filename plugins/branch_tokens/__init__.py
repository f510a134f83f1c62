"""Tokens chosen anew for each branch of a layer, and the branch's output completed from an earlier scale (FastVAR).

`token_distance` scores tokens by their squared distance to the mean token; `restore_tokens` puts the outputs of those that ran
beside the cached ones, enlarged by the mean over windows (the mode 'area'), in one pass.
"""

from __future__ import annotations

from torch import Tensor

from . import reference


def token_distance(x: Tensor) -> Tensor:
    """Squared distance of every token to the mean token of its row.

    Args:
        x: `[R, N, C]`, contiguous.

    Returns:
        `[R, N]` fp32.
    """
    if not x.is_cuda:
        return reference.token_distance(x)
    from .launch import token_distance as launch

    return launch(x)


def restore_tokens(part: Tensor, index: Tensor, cached: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Outputs of all tokens: those that ran, and for the others the cached ones enlarged.

    Args:
        part: `[R, n, C]`, contiguous.
        index: `[R, n]` int64, strictly ascending along a row, in 0..h'*w'-1.
        cached: `[R, h*w, C]`, last dimension contiguous.
        source: (h, w) of the cached scale.
        target: (h', w') of this one.

    Returns:
        `[R, h'*w', C]`, contiguous.
    """
    if not part.is_cuda:
        return reference.restore_tokens(part, index, cached, source, target)
    from .launch import restore_tokens as launch

    return launch(part, index, cached, source, target)
