"""Drawing codes from logits with noise that comes from outside: the same noise gives the same codes on every target."""

from __future__ import annotations

import torch
from torch import Tensor

from ...profiles.vq import ranked_codes


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits that may not be drawn become -inf: first all but the `top_k` largest, then the unlikeliest of what is left.

    Args:
        logits: `[..., V]` fp32.
        top_k: 0 keeps all.
        top_p: Those go whose probabilities, summed from the smallest, make at most 1 - top_p; never the largest. 0 keeps all.
    """
    vocabulary = logits.shape[-1]
    ranked = ranked_codes(vocabulary, top_k, top_p)
    if not ranked:
        return logits
    largest = logits.topk(ranked, dim=-1).values
    floor = largest[..., -1:]
    if top_p:
        rising = largest.flip(-1)
        allowed = rising.softmax(dim=-1).cumsum(dim=-1) > 1 - top_p
        # rounding of the sum may not take the likeliest code away
        floor = torch.where(allowed, rising, largest[..., :1]).amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < floor, float("-inf"))


def draw(logits: Tensor, gumbel: Tensor) -> Tensor:
    """One code a token, distributed as softmax(logits): `[..., V]` twice -> `[...]` int64."""
    return (logits + gumbel).argmax(dim=-1)


def soft_codes(logits: Tensor, gumbel: Tensor, codebook: Tensor, ratio: float) -> Tensor:
    """The official `more_smooth`: a mixture of codes that grows harder over the scales.

    Args:
        logits: `[..., V]`, -inf where a code may not be drawn.
        gumbel: `[..., V]`, drawn apart from that of the indices.
        codebook: `[V, d]` fp32.
        ratio: Place of the scale, 0 for the first to 1 for the last.

    Returns:
        `[..., d]`.
    """
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return ((logits * (1 + ratio) + gumbel) / temperature).softmax(dim=-1) @ codebook
