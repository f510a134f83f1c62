"""Inputs that token selection and row moves must get right, for the definition and for the kernels alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# VAR scales (144 = 12 x 12), one below a power of two, the longest row a kernel takes
LENGTHS = [1, 2, 25, 144, 255, 4096, 16384]
CASES = ("normal", "heavy ties", "all equal", "NaN, infinities and both zeros", "all NaN", "neighbouring bits")


def scores_of(n: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """`[6, n]`, a row for each of `CASES`."""
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(n, generator=generator)
    ties = torch.randint(-2, 3, (n,), generator=generator).float()
    odd = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-7, -1.0])
    odd = odd[torch.randint(0, len(odd), (n,), generator=generator)]
    near = 1 + torch.randint(0, 7, (n,), generator=generator) * torch.finfo(dtype).eps
    rows = [normal, ties, torch.full((n,), -3.5), odd, torch.full((n,), float("nan")), near]
    return torch.stack([row.to(dtype) for row in rows]).to(device)


def counts(n: int) -> list[int]:
    """Values of k: the ends, and quarters as schedules ask for."""
    return sorted({1, max(1, n // 4), max(1, n // 2), max(1, n - 1), n})


@dataclass(frozen=True, slots=True)
class RowCase:
    """`[B, N, C]` of a dtype, k rows moved; `layout` says how x and rows lie in memory."""

    name: str
    shape: tuple[int, int, int]
    k: int
    dtype: torch.dtype
    layout: str = "dense"

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """x, indices (shuffled, distinct) and rows."""
        batch, n, width = self.shape
        generator = torch.Generator().manual_seed(n * width)

        def numbers(count: int) -> Tensor:
            values = torch.randint(-99, 100, (batch, count, 3, 2 * width), generator=generator).to(self.dtype)
            views = {
                "dense": values[:, :, 1, :width].contiguous(),
                "strided": values[:, :, 1, :width],
                "expanded": values[:1, :, 1, :width].expand(batch, -1, -1),
                "every other channel": values[:, :, 1, ::2],
                "batch inside": values[:, :, 1, :width].transpose(0, 1).contiguous().transpose(0, 1),
            }
            return views[self.layout].to(device)

        index = torch.stack([torch.randperm(n, generator=generator)[: self.k] for _ in range(batch)])
        return numbers(n), index.to(device), numbers(self.k)


def row_cases() -> list[RowCase]:
    return [
        RowCase("one row", (1, 1, 1), 1, torch.float32),
        RowCase("25 of 64 bf16", (2, 64, 48), 25, torch.bfloat16),
        RowCase("wider than a tile", (2, 7, 2100), 3, torch.float16),
        RowCase("all rows", (3, 9, 33), 9, torch.float32),
        RowCase("strided", (2, 17, 64), 5, torch.float32, "strided"),
        RowCase("expanded batch", (3, 17, 64), 5, torch.float32, "expanded"),
        RowCase("every other channel", (2, 17, 10), 5, torch.float16, "every other channel"),
        RowCase("batch inside", (2, 17, 24), 5, torch.int64, "batch inside"),
        RowCase("bytes", (2, 300, 5), 144, torch.int8),
    ]
