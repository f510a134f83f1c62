"""`toprovar::flash_attention_entropy`: attention that also returns the entropy of every query's distribution.

`toprovar::flash_attention` is the same without entropy.

A torch op, not a function, so that torch.export keeps it as one node and each target maps it to its own kernel: Triton on a
GPU, the definition elsewhere. Entropy averaged over heads has no kernel of its own: `e` is a 64th of the bytes of `o` at
D = 128, so the mean over it is one small pass, and a sum over programs of different heads would change from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..direct import direct
from .reference import attention_with_entropy

WIDEST = 256


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if not q.is_cuda or not _has_kernel(q):
        output, entropy = attention_with_entropy(q, k, v, scale)
        return output.transpose(1, 2).contiguous().transpose(1, 2), entropy.contiguous()
    from .launch import forward

    if scale < 0:
        q, scale = -q, -scale
    q, k, v = _readable(q, k, v)
    return forward(q, k, v, scale)


_op = torch.library.custom_op("toprovar::flash_attention_entropy", _attend, mutates_args=())


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, queries, width = q.shape
    entropy_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    output = q.new_empty((batch, queries, heads, width)).transpose(1, 2)
    return output, q.new_empty((batch, heads, queries), dtype=entropy_dtype)


def _readable(*tensors: Tensor) -> Iterator[Tensor]:
    """As they are where a kernel can read them, else copies."""
    return (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors)


def _has_kernel(q: Tensor) -> bool:
    return q.dtype in (torch.float16, torch.bfloat16, torch.float32) and q.shape[-1] % 16 == 0 and q.shape[-1] <= WIDEST


def _attend_alone(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    from .launch import forward

    q, k, v = _readable(q, k, v)
    return forward(q, k, v, scale, entropy=False)[0]


# the kernels without entropy, as one op under torch.compile
_alone = torch.library.custom_op("toprovar::flash_attention", _attend_alone, mutates_args=())


@_alone.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, heads, queries, width = q.shape
    return q.new_empty((batch, queries, heads, width)).transpose(1, 2)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention output alone, for where no entropy is read: the same kernels without it, torch's attention elsewhere.

    Args:
        q: `[B, H, Nq, D]`, last dimension contiguous.
        k: `[B, H, Nk, D]`.
        v: `[B, H, Nk, D]`.
        scale: Multiplies the logits, at least 0.

    Returns:
        `[B, H, Nq, D]`, on a GPU stored as `[B, Nq, H, D]`.
    """
    if not q.is_cuda or not _has_kernel(q):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if direct():
        return _attend_alone(q, k, v, scale)
    return torch.ops.toprovar.flash_attention(q, k, v, scale)  # type: ignore[no-any-return]


def flash_attention_entropy(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention output and entropy in one call.

    On a GPU, fp16, bf16 and fp32 with D a multiple of 16 up to 256 run the kernels, from strided inputs without a copy as
    long as the last dimension is contiguous; anything else runs the definition.

    Args:
        q: `[B, H, Nq, D]`, any strides.
        k: `[B, H, Nk, D]`, same dtype and device; Nk at least 1.
        v: `[B, H, Nk, D]`, same dtype and device.
        scale: Multiplies the logits before the softmax; 1.0 for cosine attention. Finite.

    Returns:
        `o` `[B, H, Nq, D]` in q's dtype, stored as `[B, Nq, H, D]` so that merging the heads is a view, and `e` `[B, H, Nq]`
        fp32 (fp64 for fp64), in nats, between 0 and ln Nk. The kernels take logits up to about 1e9; NaN, infinite or larger
        ones give NaN.

    Raises:
        ValueError: The shapes, dtypes, devices or scale do not fit.
    """
    if q.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"expected q [B, H, Nq, D] and k, v [B, H, Nk, D], got {[*q.shape]}, {[*k.shape]}, {[*v.shape]}")
    if k.shape[2] == 0:
        raise ValueError(f"expected at least one key, got k {[*k.shape]}")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(f"q, k, v must share dtype and device, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if direct():
        return _attend(q, k, v, float(scale))
    output, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, float(scale))
    return output, entropy
