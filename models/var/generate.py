"""A schedule to steps bound to VAR's weights."""

from __future__ import annotations

from ...profiles.model import ModelProfile
from ...profiles.plan import plan_scales
from ...profiles.schedule import Schedule
from ..vq.quantizer import Quantizer
from .step import VarStep
from .transformer import Var


def build_steps(
    model: Var, quantizer: Quantizer, profile: ModelProfile, schedule: Schedule, observe: bool = False
) -> tuple[VarStep, ...]:
    """A step for each scale that runs.

    Raises:
        ScheduleError: The schedule was made for another model or geometry.
    """
    schedule.check_model(profile)
    return tuple(VarStep(model, quantizer, profile, plan, observe).eval() for plan in plan_scales(schedule))
