"""`toprovar::flash_attention_entropy`: attention that also returns the entropy of every query's distribution.

A torch op, not a function, so that torch.export keeps it as one node and each target maps it to its own kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import attention_with_entropy


@torch.library.custom_op("toprovar::flash_attention_entropy", mutates_args=())
def _op(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    output, entropy = attention_with_entropy(q, k, v, scale)
    return output.contiguous(), entropy.contiguous()


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    entropy_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:-1], dtype=entropy_dtype)


def flash_attention_entropy(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention output and entropy in one call.

    Args:
        q: `[B, H, Nq, D]`.
        k: `[B, H, Nk, D]`, same dtype and device.
        v: `[B, H, Nk, D]`, same dtype and device.
        scale: Multiplies the logits before the softmax; 1.0 for cosine attention.

    Returns:
        `o` `[B, H, Nq, D]` in q's dtype and `e` `[B, H, Nq]` fp32, in nats, between 0 and ln Nk.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit.
    """
    if q.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"expected q [B, H, Nq, D] and k, v [B, H, Nk, D], got {[*q.shape]}, {[*k.shape]}, {[*v.shape]}")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(f"q, k, v must share dtype and device, got {q.dtype}, {k.dtype}, {v.dtype}")
    output, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, float(scale))
    return output, entropy
