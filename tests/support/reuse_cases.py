"""Schedules that reuse guidance differences and layer updates, for the small model of every family."""

from __future__ import annotations

from dataclasses import replace

from toprovar.profiles.baselines import dense
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.schedule import Schedule, TokenRule


def reusing(profile: ModelProfile, held: bool = False) -> Schedule:
    """The last two scales guided by the difference of the one before; layer 1 reused at both, half the last tokens held."""
    base = dense(profile)
    rules = list(base.scales)
    for rule in rules[-2:]:
        rules[rule.scale] = replace(rule, guidance=False, guidance_reuse=True, reuse_layers=(1,))
    if held:
        half = TokenRule(kept=(rules[-1].count // 2,) * base.layers)
        rules[-1] = replace(rules[-1], tokens=half)
    return replace(base, policy="reuse", scales=tuple(rules))
