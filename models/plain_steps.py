"""All scales of a schedule in one call, on the steps as they are: for families without blocks of their own for a GPU.

torch.compile fuses what stands between the matrix products of a block, a captured graph saves the launches, and attention runs
the kernels wherever entropy is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .generate import Conditioned, Noise, run_scales
from .state import State
from .step import ScaleStep

SHAPES_MOST = 128
"""Shapes that one block may be compiled for; every scale has its own, with and without some of its rows or tokens."""


class PlainSteps:
    """See `models.family.ImageSteps`.

    Args:
        transformer: Of the steps.
        steps: All scales; blocks of theirs are compiled where they run on a GPU, the modules stay as they are.
    """

    def __init__(self, transformer: Conditioned, steps: Sequence[ScaleStep]) -> None:
        self.transformer, self.steps = transformer, steps
        if next(iter(steps[0].parameters())).is_cuda:
            compile_blocks(steps)

    def begin(self, text: Tensor, lengths: Tensor) -> State:
        """The state before the first scale."""
        return self.transformer.initial_state(text, lengths)

    def run(self, text: Tensor, lengths: Tensor, noise: Noise) -> Tensor:
        """Summed codes `[B, d, H, W]`."""
        return run_scales(self.steps, self.begin(text, lengths), noise)["summed"]

    def resume(self, text: Tensor, lengths: Tensor, state: State, noise: Noise) -> Tensor:
        """Summed codes `[B, d, H, W]`, from the state that earlier scales left."""
        return run_scales(self.steps, {**self.begin(text, lengths), **state}, noise)["summed"]


def compile_blocks(steps: Sequence[ScaleStep], **options: Any) -> None:
    """Let steps of one model run its blocks compiled: once a shape, since blocks of one shape share what was compiled."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_MOST)
    compiled = [torch.compile(block, dynamic=False, **options) for block in steps[0].blocks()]
    for step in steps:
        step.blocks = lambda: compiled  # type: ignore[method-assign]
