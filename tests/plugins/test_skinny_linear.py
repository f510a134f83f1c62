"""What few-row linear layers are without a GPU: torch's own, and the way partial sums are added."""

from __future__ import annotations

import torch
from toprovar.plugins.residual_norm import residual_norm
from toprovar.plugins.skinny_linear import linear, partial_sums, summed
from toprovar.plugins.text_attention import text_attention
from torch.nn import functional as F


def test_is_torchs_linear_without_a_gpu() -> None:
    x, weight, bias = torch.randn(2, 3, 256), torch.randn(64, 256), torch.randn(64)
    expected = F.linear(x, weight, bias)
    assert torch.equal(linear(x, weight, bias), expected)
    assert torch.equal(linear(x, weight, bias, gelu=True), F.gelu(expected, approximate="tanh"))
    assert torch.equal(summed(partial_sums(x, weight, bias), x), expected)


def test_readers_add_partial_sums() -> None:
    parts, x = torch.randn(4, 2, 3, 8), torch.randn(2, 3, 8)
    assert torch.equal(summed(parts, x), parts.sum(0))
    gate, scale, shift = torch.randn(3, 2, 8).unbind()
    for found, expected in zip(
        residual_norm(x, parts, gate, scale, shift), residual_norm(x, parts.sum(0), gate, scale, shift), strict=True
    ):
        torch.testing.assert_close(found, expected)
    q, text, lengths = torch.randn(4, 2, 3, 2, 16), torch.randn(2, 2, 5, 16), torch.tensor([5, 2])
    found = text_attention(q, text, text, lengths, 0.25)
    torch.testing.assert_close(found, text_attention(q.sum(0), text, text, lengths, 0.25))
