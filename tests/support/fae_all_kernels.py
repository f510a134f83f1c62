"""Launch every FAE kernel once on awkward shapes, for a memory checker."""

from __future__ import annotations

import torch
from fae_cases import inputs
from toprovar.plugins.flash_attention_entropy import flash_attention_entropy

SHAPES = [
    (1, 2, 1, 1, 128), (1, 1, 25, 55, 96), (1, 1, 65, 131, 128), (1, 1, 20, 2500, 64),
    (1, 1, 333, 131, 64), (1, 2, 333, 1, 128), (1, 1, 333, 131, 96), (1, 1, 333, 67, 224),
]  # fmt: skip

for shape in SHAPES:
    output, entropy = flash_attention_entropy(*inputs(shape, torch.bfloat16, "cuda"), 0.1)
    assert bool(output.isfinite().all() & entropy.isfinite().all()), shape
torch.cuda.synchronize()
print("all kernels ran")
