"""The residual and norm kernel against the definition, with every part present or not."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.residual_norm import launch, reference

SHAPES = [(1, 1, 64), (2, 3, 2048), (2, 5, 3584), (4, 7, 100)]  # widths of 2B, 8B, and one that is no power of two
# one rounding of the result in its dtype, and the order of the sums
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("one", [True, False], ids=["adaptive", "affine"])
@pytest.mark.parametrize("gated", [True, False, None], ids=["gated", "plain", "none"])
@pytest.mark.parametrize("normed", [True, False], ids=["norm", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(
    shape: tuple[int, int, int], dtype: torch.dtype, normed: bool, gated: bool | None, one: bool, device: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, _, channels = shape
    x = torch.randn(shape, generator=generator).to(device, dtype)
    update = None if gated is None else torch.randn(shape, generator=generator).to(device, dtype)
    # slices of one tensor, as the modulation of a block is
    vectors = torch.randn(rows, 3, channels, generator=generator).to(device, dtype)
    gate = vectors[:, 0] if gated else None
    scale, shift = (vectors[:1, 1], vectors[:1, 2]) if not one else (vectors[:, 1], vectors[:, 2])
    before = x.clone()
    found = launch.residual_norm(x, update, gate, scale if normed else None, shift if normed else None, one)
    expected = reference.residual_norm(x, update, gate, scale if normed else None, shift if normed else None, one)
    assert torch.equal(x, before)
    for one_found, one_expected in zip(found, expected, strict=True):
        assert (one_found is None) == (one_expected is None)
        if one_found is not None and one_expected is not None:
            torch.testing.assert_close(one_found, one_expected, rtol=TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])


def test_a_constant_row_has_a_norm_of_zero(device: str) -> None:
    x = torch.full((1, 2, 64), 3.0, device=device)
    scale, shift = torch.full((1, 64), 5.0, device=device), torch.full((1, 64), 0.25, device=device)
    _, normed = launch.residual_norm(x, None, None, scale, shift, False)
    assert normed is not None
    assert torch.equal(normed, torch.full_like(x, 0.25))
