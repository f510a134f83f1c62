"""One HART block, as in Llama: self-attention over the text and all scales so far, then SwiGLU, each behind an RMS norm.

x += SA(norm(x));  x += MLP(norm(x)). Both use the same norm and there is no modulation and no cross-attention: the text is
the first of the tokens. Nothing is masked, so that the padding of the text is attended to as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.hart import HartConfig
from ..layers import Linear, RMSNorm, attend, rows_linear
from ..state import Rope
from .rope import rotate

ATTENTION_SCALE = 0.25
"""Over the root of the head width, where others take 1."""


class SelfAttention(nn.Module):
    """Attention with rotary positions; k is cached turned."""

    zero_k_bias: Tensor

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.scale = ATTENTION_SCALE * config.head_width**-0.5
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.qkv_proj = Linear(width, 3 * width, bias=False)
        self.proj = Linear(width, width)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """`[R, N, C]` -> q, k, v, each `[R, H, N, D]`; k is in the form that is cached."""
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = rows_linear(x, self.qkv_proj.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return rotate(q, rope), rotate(k, rope), v

    def forward(
        self, x: Tensor, rope: Rope, past: tuple[Tensor, Tensor] | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Attend from x to the past and x itself; arguments and results as of Infinity's `SelfAttention`."""
        q, k, v = self.project(x, rope)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        output, entropy = attend(q, k, v, self.scale, with_entropy)
        return self.proj(output.transpose(1, 2).flatten(2)), k, v, entropy


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.hidden, bias=False)
        self.up_proj = Linear(config.width, config.hidden, bias=False)
        self.down_proj = Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention and MLP behind one shared norm, under its official name although it has a weight."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(config)
        self.ln_wo_grad = RMSNorm(config.width, config.norm_eps)

    def attention_branch(
        self, x: Tensor, rope: Rope, past: tuple[Tensor, Tensor] | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What attention adds to x `[R, N, C]`; k, v `[R, H, P + N, D]`; entropy `[R, H, N]` or None."""
        return self.attn(self.ln_wo_grad(x), rope, past, with_entropy)  # type: ignore[no-any-return]

    def mlp_branch(self, x: Tensor) -> Tensor:
        """What the MLP adds to x: `[R, N, C]`."""
        return self.ffn(self.ln_wo_grad(x))  # type: ignore[no-any-return]

    def forward(
        self, x: Tensor, rope: Rope, past: tuple[Tensor, Tensor] | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """One block: x `[R, N, C]`, k, v `[R, H, P + N, D]`, entropy `[R, H, N]` or None."""
        attended, k, v, entropy = self.attention_branch(x, rope, past, with_entropy)
        x = x + attended
        return x + self.mlp_branch(x), k, v, entropy
