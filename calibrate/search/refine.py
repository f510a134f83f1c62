"""One step from combinations that were run: where run or guidance ends, one more layer or one less, more tokens or fewer.

Predictions add up what single actions cost alone, and near the best combinations they are off by a factor of two to four: a
layer costs less where guidance has ended, say. So a neighbour is predicted from the combination beside it that was run.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...profiles.errors import ScheduleError
from ...profiles.model import ModelProfile
from .actions import SHARES, Change, Plan, build, late_scales
from .predict import Costs
from .price import Price

Run = tuple[Plan, float, float]
"""A combination that was run: its speed-up and mean squared error."""


def promising(
    best: Sequence[Run], known: Mapping[object, object], costs: Costs, price: Price, whole: float, count: int
) -> list[Plan]:
    """The neighbours that should gain most on what was run, at most `count`.

    Args:
        best: The front, speed-up rising.
        known: Keys of all plans that were run.
        costs: What single actions cost.
        price: What a schedule costs.
        whole: Price of the dense schedule.
        count: How many are returned.
    """
    speeds, errors = [speed for _, speed, _ in best], [error for _, _, error in best]
    gains: dict[object, tuple[float, Plan]] = {}
    for plan, _, error in best:
        predicted = costs.predict(plan)
        for other in neighbours(plan, costs, price.profile) if predicted > 0 else ():
            if other.key() in known:
                continue
            expected = costs.predict(other) * error / predicted
            place = _place(speeds, other, price, whole)
            if place < len(best) and expected > 0 and errors[place] / expected > gains.get(other.key(), (1.0, other))[0]:
                gains[other.key()] = errors[place] / expected, other
    ranked = sorted(gains.values(), key=lambda gain: -gain[0])
    return [plan for _, plan in ranked[:count]]


def _place(speeds: Sequence[float], plan: Plan, price: Price, whole: float) -> int:
    """Which point of the front a plan would replace: the slowest that is at least as fast; behind all if there is none."""
    try:
        return bisect.bisect_left(speeds, whole / price.schedule(build(plan, price.profile)))
    except ScheduleError:
        # the state cannot hold it
        return len(speeds)


def neighbours(plan: Plan, costs: Costs, profile: ModelProfile) -> Iterator[Plan]:
    """Plans that differ in one step and whose parts were run alone."""
    count = len(profile.sizes)
    for ends in _other_ends(plan, count):
        if ends in costs.ends:
            runs, guided, reuse = ends
            changes = {scale: change for scale, change in plan.changes.items() if scale < runs}
            yield Plan(runs, guided, changes, reuse)
    fills = {change.fill for change in plan.changes.values() if change.share < 1}
    for scale in late_scales(profile):
        if scale < plan.runs:
            now = plan.changes.get(scale, Change())
            for change in (*_other_layers(now, scale, costs), *_other_shares(now, scale, costs, fills)):
                changes = {**plan.changes, scale: change}
                yield replace(plan, changes={s: c for s, c in changes.items() if c != Change()})


def _other_ends(plan: Plan, count: int) -> list[tuple[int, int, bool]]:
    guided = min(plan.guided, plan.runs)
    places = ((plan.runs - 1, guided), (plan.runs + 1, guided), (plan.runs, guided - 1), (plan.runs, guided + 1))
    # elsewhere, the difference of the guided rows may be worth reusing where it was not, or no longer
    found = [(runs, last, way) if last < runs else (runs, count, False) for runs, last in places for way in (False, True)]
    if guided < plan.runs:
        found.append((plan.runs, guided, not plan.reuse))
    return [ends for ends in dict.fromkeys(found) if ends != plan.ends]


def _other_layers(now: Change, scale: int, costs: Costs) -> Iterator[Change]:
    """The cheapest layer that runs left out, or the dearest of the others put back."""
    errors = costs.layers.get(scale, {})
    order = sorted(errors, key=lambda layer: errors[layer])
    idle = [layer for layer in order if layer in now.idle]
    tokens = Change(now.share, now.fill)
    if len(idle) < len(order) - 1:
        cheapest = next(layer for layer in order if layer not in idle)
        yield costs.change(tokens, scale, (*idle, cheapest))
    if idle:
        yield costs.change(tokens, scale, idle[:-1])


def _other_shares(now: Change, scale: int, costs: Costs, fills: set[str]) -> Iterator[Change]:
    """The next share of tokens up and down, with the fill of the plan's other scales."""
    shares = sorted({1.0, *SHARES})
    place = shares.index(now.share)
    for share in (*shares[max(place - 1, 0) : place], *shares[place + 1 : place + 2]):
        for fill in sorted(fills) or sorted({change.fill for change in costs.tokens.get(scale, {})}):
            tokens = Change(share, fill) if share < 1 else Change()
            if share == 1 or tokens in costs.tokens.get(scale, {}):
                yield replace(tokens, skipped=now.skipped, reused=now.reused)
