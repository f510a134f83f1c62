"""The kernel between projection and attention against the definition: strided caches, own tokens a row, odd head widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.rotary_cache import launch, reference

SHAPES = [(1, 1, 2, 64), (2, 9, 16, 128), (2, 5, 28, 128), (1, 4, 3, 48)]  # R, N, H, D
# one rounding of the result in its dtype; q is up to 10 here
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _angles(rows: int, tokens: int, width: int, own: bool) -> tuple[Tensor, Tensor]:
    shape = (rows, 1, tokens, width // 2) if own else (tokens, width // 2)
    angles = torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 20
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape: tuple[int, int, int, int], dtype: torch.dtype, own: bool, device: str) -> None:
    rows, tokens, heads, width = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(rows, tokens, 3, heads, width, generator=generator).to(device, dtype)
    factor = (torch.rand(heads, generator=generator) * 30 + 1).to(device)
    cos, sin = (part.to(device) for part in _angles(rows, tokens, width, own))
    results = []
    for run in (reference.rotary_cache, launch.rotary_cache):
        # the cache is longer than what is written, as one layer's part of an arena is
        arena = torch.zeros(2, rows, heads, tokens + 7, width, device=device, dtype=dtype)
        q = run(qkv.clone(), factor, cos, sin, arena[0, :, :, 3 : 3 + tokens], arena[1, :, :, 3 : 3 + tokens])
        assert q.shape == (rows, heads, tokens, width)
        results.append((q, arena))
    (q_expected, arena_expected), (q_found, arena_found) = results
    torch.testing.assert_close(q_found, q_expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    # what lies around is untouched, zeros compare as such
    torch.testing.assert_close(arena_found, arena_expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(arena_found[1], arena_expected[1]), "values are copied, bit for bit"


def test_a_vector_of_zeros_stays_zero(device: str) -> None:
    qkv = torch.zeros(1, 1, 3, 2, 64, device=device)
    cos, sin = (part.to(device) for part in _angles(1, 1, 64, False))
    keys = torch.ones(1, 2, 1, 64, device=device)
    q = launch.rotary_cache(qkv, torch.ones(2, device=device), cos, sin, keys, keys.clone())
    assert not q.any()
    assert not keys.any()
