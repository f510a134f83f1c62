"""Group norm and swish of a channels-last image, with the sum before it: what stands between two convolutions of a decoder.

    stream = x + update + bias
    out = silu(group_norm(stream) * weight + shift)

The bias is the convolution's before it: cuDNN's convolutions in torch add theirs in a pass of its own.
"""

from __future__ import annotations

from torch import Tensor

from . import reference

_WIDEST = 1024


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    update: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum, norm, swish.

    Args:
        x: `[B, C, H, W]`; the kernels take channels_last memory.
        groups: Divides C.
        weight: `[C]`.
        shift: `[C]`.
        eps: Added to the variance.
        update: Like `x`, or None.
        bias: `[C]`, or None.

    Returns:
        The stream, which is `x` itself without an update (the bias is then only in the second result), and the activated
        norm; both like `x`. Statistics are fp32.
    """
    if not x.is_cuda or x.shape[1] > _WIDEST:
        return reference.group_norm_silu(x, groups, weight, shift, eps, update, bias)
    from .launch import group_norm_silu as launch

    return launch(x, groups, weight, shift, eps, update, bias)
