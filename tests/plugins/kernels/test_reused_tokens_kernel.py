"""Streams put back together against the definition; grids that grow, shrink and stay, of odd shapes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.reused_tokens import launch, reference
from toprovar.plugins.token_select.reference import slots as slots_of

GRIDS = [((3, 4), (5, 7)), ((4, 4), (4, 4)), ((6, 5), (2, 3)), ((2, 3), (1, 8)), ((1, 1), (3, 2))]


@pytest.mark.parametrize(("share", "view"), [(0.0, False), (0.5, True), (1.0, False)], ids=["one", "half of a map", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_stream_matches_the_definition(
    grid: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype, share: float, view: bool, device: str
) -> None:
    source, target = grid
    generator = torch.Generator().manual_seed(0)
    tokens, cells = target[0] * target[1], source[0] * source[1]
    count = max(1, round(share * tokens))
    index = torch.stack([torch.randperm(tokens, generator=generator)[:count].sort().values for _ in range(2)]).to(device)
    x, part, cached = (torch.randn(2, n, 300, generator=generator).to(device, dtype) for n in (tokens, count, cells))
    if view:
        # a map in the usual order: channels are far apart
        cached = cached.transpose(1, 2).contiguous().transpose(1, 2)
    slots = slots_of(index, tokens)
    found = launch.put_back(x, part, slots, cached, source, target)
    expected = reference.put_back(x, part, slots, cached, source, target)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.gather(1, index[..., None].expand(-1, -1, 300)), part)


@pytest.mark.parametrize(("some", "onto"), [(False, False), (False, True), (True, True)], ids=["alone", "onto", "some onto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_enlarged_tokens_match_the_definition(
    grid: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype, some: bool, onto: bool, device: str
) -> None:
    source, target = grid
    generator = torch.Generator().manual_seed(0)
    tokens = target[0] * target[1]
    count = (tokens + 1) // 2 if some else tokens
    index = torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(2)]).to(device)
    cached, stream = (torch.randn(2, n, 100, generator=generator).to(device, dtype) for n in (source[0] * source[1], count))
    given = index if some else None, stream if onto else None
    found, expected = (module.enlarge(cached, source, target, *given) for module in (launch, reference))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert found.is_contiguous()
