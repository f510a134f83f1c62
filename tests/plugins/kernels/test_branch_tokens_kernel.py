"""Distances and restored outputs against the definitions; windows of a scale enlarged, shrunk, and of odd shape."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.branch_tokens import launch, reference

GRIDS = [((3, 4), (5, 7)), ((4, 4), (4, 4)), ((6, 5), (2, 3)), ((3, 3), (1, 8))]
DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 33, 100), (2, 7, 2048)], ids=str)
def test_distance_matches_the_definition(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    torch.testing.assert_close(launch.token_distance(x), reference.token_distance(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["one", "half", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_restore_matches_the_definition(
    grid: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype, share: float, device: str
) -> None:
    source, target = grid
    generator = torch.Generator().manual_seed(0)
    tokens = target[0] * target[1]
    count = max(1, round(share * tokens))
    index = torch.stack([torch.randperm(tokens, generator=generator)[:count].sort().values for _ in range(2)]).to(device)
    part = torch.randn(2, count, 100, generator=generator).to(device, dtype)
    cached = torch.randn(2, source[0] * source[1], 100, generator=generator).to(device, dtype)
    found = launch.restore_tokens(part, index, cached, source, target)
    expected = reference.restore_tokens(part, index, cached, source, target)
    torch.testing.assert_close(found, expected, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)
