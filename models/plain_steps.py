"""All scales of a schedule in one call, on the steps as they are: for families without blocks of their own for a GPU.

torch.compile fuses what stands between the matrix products of a block, a captured graph saves the launches, and attention runs
the kernels wherever entropy is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..profiles.plan import ScalePlan
from .generate import Conditioned, Noise, run_scales
from .state import Attended, State
from .step import ScaleStep

SHAPES_MOST = 128
"""Shapes that one block may be compiled for; every scale has its own, with and without some of its rows or tokens."""

SHAPES_A_SCALE = 2
"""Above, a scale's blocks are compiled for any shape: compiling takes seconds a shape."""


class PlainSteps:
    """See `models.family.ImageSteps`.

    Args:
        transformer: Of the steps.
        steps: All scales; blocks of theirs are compiled where they run on a GPU, the modules stay as they are.
        compiled: False compiles nothing.
    """

    def __init__(self, transformer: Conditioned, steps: Sequence[ScaleStep], compiled: bool = True) -> None:
        self.transformer, self.steps = transformer, steps
        if compiled and next(iter(steps[0].parameters())).is_cuda:
            compile_blocks(steps)

    def begin(self, text: Tensor, lengths: Tensor) -> State:
        """The state before the first scale."""
        return self.transformer.initial_state(text, lengths)

    def run(self, text: Tensor, lengths: Tensor, noise: Noise) -> Tensor:
        """Summed codes `[B, d, H, W]`."""
        return run_scales(self.steps, self.begin(text, lengths), noise)["summed"]

    def resume(self, text: Tensor, lengths: Tensor, state: State, noise: Noise) -> Tensor:
        """Summed codes `[B, d, H, W]`, from the state that earlier scales left."""
        # a search goes on from whole states, again and again
        begun = {} if "sos" in state else self.begin(text, lengths)
        return run_scales(self.steps, {**begun, **state}, noise)["summed"]


def compile_blocks(steps: Sequence[ScaleStep], **options: Any) -> None:
    """Let steps of one model run its blocks compiled: once a shape, since blocks of one shape share what was compiled.

    Where layers of a scale keep a number of tokens each, there may be a shape a layer: those share one of any shape.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, SHAPES_MOST)
    # scales of attention are no shapes
    config.specialize_float = True
    blocks = list(steps[0].blocks())
    fixed, free = ([CompiledBlock(block, dynamic=dynamic, **options) for block in blocks] for dynamic in (False, True))
    for step in steps:
        found = fixed if shapes_of(step.plan) <= SHAPES_A_SCALE else free
        step.blocks = lambda found=found: found  # type: ignore[method-assign, misc]


class CompiledBlock:
    """A block, and each of its branches where a layer runs them one by one, compiled.

    Args:
        block: Its methods that end in `_branch` are its branches.
        options: Of `torch.compile`.
    """

    def __init__(self, block: Any, **options: Any) -> None:
        self._whole: Callable[..., Attended] = torch.compile(block, **options)
        for name in dir(type(block)):
            if name.endswith("_branch"):
                setattr(self, name, torch.compile(getattr(block, name), **options))

    def __call__(self, *args: Any) -> Attended:
        """The whole block."""
        return self._whole(*args)


def shapes_of(plan: ScalePlan) -> int:
    """How many shapes the layers of a scale have: tokens that run, cached keys."""
    return len({(plan.kept[layer], plan.past[layer]) for layer in plan.layers})
