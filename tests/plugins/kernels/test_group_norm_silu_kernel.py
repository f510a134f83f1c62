"""Group norm, swish and the sum before them against the definition."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.group_norm_silu import launch, reference

SHAPES = [(1, 64, 4, 4, 32), (2, 96, 5, 7, 24), (1, 128, 33, 17, 32)]  # B, C, H, W, groups
# one rounding of the result in its dtype; fp32: squares around a mean of 6 lose a little in the sum of a share
TOLERANCE = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("summed", [True, False], ids=["sum", "one"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, summed: bool, biased: bool, device: str
) -> None:
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter does not round bf16 as a GPU does")
    *size, groups = shape
    generator = torch.Generator().manual_seed(0)

    def image() -> torch.Tensor:
        x = torch.randn(size, generator=generator) + 3
        return x.to(device, dtype).contiguous(memory_format=torch.channels_last)

    x, update = image(), image() if summed else None
    weight, shift, bias = torch.randn(3, size[1], generator=generator).to(device, dtype).unbind(0)
    arguments = (x, groups, weight, shift, 1e-6, update, bias if biased else None)
    for found, expected in zip(launch.group_norm_silu(*arguments), reference.group_norm_silu(*arguments), strict=True):
        torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


def test_a_large_mean_does_not_drown_the_variance(device: str) -> None:
    """Squares summed from zero leave nothing of a spread of 1 around 300; torch's own fp32 norm is 0.3 away here."""
    x = torch.randn(1, 32, 40, 40, generator=torch.Generator().manual_seed(0)) + 300
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 32, eps=1e-6))
    one, zero = torch.ones(32, device=device), torch.zeros(32, device=device)
    image = x.to(device).contiguous(memory_format=torch.channels_last)
    _, found = launch.group_norm_silu(image, 32, one, zero, 1e-6, None, None)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-3, atol=1e-3)
