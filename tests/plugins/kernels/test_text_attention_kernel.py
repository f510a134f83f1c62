"""Attention to the text against the definition: another length in each row, garbage behind it, strided keys."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.text_attention import launch, reference

SHAPES = [(1, 1, 2, 1, 64), (2, 25, 4, 77, 128), (3, 70, 2, 130, 48)]  # R, N, H, T, D
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str) -> None:
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bf16 wrongly")
    rows, tokens, heads, text, width = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(rows, tokens, heads, width, generator=generator).to(device, dtype)
    # keys and values of one projection, as the model makes them
    pair = torch.randn(rows, text, 2, heads, width, generator=generator).to(device, dtype)
    k, v = pair.permute(2, 0, 3, 1, 4).unbind(0)
    lengths = torch.tensor([max(1, text - 31 * row) for row in range(rows)], device=device)
    expected = reference.text_attention(q, k, v, lengths, width**-0.5)
    for row, length in enumerate(lengths.tolist()):
        pair[row, length:] = float("nan")
    found = launch.text_attention(q, k, v, lengths, width**-0.5)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_one_key_returns_its_value(device: str) -> None:
    q = torch.randn(2, 3, 1, 64, device=device)
    v = torch.randn(2, 1, 5, 64, device=device)
    found = launch.text_attention(q, torch.randn_like(v), v, torch.tensor([1, 1], device=device), 1.0)
    torch.testing.assert_close(found, v[:, :, :1].transpose(1, 2).expand(-1, 3, -1, -1).contiguous())
