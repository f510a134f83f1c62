"""The schedules that need no measurement: dense, skip-N, noguide-N and the rules of others.

Strong baselines, and the yardstick of every other.
"""

from __future__ import annotations

import re

from .errors import ScheduleError
from .fastvar import fastvar, fastvar_official
from .model import ModelProfile
from .schedule import ScaleRule, Schedule
from .skipvar import DEFAULT, skipvar

FIXED = {"fastvar": fastvar, "fastvar-official": fastvar_official}
"""Policies of others, each a change of the dense schedule."""
FIXED_NAMES = "dense, skip-N, noguide-N, skip-N+noguide-M, fastvar, fastvar-official, skipvar, skipvar-86 or skipvar-88"
"""As help texts and errors list them."""


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
    """A fixed policy: `dense`, `skip-N` (the last N scales are not run), `noguide-N` (the last N run without guidance), ...

    `skip-N+noguide-M` is both: of the last M scales the last N are not run and the others run without guidance.

    `fastvar` and `fastvar-official` are told of in `fastvar.py`, `skipvar` and `skipvar-MODEL` in `skipvar.py`.

    Raises:
        ScheduleError: The policy is none of these, or N does not fit the model.
    """
    base = dense(profile)
    if policy == "dense":
        return base
    if policy in FIXED:
        return FIXED[policy](base)
    if policy.partition("-")[0] == "skipvar":
        return skipvar(base, policy.partition("-")[2] or DEFAULT)
    match = re.fullmatch(r"skip-(\d+)(?:\+noguide-(\d+))?|noguide-(\d+)", policy)
    if match is None:
        raise ScheduleError(f"policy {policy!r} is not known; choose toprovar, auto or {FIXED_NAMES}")
    skipped, unguided, scales = int(match[1] or 0), int(match[2] or match[3] or 0), len(base.scales)
    if any(text is not None and not 1 <= int(text) < scales for text in match.groups()):
        raise ScheduleError(f"policy {policy}: N must be 1 to {scales - 1} for the {scales} scales of {profile.name}")
    if unguided and not base.guided:
        raise ScheduleError(f"policy {policy}: the model runs without guidance at this cfg, there is none to drop")
    if match[2] and unguided <= skipped:
        raise ScheduleError(f"policy {policy}: the last {skipped} scales do not run; noguide-M needs M of more than {skipped}")
    rules = tuple(
        ScaleRule(
            scale=rule.scale,
            size=rule.size,
            run=rule.scale < scales - skipped,
            guidance=base.guided and rule.scale < scales - unguided,
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
