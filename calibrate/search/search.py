"""The search: elementary costs, predicted frontier, the promising combinations run, factors refitted, then their neighbours.

The products of skip-N and noguide-M and all combinations are run on every prompt, and only they can be chosen. There are many
more single actions: tokens pruned at one scale and guidance differences reused run on SINGLES_PROMPTS prompts, single layers on
LAYERS_PROMPTS. Their errors are scaled by what the products lose on all prompts over what they lose on those few.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ...profiles.baselines import dense
from ...profiles.errors import ScheduleError
from ...profiles.plan import plan_scales
from ...profiles.schedule import Schedule
from .actions import Plan, build, grid, layer_changes, reused_ends, token_changes
from .predict import Costs, by_speedup, frontier
from .price import Price
from .refine import promising
from .trials import Fidelity, Trials

TARGETS = (1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.4, 4.0, 5.0)
CANDIDATES = 3
ROUNDS = 3
REFINEMENTS, NEIGHBOURS = 3, 12
NEAR_TARGET, NEAR_SHARE = (0.9, 1.4), (0.04, 0.12)
"""Where the front is refined below and above a target speed-up: factors, and shares of the logarithm of all speed-ups."""
SINGLES_PROMPTS = 4
LAYERS_PROMPTS = 2
SINGLES_SHARE = 0.5
"""Of a budget, for single changes: combinations need the rest."""
DIMENSIONS = frozenset(("scale", "guidance", "token", "layer"))
"""What a search may change; fewer show what each is worth."""


@dataclass(frozen=True, slots=True)
class Point:
    """A schedule that was run.

    Attributes:
        plan: What it combines.
        speedup: Dense price over its own: FLOPs, or predicted latency.
        fidelity: To the dense images.
        predicted_mse: Before it was run.
    """

    plan: Plan
    speedup: float
    fidelity: Fidelity
    predicted_mse: float


class Search:
    """Finds the front of fidelity over price for one model and list of prompts.

    Args:
        trials: Runs schedules.
        price: What a schedule of the model costs.
        budget_s: Seconds that the search may take; None for no limit. Products are always run; single layers on fewer
            prompts, or not at all, and fewer rounds of combinations where more would take longer.
        extra_target: A speed-up to look at beside the usual ones, or None.
        dimensions: What may be changed.
    """

    def __init__(
        self,
        trials: Trials,
        price: Price,
        budget_s: float | None = None,
        extra_target: float | None = None,
        dimensions: frozenset[str] = DIMENSIONS,
    ) -> None:
        self.trials, self.price, self.profile, self.budget_s = trials, price, price.profile, budget_s
        self.dimensions = dimensions
        self._extra_target = extra_target
        self.whole = price.schedule(dense(self.profile))
        self.points: dict[object, Point] = {}
        self.costs = Costs()
        self._started, self._pace = time.monotonic(), 0.0

    def run(self) -> list[Point]:
        """Measure, predict, check; returns the front, speed-up rising."""
        self._started = time.monotonic()
        self._elementary()
        targets: list[float] = []
        fastest = 1.0
        for turn in range(ROUNDS):
            combinations = frontier(self.costs, self.price)
            if not targets:
                # all rounds look at the same speed-ups
                fastest = self.whole / combinations[-1][0]
                targets = spread_targets(fastest, self._extra_target)
            plans = by_speedup(combinations, self.whole, targets, CANDIDATES)
            new = [plan for plan in plans if plan.key() not in self.points]
            if not new:
                break
            if not self._may_run(len(new) * len(self.trials.prompts), 1.0):
                print(f"calibrate: the budget ends the search after {turn} rounds of combinations", file=sys.stderr)
                break
            self._measure(new, f"round {turn + 1}")
            self.costs.fit((p.plan, p.fidelity.mse) for p in self.points.values() if not p.plan.is_product)
        self._refine(fastest)
        return front(self.points.values(), "ssim" if self.trials.with_ssim else "psnr_db")

    def _refine(self, fastest: float) -> None:
        """Run neighbours of the front, of the target's part of it where there is one (see `near`), while some should gain."""
        for turn in range(REFINEMENTS):
            best = [(p.plan, p.speedup, p.fidelity.mse) for p in front(self.points.values())]
            if self._extra_target is not None:
                low, high = near(self._extra_target, fastest)
                best = [run for run in best if low <= run[1] <= high]
            new = promising(best, self.points, self.costs, self.price, self.whole, NEIGHBOURS)
            if not new or not self._may_run(len(new) * len(self.trials.prompts), 1.0):
                break
            self._measure(new, f"refinement {turn + 1}")

    def schedule(self, plan: Plan) -> Schedule:
        return build(plan, self.profile)

    def _may_run(self, trials: int, share: float) -> bool:
        """Whether so many more would end within a share of the budget, at the pace of the last ones."""
        spent = time.monotonic() - self._started
        return self.budget_s is None or spent + trials * self._pace <= share * self.budget_s

    def _elementary(self) -> None:
        count, may = len(self.profile.sizes), self.dimensions
        ends = [
            plan
            for plan in grid(self.profile)
            if ("scale" in may or plan.runs == count) and ("guidance" in may or plan.guided == count)
        ]
        products = self._measure(ends, "scales and guidance")
        self.costs.ends = {plan.ends: fidelity.mse for plan, fidelity in products}
        whole = [fidelity.squared_error for _, fidelity in products]
        reused = [p for p in reused_ends(self.profile) if "guidance" in may and ("scale" in may or p.runs == count)]
        for plan, error in self._singles(reused, "guidance reused", SINGLES_PROMPTS, whole):
            self.costs.ends[plan.ends] = error
        tokens = [Plan(count, count, {scale: change}) for scale, change in token_changes(self.profile) if "token" in may]
        for plan, error in self._singles(tokens, "tokens", SINGLES_PROMPTS, whole):
            ((scale, change),) = plan.changes.items()
            self.costs.tokens.setdefault(scale, {})[change] = error
        layers = [Plan(count, count, {scale: change}) for scale, change in layer_changes(self.profile) if "layer" in may]
        for plan, error in self._single_layers(layers, whole):
            ((scale, change),) = plan.changes.items()
            (layer,) = change.idle
            # the first way comes first; the other replaces it where it costs less
            known = self.costs.layers.setdefault(scale, {})
            if error < known.get(layer, math.inf):
                known[layer] = error
                if change.reused:
                    self.costs.reused.setdefault(scale, set()).add(layer)

    def _single_layers(self, plans: Sequence[Plan], whole: Sequence[Sequence[float]]) -> list[tuple[Plan, float]]:
        """As `_singles`, on as many prompts as the budget allows: there are more of these than of all others."""
        found: list[tuple[Plan, float]] = []
        for first in range(1, min(LAYERS_PROMPTS, len(self.trials.prompts)) + 1):
            if plans and not self._may_run(len(plans), SINGLES_SHARE):
                told = f"on {first - 1} of {LAYERS_PROMPTS} prompts" if first > 1 else "not at all"
                print(f"calibrate: single layers were run {told}, to keep within the budget", file=sys.stderr)
                break
            found = self._singles(plans, "layers", first, whole)
        return found

    def _singles(
        self, plans: Sequence[Plan], what: str, first: int, whole: Sequence[Sequence[float]]
    ) -> list[tuple[Plan, float]]:
        """Squared errors of plans on the first few prompts, scaled to all by those of the products."""
        usable, found = self._run(plans, what, first)
        few = sum(float(np.mean(errors[:first])) for errors in whole)
        ratio = sum(float(np.mean(errors)) for errors in whole) / few if few else 1.0
        return [(plan, fidelity.mse * ratio) for (plan, _), fidelity in zip(usable, found, strict=True)]

    def _run(
        self, plans: Sequence[Plan], what: str, first: int | None = None
    ) -> tuple[list[tuple[Plan, Schedule]], list[Fidelity]]:
        """Run plans on the first few prompts, or all; those that contradict themselves are left out."""
        usable = []
        for plan in plans:
            try:
                schedule = build(plan, self.profile)
                # also refuses what the state cannot hold
                plan_scales(schedule)
            except ScheduleError:
                continue
            usable.append((plan, schedule))
        total, started, ran = len(self.trials.prompts[:first]), time.monotonic(), self.trials.ran
        with tqdm(total=total, desc=f"{what} ({len(usable)})", unit="prompt", disable=None) as bar:
            found = self.trials.measure([schedule for _, schedule in usable], bar.update, first)
        if self.trials.ran > ran:
            self._pace = (time.monotonic() - started) / (self.trials.ran - ran)
        return usable, found

    def _measure(self, plans: Sequence[Plan], what: str) -> list[tuple[Plan, Fidelity]]:
        """Run plans on all prompts and keep them as points."""
        usable, found = self._run(plans, what)
        measured = []
        for (plan, schedule), fidelity in zip(usable, found, strict=True):
            speedup = self.whole / self.price.schedule(schedule)
            expected = fidelity.mse if plan.is_product else self.costs.predict(plan)
            self.points[plan.key()] = Point(plan, speedup, fidelity, expected)
            measured.append((plan, fidelity))
        return measured


def spread_targets(fastest: float, extra: float | None) -> list[float]:
    """Speed-ups to look for combinations at: as many whether prices fall by five or, as latencies may, by less than two.

    Args:
        fastest: Speed-up that combinations reach.
        extra: Another one, or None.
    """
    usual = TARGETS if fastest >= TARGETS[-1] else [float(t) for t in np.geomspace(1.0, fastest, len(TARGETS) + 1)[1:]]
    return sorted({*usual, *([] if extra is None else [extra])})


def near(target: float, fastest: float) -> tuple[float, float]:
    """Speed-ups around a target that its refinement looks at: of prices that fall by less than two, not most of the front.

    Args:
        target: A speed-up.
        fastest: Speed-up that combinations reach.
    """
    (low, high), (below, above) = NEAR_TARGET, NEAR_SHARE
    return target * max(low, fastest**-below), target * min(high, fastest**above)


def front(points: Iterable[Point], measure: str = "psnr_db") -> list[Point]:
    """Points that no other beats in both speed-up and a measure of `Fidelity`, speed-up rising."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -getattr(p.fidelity, measure))):
        if not best or getattr(point.fidelity, measure) > getattr(best[-1].fidelity, measure):
            best.append(point)
    return best[::-1]
