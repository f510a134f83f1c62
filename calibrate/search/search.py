"""The search: elementary costs, predicted frontier, the promising combinations run, factors refitted, the front returned."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ...profiles.baselines import dense
from ...profiles.errors import ScheduleError
from ...profiles.model import ModelProfile
from ...profiles.plan import schedule_flops
from ...profiles.schedule import Schedule
from .actions import Change, Plan, build, grid, layer_changes, token_changes
from .predict import Costs, by_speedup, frontier
from .trials import Fidelity, Trials

TARGETS = (1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.4, 4.0, 5.0)
CANDIDATES = 3
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Point:
    """A schedule that was run.

    Attributes:
        plan: What it combines.
        speedup: Dense FLOPs over its own.
        fidelity: To the dense images.
        predicted_mse: Before it was run.
    """

    plan: Plan
    speedup: float
    fidelity: Fidelity
    predicted_mse: float


class Search:
    """Finds the front of fidelity over FLOPs for one model and list of prompts.

    Args:
        trials: Runs schedules.
        profile: The model.
        budget_s: No new round of combinations begins after so many seconds; None for no limit.
        extra_target: A speed-up to look at beside the usual ones, or None.
    """

    def __init__(
        self, trials: Trials, profile: ModelProfile, budget_s: float | None = None, extra_target: float | None = None
    ) -> None:
        self.trials, self.profile, self.budget_s = trials, profile, budget_s
        self.targets = tuple(sorted({*TARGETS, *([extra_target] if extra_target else [])}))
        self.whole = float(schedule_flops(dense(profile), profile))
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
            plans = by_speedup(frontier(self.costs, self.profile), self.whole, self.targets, CANDIDATES)
            new = [plan for plan in plans if plan.key() not in self.points]
            if not new:
                break
            self._measure(new, f"round {turn + 1}")
            self.costs.fit((p.plan, p.fidelity.mse) for p in self.points.values() if p.plan.changes)
        return front(self.points.values())

    def schedule(self, plan: Plan) -> Schedule:
        return build(plan, self.profile)

    def _elementary(self) -> None:
        count = len(self.profile.sizes)
        ends = list(grid(self.profile))
        for plan, fidelity in self._measure(ends, "scales and guidance"):
            self.costs.ends[plan.runs, plan.guided] = fidelity.mse
        tokens = [Plan(count, count, {scale: change}) for scale, change in token_changes(self.profile)]
        for plan, fidelity in self._measure(tokens, "tokens"):
            ((scale, change),) = plan.changes.items()
            self.costs.tokens.setdefault(scale, {})[change] = fidelity.mse
        layers = [Plan(count, count, {scale: change}) for scale, change in layer_changes(self.profile)]
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
            speedup = self.whole / schedule_flops(schedule, self.profile)
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


def front(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats in both speed-up and PSNR, speed-up rising."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.fidelity.psnr_db)):
        if not best or point.fidelity.psnr_db > best[-1].fidelity.psnr_db:
            best.append(point)
    return best[::-1]


def choose(points: Sequence[Point], *, speedup: float | None = None, psnr_db: float | None = None) -> Point:
    """The point of a front for one target.

    Args:
        points: Front, speed-up rising.
        speedup: The nearest to dense of all that are at least so fast.
        psnr_db: The fastest of all that are at least so near to dense.

    Raises:
        ScheduleError: No point meets the target; the message names the nearest that there is.
    """
    if speedup is not None:
        fast = [p for p in points if p.speedup >= speedup]
        if fast:
            return max(fast, key=lambda p: p.fidelity.psnr_db)
        best = points[-1]
        raise ScheduleError(
            f"target speed-up {speedup:g}x: the search found at most {best.speedup:.2f}x at {best.fidelity.psnr_db:.1f} dB; "
            f"run again with --target-speedup {best.speedup:.2f} or less"
        )
    assert psnr_db is not None
    near = [p for p in points if p.fidelity.psnr_db >= psnr_db]
    if near:
        return max(near, key=lambda p: p.speedup)
    best = max(points, key=lambda p: p.fidelity.psnr_db)
    raise ScheduleError(
        f"target of {psnr_db:g} dB: the nearest to dense that removes anything has {best.fidelity.psnr_db:.1f} dB at "
        f"{best.speedup:.2f}x; run again with --min-psnr {best.fidelity.psnr_db:.0f} or less"
    )
