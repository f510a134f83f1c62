"""Sum and enlargement against the definition: bit for bit, as both round once."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.upsample_sum import launch, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 64, 1, 1), (2, 96, 5, 7), (3, 128, 9, 4)], ids=str)
def test_matches_the_definition(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, update = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    bias = torch.randn(shape[1], generator=generator).to(device, dtype)
    assert torch.equal(launch.upsample_sum(x, update, bias), reference.upsample_sum(x, update, bias))
