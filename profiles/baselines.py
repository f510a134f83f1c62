"""The schedules that need no measurement: dense, skip-N and noguide-N. Strong baselines, and the yardstick of every other."""

from __future__ import annotations

import re

from .errors import ScheduleError
from .model import ModelProfile
from .schedule import ScaleRule, Schedule


def dense(profile: ModelProfile) -> Schedule:
    """Everything runs."""
    guided = profile.sampling.guided
    rules = tuple(ScaleRule(scale=i, size=size, guidance=guided) for i, size in enumerate(profile.sizes))
    return Schedule(
        model=profile.name,
        policy="dense",
        layers=profile.transformer.depth,
        guided=guided,
        scales=rules,
        entropy_layer=profile.transformer.depth // 2,
    )


def baseline(policy: str, profile: ModelProfile) -> Schedule:
    """`dense`, `skip-N` (the last N scales are not run) or `noguide-N` (the last N scales run without guidance).

    Raises:
        ScheduleError: The policy is none of these, or N does not fit the model.
    """
    base = dense(profile)
    if policy == "dense":
        return base
    match = re.fullmatch(r"(skip|noguide)-(\d+)", policy)
    if match is None:
        raise ScheduleError(f"policy {policy!r} is not known; choose toprovar, auto, dense, skip-N or noguide-N")
    kind, last, scales = match[1], int(match[2]), len(base.scales)
    if not 1 <= last < scales:
        raise ScheduleError(f"policy {policy}: N must be 1 to {scales - 1} for the {scales} scales of {profile.name}")
    if kind == "noguide" and not base.guided:
        raise ScheduleError(f"policy {policy}: the model runs without guidance (cfg 1), there is none to drop")
    first = scales - last
    rules = tuple(
        ScaleRule(
            scale=rule.scale,
            size=rule.size,
            run=kind != "skip" or rule.scale < first,
            guidance=base.guided and (kind != "noguide" or rule.scale < first),
        )
        for rule in base.scales
    )
    return Schedule(
        model=base.model,
        policy=policy,
        layers=base.layers,
        guided=base.guided,
        scales=rules,
        entropy_layer=base.entropy_layer,
    )
