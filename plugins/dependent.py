"""Dependent launch (CUDA's programmatic dependent launch): a kernel is set up, and may read weights, while the one before ends.

Every kernel between two matrix products of a block takes part: it lets the next one start at once, and waits for the one
before as its first step, so that only what no kernel writes is read ahead. Compute capability 9.0 and above.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def dependent(tensor: Tensor) -> bool:
    """Whether kernels on the GPU of a tensor are launched so."""
    return tensor.is_cuda and _capable(tensor.device.index)


@cache
def _capable(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
