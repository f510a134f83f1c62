"""Rungs picked per image: a rule on the entropy statistics of one scale, fitted to what each image lost in each candidate.

All images share the dense scales up to the decision. The candidates are the search's own combinations that change nothing
before it; their squared errors are known prompt by prompt. The rule is one number of the scale's entropy map and one or two
limits. Every scale, number, direction, set of two or three candidates and place of the limits is tried; the loss is the mean
squared error over the prompts, or 1 - SSIM. The mean of PSNRs would not do: images that come out as dense count 99 dB each,
and pay there for others that are spoilt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from ...models.generate import Noise
from ...models.state import State
from ...profiles.baselines import dense
from ...profiles.decision import FEATURES, Decision, entropy_features, thresholds
from ...profiles.errors import ScheduleError
from ...profiles.fidelity import PEAK
from ...profiles.model import ModelProfile
from ...profiles.plan import plan_paths
from ...profiles.rules import Rung
from ...profiles.schedule import Schedule
from .actions import late_scales
from .predict import thin
from .search import Point, Search
from .target import Target
from .trials import Fidelity, Trials, first_change

Array = NDArray[np.float64]
NAMES = {2: ("quality", "fast"), 3: ("quality", "balanced", "fast")}
"""Rungs from slow to fast, by their number."""
LEAST_PROMPTS = 4
POOL = 12
"""Candidates of one scale, spread over their prices."""
REACH = 2.5
"""Candidates are at most so much slower or faster than what is asked for."""
CUTS = 40
"""Places of a limit that are tried, at most."""
SHARE_LEAST = 0.1
"""Of the prompts, to each rung: fewer say nothing."""


@dataclass(frozen=True)
class Rule:
    """A fitted choice of rungs.

    Attributes:
        scale: After which an image picks.
        feature: Index into FEATURES["entropy"].
        limits: Ascending, one fewer than points.
        points: The rungs, from low values of the feature to high.
        price: Mean over the prompts it was fitted to, with what picking takes.
        loss: The same, see `losses`.
    """

    scale: int
    feature: int
    limits: tuple[float, ...]
    points: tuple[Point, ...]
    price: float
    loss: float

    @property
    def names(self) -> tuple[str, ...]:
        """Of the points: slow ones are of quality."""
        names = NAMES[len(self.points)]
        return names if self.points[0].speedup <= self.points[-1].speedup else names[::-1]

    @property
    def rungs(self) -> dict[str, Point]:
        """By name, from slow to fast."""
        return dict(sorted(zip(self.names, self.points, strict=True), key=lambda item: item[1].speedup))

    @property
    def decision(self) -> Decision:
        return Decision(scale=self.scale, features="entropy", models=(thresholds(self.feature, self.limits, self.names),))

    def schedule(self, search: Search) -> Schedule:
        """The first rung's schedule, with the others' scales after the decision."""
        first, *others = ((name, search.schedule(point.plan)) for name, point in self.rungs.items())
        rungs = (Rung(name=first[0]), *(Rung(name=name, scales=s.scales[self.scale + 1 :]) for name, s in others))
        return replace(first[1], rungs=rungs, decision=self.decision)


class ObservedTrials(Trials):
    """Trials that keep what every prompt's dense entropy maps showed, beside the errors and in the same file."""

    def dense_states(self, prompt: str, seed: int) -> tuple[list[State], Noise]:
        """As of `Trials`; the map of a scale stands in the state after it."""
        states, noise = super().dense_states(prompt, seed)
        for scale, state in enumerate(states[1:]):
            values = entropy_features(state["entropy"].float().cpu().numpy())[0].tolist()
            self.results.setdefault(f"entropy of scale {scale}", {})[f"{seed} {prompt}"] = values
        return states, noise

    def features(self, scale: int) -> Array:
        """`[P, F]`: FEATURES["entropy"] of every prompt, from the scale's map of the base's entropy layer."""
        known = self.results.setdefault(f"entropy of scale {scale}", {})
        for prompt, seed in self.prompts:
            if f"{seed} {prompt}" not in known:
                self.dense_states(prompt, seed)
                self._save()
        return np.array([known[f"{seed} {prompt}"] for prompt, seed in self.prompts])


def losses(fidelity: Fidelity, with_ssim: bool) -> Array:
    """What each prompt lost: 1 - SSIM where that is measured, else the squared error of its uint8 image."""
    return 1 - np.array(fidelity.similarity) if with_ssim else np.array(fidelity.squared_error)


def fit(trials: ObservedTrials, search: Search, target: Target, chosen: Point) -> Rule:
    """The best rule for a target.

    Args:
        trials: Of the prompts searched on.
        search: Finished.
        target: What is asked for, of the mean over the prompts.
        chosen: The single schedule that answers it; candidates lie around its speed.

    Raises:
        ScheduleError: No rule meets the target.
    """
    most = _most(search, target)
    asked = target.speedup is not None or target.latency_ms is not None
    found: list[Rule] = []
    for scale, pool in _pools(search, chosen):
        values = trials.features(scale)
        prices = np.array([search.whole / point.speedup for point in pool]) + search.price.picking(scale)
        lost = np.stack([losses(point.fidelity, trials.with_ssim) for point in pool])
        for feature in range(len(FEATURES["entropy"])):
            found += _fitted(Rule(scale, feature, (), tuple(pool), 0, 0), values[:, feature], prices, lost, asked, most)
    found.sort(key=lambda rule: (rule.loss, rule.price) if asked else (rule.price, rule.loss))
    for rule in found:
        try:
            plan_paths(rule.schedule(search))
        except ScheduleError:
            # two rungs ask a scale that they share for what only one of them may have
            continue
        return rule
    raise ScheduleError(
        f"--adaptive: no two schedules that share the scales before a decision meet the target on "
        f"{len(trials.prompts)} prompts, at {chosen.speedup:.2f}x; give more prompts, ask for less, or leave --adaptive out"
    )


def _most(search: Search, target: Target) -> float:
    """The mean price, or else the mean loss, that the target allows."""
    speedup = target.needed_speedup(search.whole)
    if speedup is not None:
        return search.whole / speedup
    return float(PEAK**2 / 10 ** (target.psnr_db / 10)) if target.psnr_db is not None else 1 - float(target.ssim or 0)


def _pools(search: Search, chosen: Point) -> Iterator[tuple[int, list[Point]]]:
    """For each scale that may decide, the candidates that change nothing before it: none of them beaten in price and loss."""
    base, with_ssim = dense(search.profile), search.trials.with_ssim
    points = [p for p in search.points.values() if chosen.speedup / REACH <= p.speedup <= chosen.speedup * REACH]
    changed = [first_change(base, search.schedule(point.plan)) for point in points]
    for scale in decision_scales(search.profile):
        free = [point for point, change in zip(points, changed, strict=True) if change > scale]
        entries = [(search.whole / p.speedup, float(losses(p.fidelity, with_ssim).mean()), p.plan) for p in free]
        pool = [search.points[plan.key()] for _, _, plan in thin(entries, POOL)] if entries else []
        if len(pool) > 1:
            yield scale, pool


def decision_scales(profile: ModelProfile) -> range:
    """Scales after which an image may pick, coarse to fine."""
    return range(max(1, min(late_scales(profile), default=2) - 2), len(profile.sizes) - 1)


def _fitted(rule: Rule, values: Array, prices: Array, lost: Array, by_price: bool, most: float) -> Iterator[Rule]:
    """The best places of one limit, and of two.

    Args:
        rule: Scale, feature and candidates; the rest is found.
        values: `[P]` the feature of each prompt.
        prices: `[K]` of the candidates.
        lost: `[K, P]`.
        by_price: Whether the mean price is limited and the loss made small; otherwise the other way round.
        most: The limit.
    """
    order = np.argsort(values, kind="stable")
    ranked, count = values[order], len(values)
    summed = np.concatenate([np.zeros((len(lost), 1)), np.cumsum(lost[:, order], axis=1)], axis=1)
    least = max(1, round(SHARE_LEAST * count))
    places = [i for i in range(least, count - least + 1) if ranked[i - 1] < ranked[i]]
    places = [places[i] for i in sorted({round(x) for x in np.linspace(0, len(places) - 1, min(CUTS, len(places)))})]
    for rungs in NAMES:
        cuts = [cut for cut in combinations(places, rungs - 1) if all(b - a >= least for a, b in pairwise(cut))]
        best: tuple[tuple[float, float], Rule] | None = None
        for chosen in _ways(len(lost), rungs) if cuts else ():
            bounds = np.array([(0, *cut, count) for cut in cuts])
            price, loss = _means(bounds, chosen, prices, summed)
            limited, wanted = (price, loss) if by_price else (loss, price)
            wanted = np.where(limited <= most * (1 + 1e-9), wanted, np.inf)
            at = int(np.argmin(wanted))
            if np.isfinite(wanted[at]) and (best is None or (wanted[at], limited[at]) < best[0]):
                limits = tuple(float(ranked[i - 1] + ranked[i]) / 2 for i in cuts[at])
                points = tuple(rule.points[k] for k in chosen)
                found = replace(rule, limits=limits, points=points, price=float(price[at]), loss=float(loss[at]))
                best = ((float(wanted[at]), float(limited[at])), found)
        if best is not None:
            yield best[1]


def _ways(candidates: int, rungs: int) -> Iterator[tuple[int, ...]]:
    """Sets of candidates, from slow to fast and from fast to slow."""
    for chosen in combinations(range(candidates), rungs):
        yield chosen
        yield chosen[::-1]


def _means(bounds: NDArray[np.int64], chosen: Sequence[int], prices: Array, summed: Array) -> tuple[Array, Array]:
    """Mean price and loss, `[N]` each, of prompts in order: those from `bounds[:, s]` to `bounds[:, s + 1]` as `chosen[s]`."""
    starts, ends = bounds[:, :-1], bounds[:, 1:]
    rungs, count = np.array(chosen), bounds[0, -1]
    price = ((ends - starts) * prices[rungs]).sum(axis=1) / count
    loss = (summed[rungs, ends] - summed[rungs, starts]).sum(axis=1) / count
    return np.asarray(price), np.asarray(loss)


def blind(points: Sequence[Point], price: float, whole: float, with_ssim: bool) -> list[tuple[Point, float]]:
    """The rival at an equal mean price: of all mixtures of two schedules, drawn whatever the image, the one that loses least.

    Args:
        points: To mix; at least one is as cheap, and one as dear.
        price: The mean to reach.
        whole: Price of dense.
        with_ssim: See `losses`.

    Returns:
        One schedule or two, and the share of images of each.
    """
    known = [(whole / point.speedup, float(losses(point.fidelity, with_ssim).mean()), point) for point in points]
    best: tuple[float, list[tuple[Point, float]]] | None = None
    for dear, lost, slow in known:
        for cheap, spoilt, fast in known:
            if cheap <= price <= dear:
                share = (price - cheap) / (dear - cheap) if dear > cheap else 1.0
                mean = share * lost + (1 - share) * spoilt
                if best is None or mean < best[0]:
                    best = (mean, [(p, part) for p, part in ((slow, share), (fast, 1 - share)) if part])
    assert best is not None, "the prices of the points enclose the one asked for"
    return best[1]
