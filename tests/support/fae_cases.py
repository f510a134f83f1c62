"""Inputs, definition and tolerances that the tests of FAE's kernels share."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# relative error of o (norm), absolute error of e in nats: measured on the interpreter and an H100, doubled
OUTPUT = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
ENTROPY = 2e-5


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as views of `[B, N, H, D]` storage, the way a fused projection leaves them."""
    batch, heads, queries, keys, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    made = [torch.randn(batch, n, heads, width, generator=generator) for n in (queries, keys, keys)]
    q, k, v = (tensor.to(device=device, dtype=dtype).transpose(1, 2) for tensor in made)
    return q, k, v


def definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    a = (q.double() @ k.double().transpose(-1, -2) * scale).softmax(dim=-1)
    return a @ v.double(), -torch.special.xlogy(a, a).sum(dim=-1)


def agree(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    error = (got[0].double() - expected[0]).norm() / expected[0].norm()
    assert float(error) <= OUTPUT[got[0].dtype]
    torch.testing.assert_close(got[1].double(), expected[1], rtol=0, atol=ENTROPY)
