"""Schedules whose images look, pick a rung and then run densely: against the dense schedule they tell what picking takes."""

from __future__ import annotations

from dataclasses import replace

from ..calibrate.search.adaptive import decision_scales
from ..profiles.baselines import dense
from ..profiles.decision import Decision, LinearModel, thresholds
from ..profiles.errors import ScheduleError
from ..profiles.model import ModelProfile
from ..profiles.rules import Rung
from ..profiles.schedule import Schedule
from ..profiles.skipvar import skipvar

WHOLE, SHORT = "whole", "short"
"""The rung that every image picks, and one that is there because rungs are two at least."""


def decision_probes(profile: ModelProfile) -> list[Schedule]:
    """Picking by entropy after the first and the last scale that `auto --adaptive` considers, and as `skipvar` does.

    Args:
        profile: Of a model with few scales there may be none.
    """
    base = dense(profile)
    scales = decision_scales(profile)
    decisions = [Decision(scale=scale, features="entropy", models=(_always("entropy"),)) for scale in _ends(scales)]
    try:
        released = skipvar(base).decision
    except ScheduleError:
        # too few scales for it: no schedule will ask
        released = None
    if released is not None:
        decisions.append(replace(released, models=(_always("detail"),)))
    return [_picking(base, decision) for decision in decisions]


def _ends(scales: range) -> list[int]:
    return sorted({scales[0], scales[-1]}) if scales else []


def _always(features: str) -> LinearModel:
    """One rung and no limit."""
    return thresholds(0, (), (WHOLE,), features)


def _picking(base: Schedule, decision: Decision) -> Schedule:
    short = tuple(replace(rule, run=False) for rule in base.scales[decision.scale + 1 :])
    return replace(base, rungs=(Rung(name=WHOLE), Rung(name=SHORT, scales=short)), decision=decision)
