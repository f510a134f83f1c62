"""FlashAttention-Entropy by definition: plain torch, fp32, any device.

For query i the attention is a_i = softmax(scale * q_i K^T) and its entropy H_i = -sum_j a_ij ln a_ij (ToProVAR, eq. 1-2).
With l = logits - logsumexp(logits) = ln a, H = -sum exp(l) * l; a key of logit -inf contributes 0, not 0 * -inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

# at most one fp32 buffer of this size is materialised: 8 MB stays in a cache
_BUFFER_ELEMENTS = 1 << 21


def attention_with_entropy(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output and entropy of `softmax(scale * q @ k.T) @ v`.

    Args:
        q: `[B, H, Nq, D]`, fp16, bf16, fp32 or fp64.
        k: `[B, H, Nk, D]`, same dtype.
        v: `[B, H, Nk, D]`, same dtype.
        scale: Multiplies the logits before the softmax.

    Returns:
        `o` `[B, H, Nq, D]` in the dtype of `q`, and `e` `[B, H, Nq]` fp32 (fp64 for fp64) in nats, 0 to ln Nk.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values = k.to(compute).transpose(-1, -2), v.to(compute)
    chunk = max(1, _BUFFER_ELEMENTS // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    outputs, entropies = [], []
    for start in range(0, q.shape[2], chunk):
        log_p = ((q[:, :, start : start + chunk].to(compute) * scale) @ keys).log_softmax(dim=-1)
        p = log_p.exp()
        outputs.append(p @ values)
        # xlogy-like: p = 0 gives 0, while NaN in the input stays NaN
        entropies.append(-torch.where(p == 0, 0.0, p * log_p).sum(dim=-1))
    return torch.cat(outputs, dim=2).to(q.dtype), torch.cat(entropies, dim=2)
