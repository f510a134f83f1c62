"""Distances and restored outputs against the definitions; windows of a scale enlarged, shrunk, and of odd shape."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.branch_tokens import launch, reference
from toprovar.plugins.token_select.reference import slots as slots_of

GRIDS = [((3, 4), (5, 7)), ((4, 4), (4, 4)), ((6, 5), (2, 3)), ((3, 3), (1, 8))]
DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 33, 100), (2, 7, 2048)], ids=str)
def test_distance_matches_the_definition(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    torch.testing.assert_close(launch.token_distance(x, None), reference.token_distance(x, None), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "gated"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["one", "half", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_added_branch_and_its_mean_match_the_definition(
    grid: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype, share: float, gated: bool, device: str
) -> None:
    source, target = grid
    generator = torch.Generator().manual_seed(0)
    tokens = target[0] * target[1]
    count = max(1, round(share * tokens))
    index = torch.stack([torch.randperm(tokens, generator=generator)[:count].sort().values for _ in range(2)]).to(device)
    x, part, cached = (
        torch.randn(2, n, 300, generator=generator).to(device, dtype) for n in (tokens, count, source[0] * source[1])
    )
    # one of six vectors, as the modulation of a layer
    gate = torch.randn(2, 6, 300, generator=generator).to(device, dtype)[:, 1] if gated else None
    slots = slots_of(index, tokens)
    stream, mean = launch.add_restored(x, part, gate, slots, cached, source, target)
    expected, middle = reference.add_restored(x, part, gate, slots, cached, source, target)
    torch.testing.assert_close(stream, expected, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)
    torch.testing.assert_close(mean, stream.float().mean(dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean, middle, rtol=1e-5, atol=1e-3 if dtype == torch.float16 else 1e-6)


def test_a_known_mean_is_taken(device: str) -> None:
    x = torch.randn(2, 33, 100, generator=torch.Generator().manual_seed(0)).to(device)
    mean = torch.full((2, 100), 0.25, device=device)
    expected = (x - 0.25).square().sum(dim=-1)
    for module in (launch, reference):
        torch.testing.assert_close(module.token_distance(x, mean), expected, rtol=1e-5, atol=1e-4)
