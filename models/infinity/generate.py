"""The common loop with Infinity's noise as one tensor an image: uniform numbers for the tokens of all scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...profiles.model import ModelProfile
from ...profiles.schedule import Schedule
from .. import generate as common
from ..family import checked_plans
from ..generate import Noise, OnScale, condition_rows
from ..state import State
from .step import ScaleStep
from .transformer import Infinity

__all__ = ["OnScale", "build_steps", "condition_rows", "generate", "run_scales"]


def build_steps(model: Infinity, profile: ModelProfile, schedule: Schedule, observe: bool = False) -> tuple[ScaleStep, ...]:
    """A step for each scale that runs.

    Raises:
        ScheduleError: The schedule was made for another model or geometry, or leaves a choice to each image.
    """
    return tuple(ScaleStep(model, profile, plan, observe).eval() for plan in checked_plans(schedule, profile))


@torch.inference_mode()
def generate(
    steps: Sequence[ScaleStep],
    text: Tensor,
    lengths: Tensor,
    noise: Tensor,
    negative: tuple[Tensor, Tensor] | None = None,
    on_scale: OnScale | None = None,
) -> Tensor:
    """As `models.generate.generate`; noise `[B, tokens of the full schedule, token bits]`, uniform in [0, 1)."""
    return common.generate(steps[0].model, steps, text, lengths, _by_scale(steps, noise), negative, on_scale)


def run_scales(steps: Sequence[ScaleStep], state: State, noise: Tensor, on_scale: OnScale | None = None) -> State:
    """As `models.generate.run_scales`; noise as of `generate`."""
    return common.run_scales(steps, state, _by_scale(steps, noise), on_scale)


def _by_scale(steps: Sequence[ScaleStep], noise: Tensor) -> Noise:
    sizes = steps[0].profile.sizes if steps else ()
    return [{"noise": part} for part in noise.split([h * w for h, w in sizes], dim=1)] if sizes else []
