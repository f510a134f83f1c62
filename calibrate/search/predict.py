"""Predict the squared error and the price (FLOPs, or time by a cost table) of combinations from what single actions cost.

Errors of different actions are taken as independent, so their squares add; one factor for each kind of action (where run and
guidance end, tokens, layers) is fitted to combinations that were run. The price of one scale's change is taken with all other
scales whole; the chosen few are counted exactly. Combinations are never listed: for each place where run and guidance end, the
options of one scale after the other are merged into the frontier so far, and what is worse in both is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...profiles.plan import plan_scales
from .actions import Change, Plan, build
from .price import Price

Option = tuple[Change, float, float]
"""What a scale gives up, the price saved, the squared error."""
Prices = dict[tuple[int, bool, Change], float]
"""Of one scale by scale, whether it is guided, and what it gives up."""
LAYERS_IDLE = (0, 1, 2, 3, 4, 6, 8, 12, 16)
# the frontier of one merge is thinned to so many points: enough for a step of 1 % in price
FRONTIER_POINTS = 400
FACTOR_RANGE = (0.3, 3.0)


@dataclass(slots=True)
class Costs:
    """What single actions cost, and the fitted factors.

    Attributes:
        ends: Mean squared error by (scales that run, scales with guidance, whether their difference is reused afterwards).
        tokens: By scale and change, tokens pruned alone.
        layers: By scale and layer, one layer left out, its update reused or not, whichever costs less.
        reused: By scale, the layers that cost less with their update reused.
        factors: Of ends, tokens and layers in a combination.
    """

    ends: dict[tuple[int, int, bool], float] = field(default_factory=dict)
    tokens: dict[int, dict[Change, float]] = field(default_factory=dict)
    layers: dict[int, dict[int, float]] = field(default_factory=dict)
    reused: dict[int, set[int]] = field(default_factory=dict)
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def parts(self, plan: Plan) -> tuple[float, float, float]:
        """Squared errors of a plan's ends, tokens and layers, before the factors."""
        tokens = layers = 0.0
        for scale, change in plan.changes.items():
            if scale < plan.runs:
                tokens += self.tokens[scale][Change(change.share, change.fill)] if change.share < 1 else 0.0
                layers += sum(self.layers[scale][layer] for layer in change.idle)
        return self.ends[plan.ends], tokens, layers

    def change(self, tokens: Change, scale: int, idle: Iterable[int]) -> Change:
        """A change of tokens with layers that do not run besides, each the way that costs less."""
        ways = self.reused.get(scale, set())
        reused = tuple(sorted(ways.intersection(idle)))
        return replace(tokens, skipped=tuple(sorted(set(idle) - ways)), reused=reused)

    def predict(self, plan: Plan) -> float:
        """Mean squared error of a plan."""
        return float(np.dot(self.parts(plan), self.factors))

    def fit(self, measured: Iterable[tuple[Plan, float]]) -> None:
        """Fit the factors to combinations that were run; each counts by its relative error."""
        rows, ones = [], []
        for plan, error in measured:
            parts = self.parts(plan)
            if error > 0 and sum(part > 0 for part in parts) > 1:
                rows.append([part / error for part in parts])
                ones.append(1.0)
        if len(rows) < len(self.factors):
            return
        # a weak pull towards 1 keeps a factor that nothing determines
        pull = np.eye(3) * 0.1 * np.sqrt(len(rows))
        matrix, target = np.vstack([np.array(rows), pull]), np.concatenate([ones, pull.sum(axis=1)])
        solved = np.linalg.lstsq(matrix, target, rcond=None)[0]
        first, second, third = (float(value) for value in np.clip(solved, *FACTOR_RANGE))
        self.factors = (first, second, third)


def frontier(costs: Costs, price: Price) -> list[tuple[float, float, Plan]]:
    """Non-dominated combinations by prediction: (price, squared error, plan), price falling."""
    points: list[tuple[float, float, Plan]] = []
    prices: Prices = {}
    for ends, error in costs.ends.items():
        points += _merged(costs, price, _at(ends), error * costs.factors[0], prices)
    return thin(points, None)


def _at(ends: tuple[int, int, bool]) -> Plan:
    runs, guided, reuse = ends
    return Plan(runs, guided, reuse=reuse)


def _merged(costs: Costs, price: Price, base: Plan, error: float, prices: Prices) -> list[tuple[float, float, Plan]]:
    """Frontier of all changes at one place where run and guidance end."""
    whole = {plan.scale: price.scale(plan) for plan in plan_scales(build(base, price.profile))}
    points = [(price.fixed + sum(whole.values()), error, base)]
    for scale in sorted({*costs.tokens, *costs.layers}):
        if scale >= base.runs:
            continue
        options = [(Change(), 0.0, 0.0), *_useful(_options(costs, price, base, scale, whole[scale], prices))]
        points = thin(
            [
                (total - saved, found + extra, _with(plan, scale, change))
                for total, found, plan in points
                for change, saved, extra in options
                if _agree(plan, change)
            ],
            FRONTIER_POINTS,
        )
    return points


def _useful(options: Iterable[Option]) -> Iterator[Option]:
    """Options that no other of the same fill beats in both price and error."""
    fills: dict[str | None, list[Option]] = {}
    for option in sorted(options, key=lambda o: (-o[1], o[2])):
        kept = fills.setdefault(option[0].fill if option[0].share < 1 else None, [])
        if not kept or option[2] < kept[-1][2]:
            kept.append(option)
    return itertools.chain.from_iterable(fills.values())


def _options(
    costs: Costs, price: Price, base: Plan, scale: int, whole: float, prices: Prices
) -> Iterator[tuple[Change, float, float]]:
    """(change, price saved, squared error) for each share, fill and number of layers left out, least harmful first."""
    order = sorted(costs.layers.get(scale, {}), key=lambda layer: costs.layers[scale][layer])
    pruned = costs.tokens.get(scale, {})
    for tokens in (Change(), *pruned):
        for skipped in (count for count in LAYERS_IDLE if count < max(1, len(order))):
            change = costs.change(tokens, scale, order[:skipped])
            if change == Change():
                continue
            # all other scales are whole, so its price depends on its own rows alone, not on where the run ends
            key = (scale, scale < base.guided, change)
            if key not in prices:
                plans = plan_scales(build(replace(base, changes={scale: change}), price.profile))
                prices[key] = next(price.scale(plan) for plan in plans if plan.scale == scale)
            now = prices[key]
            error = costs.factors[1] * pruned.get(tokens, 0.0)
            error += costs.factors[2] * sum(costs.layers[scale][layer] for layer in order[:skipped])
            yield change, whole - now, error


def _with(plan: Plan, scale: int, change: Change) -> Plan:
    return plan if change == Change() else replace(plan, changes={**plan.changes, scale: change})


def _agree(plan: Plan, change: Change) -> bool:
    """One fill a schedule: an update cached of the last whole scale must not be asked of held scales."""
    fills = {c.fill for c in (*plan.changes.values(), change) if c.share < 1}
    return len(fills) < 2


def thin(points: Sequence[tuple[float, float, Plan]], limit: int | None) -> list[tuple[float, float, Plan]]:
    """Points that no other beats in both price and error, at most `limit`, evenly over the logarithm of the price."""
    best: list[tuple[float, float, Plan]] = []
    for point in sorted(points, key=lambda p: (p[0], p[1])):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    best.reverse()
    if limit is None or len(best) <= limit:
        return best
    position = np.log([p[0] for p in best])
    wanted = np.linspace(position[0], position[-1], limit)
    chosen = sorted({int(np.argmin(np.abs(position - value))) for value in wanted})
    return [best[i] for i in chosen]


def by_speedup(points: Sequence[tuple[float, float, Plan]], whole: float, targets: Sequence[float], each: int) -> list[Plan]:
    """For each speed-up, the `each` plans of least predicted error that reach it."""
    found: dict[object, Plan] = {}
    for target in targets:
        reach = sorted((p for p in points if whole / p[0] >= target), key=lambda p: p[1])[:each]
        found |= {plan.key(): plan for _, _, plan in reach}
    return list(found.values())
