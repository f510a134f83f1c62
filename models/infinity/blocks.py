"""One Infinity block: cosine self-attention over all scales so far, cross-attention to the text, MLP.

x += SA(LN(x) * (1 + scale1) + shift1) * gamma1;  x += CA(ca_norm(x));  x += MLP(LN(x) * (1 + scale2) + shift2) * gamma2.
The six vectors are `ada_gss + shared`, in the order gamma1, gamma2, scale1, scale2, shift1, shift2.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.infinity import TransformerConfig
from ..layers import Linear, attend, modulate, normal_parameter, rows_linear
from ..state import Rope
from .rope import rotate

MAX_SCALE_MUL = math.log(100)
MLP_MULTIPLE = 256


class Widths(Protocol):
    """What attention and MLP need to know of a family's configuration."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp_ratio(self) -> float: ...


class SelfAttention(nn.Module):
    """Cosine attention: q and k of unit length, q times a learned factor a head (at most 100), then rotary positions if any."""

    zero_k_bias: Tensor

    def __init__(self, config: Widths) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4.0)))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.mat_qkv = Linear(width, 3 * width, bias=False)
        self.proj = Linear(width, width)

    def project(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        """`[R, N, C]` -> q, k, v, each `[R, H, N, D]`; k is in the form that is cached."""
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = rows_linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        factor = self.scale_mul_1H11.clamp_max(MAX_SCALE_MUL).exp()
        q, k = F.normalize(q, dim=-1) * factor, F.normalize(k, dim=-1)
        return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)

    def forward(
        self, x: Tensor, rope: Rope | None, past: tuple[Tensor, Tensor] | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Attend from x to the past and x itself, without a mask.

        Args:
            x: `[R, N, C]`, normalised and modulated.
            rope: Table of the tokens of x, or None: no rotation.
            past: k and v `[R, H, P, D]` of earlier scales, or None.
            with_entropy: Also return the entropy of every head and token.

        Returns:
            Output `[R, N, C]` before gamma; k and v with the past in front `[R, H, P + N, D]`; entropy `[R, H, N]` or None.
        """
        q, k, v = self.project(x, rope)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        output, entropy = attend(q, k, v, 1.0, with_entropy)
        return self.proj(output.transpose(1, 2).flatten(2)), k, v, entropy


class CrossAttention(nn.Module):
    """Attention to the text features; keys and values are computed once an image (`keys_values`)."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.mat_q = Linear(width, width)
        self.mat_kv = Linear(width, 2 * width, bias=False)
        self.proj = Linear(width, width)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """`[R, T, C]` -> k and v, each `[R, H, T, D]`."""
        bias = torch.cat([self.zero_k_bias, self.v_bias])
        kv = rows_linear(text, self.mat_kv.weight, bias).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """`[R, N, C]` -> `[R, N, C]`; mask `[R, 1, 1, T]` is 0 at words and -inf at padding."""
        q: Tensor = self.mat_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(output.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Linear, tanh GELU, Linear; the hidden width is a multiple of 256."""

    def __init__(self, config: Widths) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio / MLP_MULTIPLE) * MLP_MULTIPLE
        self.fc1 = Linear(config.width, hidden)
        self.fc2 = Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, cross-attention, MLP with shared adaptive normalisation."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ada_gss = normal_parameter(1, 1, 6, config.width, std=config.width**-0.5)
        self.sa = SelfAttention(config)
        self.ca = CrossAttention(config)
        self.ffn = FeedForward(config)
        self.ca_norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(
        self,
        x: Tensor,
        shared: Tensor,
        rope: Rope,
        text: tuple[Tensor, Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """One block.

        Args:
            x: Residual stream `[R, N, C]`.
            shared: Output of the shared modulation `[R, 1, 6, C]`.
            rope: Table of the tokens of x.
            text: k, v `[R, H, T, D]` and mask `[R, 1, 1, T]` of the cross-attention.
            past: k, v of earlier scales, or None.
            with_entropy: Whether the entropy is read.

        Returns:
            x `[R, N, C]`, k, v `[R, H, P + N, D]`, entropy `[R, H, N]` or None.
        """
        attended, k, v, entropy = self.attention_branch(x, shared, rope, past, with_entropy)
        x = x + attended
        x = x + self.cross_branch(x, text)
        x = x + self.mlp_branch(x, shared)
        return x, k, v, entropy

    def attention_branch(
        self, x: Tensor, shared: Tensor, rope: Rope, past: tuple[Tensor, Tensor] | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Self-attention of the tokens given, after its gate; arguments and the other results as of `forward`."""
        gamma, scale, shift = (self.ada_gss + shared)[:, :, 0::2].unbind(2)
        attended, k, v, entropy = self.sa(modulate(x, scale, shift), rope, past, with_entropy)
        return attended * gamma, k, v, entropy

    def cross_branch(self, x: Tensor, text: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Attention of the tokens given to the text: `[R, n, C]` -> `[R, n, C]`; this branch has no gate."""
        return self.ca(self.ca_norm(x), *text)  # type: ignore[no-any-return]

    def mlp_branch(self, x: Tensor, shared: Tensor) -> Tensor:
        """The MLP of the tokens given, after its gate: `[R, n, C]` -> `[R, n, C]`."""
        gamma, scale, shift = (self.ada_gss + shared)[:, :, 1::2].unbind(2)
        return self.ffn(modulate(x, scale, shift)) * gamma  # type: ignore[no-any-return]
