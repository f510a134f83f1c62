"""The search: elementary costs, predicted frontier, the promising combinations run, factors refitted, the front returned."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ...profiles.baselines import dense
from ...profiles.errors import ScheduleError
from ...profiles.schedule import Schedule
from .actions import Change, Plan, build, grid, layer_changes, token_changes
from .predict import Costs, by_speedup, frontier
from .price import Price
from .trials import Fidelity, Trials

TARGETS = (1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.4, 4.0, 5.0)
CANDIDATES = 3
ROUNDS = 3
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
        budget_s: No new round of combinations begins after so many seconds; None for no limit.
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
        self.targets = tuple(sorted({*TARGETS, *([extra_target] if extra_target else [])}))
        self.whole = price.schedule(dense(self.profile))
        self.points: dict[object, Point] = {}
        self.costs = Costs()

    def run(self) -> list[Point]:
        """Measure, predict, check; returns the front, speed-up rising."""
        started = time.monotonic()
        self._elementary()
        for turn in range(ROUNDS):
            if self.budget_s is not None and time.monotonic() - started > self.budget_s:
                print(f"calibrate: the budget ends the search after {turn} rounds of combinations", file=sys.stderr)
                break
            plans = by_speedup(frontier(self.costs, self.price), self.whole, self.targets, CANDIDATES)
            new = [plan for plan in plans if plan.key() not in self.points]
            if not new:
                break
            self._measure(new, f"round {turn + 1}")
            self.costs.fit((p.plan, p.fidelity.mse) for p in self.points.values() if p.plan.changes)
        return front(self.points.values(), "ssim" if self.trials.with_ssim else "psnr_db")

    def schedule(self, plan: Plan) -> Schedule:
        return build(plan, self.profile)

    def _elementary(self) -> None:
        count, may = len(self.profile.sizes), self.dimensions
        ends = [
            plan
            for plan in grid(self.profile)
            if ("scale" in may or plan.runs == count) and ("guidance" in may or plan.guided == count)
        ]
        for plan, fidelity in self._measure(ends, "scales and guidance"):
            self.costs.ends[plan.runs, plan.guided] = fidelity.mse
        tokens = [Plan(count, count, {scale: change}) for scale, change in token_changes(self.profile) if "token" in may]
        for plan, fidelity in self._measure(tokens, "tokens"):
            ((scale, change),) = plan.changes.items()
            self.costs.tokens.setdefault(scale, {})[change] = fidelity.mse
        layers = [Plan(count, count, {scale: change}) for scale, change in layer_changes(self.profile) if "layer" in may]
        for plan, fidelity in self._measure(layers, "layers"):
            ((scale, change),) = plan.changes.items()
            self.costs.layers.setdefault(scale, {})[change.skipped[0]] = fidelity.mse

    def _measure(self, plans: Sequence[Plan], what: str) -> list[tuple[Plan, Fidelity]]:
        """Run plans; those that contradict themselves are left out."""
        usable = []
        for plan in plans:
            try:
                usable.append((plan, build(plan, self.profile)))
            except ScheduleError:
                continue
        total = len(self.trials.prompts)
        with tqdm(total=total, desc=f"{what} ({len(usable)})", unit="prompt", disable=None) as bar:
            found = self.trials.measure([schedule for _, schedule in usable], bar.update)
        measured = []
        for (plan, schedule), fidelity in zip(usable, found, strict=True):
            speedup = self.whole / self.price.schedule(schedule)
            expected = self.costs.predict(plan) if plan.changes and self._known(plan) else fidelity.mse
            self.points[plan.key()] = Point(plan, speedup, fidelity, expected)
            measured.append((plan, fidelity))
        return measured

    def _known(self, plan: Plan) -> bool:
        return all(
            (c.share >= 1 or Change(c.share, c.fill) in self.costs.tokens.get(s, {}))
            and all(layer in self.costs.layers.get(s, {}) for layer in c.skipped)
            for s, c in plan.changes.items()
        )


def front(points: Iterable[Point], measure: str = "psnr_db") -> list[Point]:
    """Points that no other beats in both speed-up and a measure of `Fidelity`, speed-up rising."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -getattr(p.fidelity, measure))):
        if not best or getattr(point.fidelity, measure) > getattr(best[-1].fidelity, measure):
            best.append(point)
    return best[::-1]
