"""The kernel of few-row linear layers against torch in fp32; it is written for Hopper and has no interpreter."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins import skinny_linear

SHAPES = [(6144, 2048), (2048, 2048), (2048, 8192), (640, 256), (200, 384)]  # of 2B, a small one, one with half a tile
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def hopper(device: str) -> None:
    if device == "cpu" or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernel runs on Hopper only")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 18, 32, 64, 72, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_torch(shape: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    features, channels = shape
    x = torch.randn(2, rows // 2 or 1, channels, generator=generator).to("cuda", dtype)[: min(rows, 2)]
    weight = (torch.randn(shape, generator=generator) * channels**-0.5).to("cuda", dtype)
    bias = torch.randn(features, generator=generator).to("cuda", dtype)
    expected = F.linear(x.float(), weight.float(), bias.float())
    limits = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    parts = skinny_linear.partial_sums(x, weight, bias)
    assert parts.shape[1:] == expected.shape
    torch.testing.assert_close(parts.sum(0), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(skinny_linear.summed(parts, x).float(), expected, **limits)
    torch.testing.assert_close(skinny_linear.linear(x, weight, bias).float(), expected, **limits)
    gelu = skinny_linear.linear(x, weight, bias, gelu=True).float()
    torch.testing.assert_close(gelu, F.gelu(expected, approximate="tanh"), **limits)
    without = skinny_linear.linear(x, weight, None).float()
    torch.testing.assert_close(without, F.linear(x.float(), weight.float()), **limits)


def test_a_chain_of_dependent_kernels_is_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(2048, 2048, generator=generator) * 2048**-0.5).to("cuda", torch.bfloat16)
    x = torch.randn(8, 2048, generator=generator).to("cuda", torch.bfloat16)
    expected = x
    for _ in range(40):
        expected = F.linear(expected.float(), weight.float()).to(torch.bfloat16)
    for _ in range(20):
        found = x
        for _ in range(40):
            found = skinny_linear.linear(found, weight, None)
        torch.testing.assert_close(found.float(), expected.float(), rtol=0.1, atol=0.05 * float(expected.abs().max()))


def test_same_bits_every_time() -> None:
    x = torch.randn(32, 8192, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(2048, 8192, device="cuda", dtype=torch.bfloat16)
    first = skinny_linear.partial_sums(x, weight, None)
    assert all(torch.equal(first, skinny_linear.partial_sums(x, weight, None)) for _ in range(10))


def test_more_rows_are_left_to_torch() -> None:
    x = torch.randn(129, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    assert skinny_linear.partial_sums(x, weight, None).ndim == 2
