"""Layers that every family shares, written so that their ONNX form keeps the weights as they are stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..plugins.flash_attention_entropy import flash_attention, flash_attention_entropy


class Linear(nn.Linear):
    """A linear layer that flattens its input to rows first.

    On two dimensions ONNX's Gemm takes the weight `[out, in]` untransposed; on three the exporter would store a transposed
    copy in every subgraph, and the subgraphs could no longer share one weights file.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        return rows_linear(x, self.weight, self.bias)


def normal_parameter(*shape: int, std: float) -> nn.Parameter:
    """A parameter drawn from N(0, std^2)."""
    return nn.Parameter(nn.init.normal_(torch.empty(*shape), std=std))


def rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` on rows: `[..., in]` -> `[..., out]`."""
    return F.linear(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], weight.shape[0])


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Attention of q `[R, H, N, D]` to k, v `[R, H, M, D]`, and its entropy `[R, H, N]` where that is read."""
    if with_entropy:
        return flash_attention_entropy(q, k, v, scale)
    return flash_attention(q, k, v, scale), None


def gelu_mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, tanh GELU, Linear, with the key names `0.` and `2.`."""
    return nn.Sequential(Linear(width, hidden), nn.GELU(approximate="tanh"), Linear(hidden, out))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> `[..., C]`, same dtype."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without weights (eps 1e-6), then `* (1 + scale) + shift`; scale and shift broadcast over tokens."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (scale + 1) + shift


def silu_linear(width: int, out: int) -> nn.Sequential:
    """SiLU, Linear, with the key name `1.`: what makes modulation of a condition."""
    return nn.Sequential(nn.SiLU(), Linear(width, out))


class HeadNorm(nn.Module):
    """Modulation of the head under the official name `ada_lin`; order: scale, shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = silu_linear(width, 2 * width)
