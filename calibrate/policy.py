"""The `toprovar` policy: the paper's equations (3) to (6), every constant chosen from the measurements for a target.

What the paper computes (scale s of S counted from 1, layer l, token i):

    (3) D = first scale whose rho_s crosses tau         rho_s: share of tokens below the scale's mean entropy
    (4) R_l = exp(-beta (r_l - 1))                      r_l = sigma1 / sigma2 of the layer's entropy map
    (5) q_i = (s / S) R_l Hn_i                          Hn: the layer's entropies, normalised
    (6) P_keep(i) = 1 before D, else 1 - clip(alpha_min + (alpha_max - alpha_min) q_i, 0, 1)

It does not give tau, beta, alpha, nor what fills a pruned token's slot. Each gap is closed here, and nothing is set by hand:

- *tau*. rho stays between 0.3 and 0.6 everywhere, so no universal threshold says anything; the paper states its inequality
  in both directions; and a few prompts leave noise of the size of the differences. So rho is smoothed by a straight line
  over the scales, the line's slope decides between `>=` and `<=`, and tau is the line's value at D. Unlike a running
  maximum, which only scales that set a record can cross, a sloping line lets some tau single out every scale.
- *D*. The latest scale from which the target can be met, alpha_max beyond 1 included: coarse scales cost little and decide the
  composition, and an update enlarged from a late scale is nearer to the one it stands for. At equal FLOPs one late scale
  pruned hard stayed nearer to the dense image than several pruned mildly: bundled model, five images, targets 1.3 to 3.
- *r*. sigma1 of a raw entropy map is its mean, and r is 20 to 600 everywhere; of the map minus its mean it tells structure.
- *beta*. ln 2 / (median r - 1): the median layer scores one half.
- *Representative scale*. The paper's 6th of 13: the same relative position, or the next map of at least 4 x 4 tokens.
- *Hn*. The sum of 1 over the tokens would make q vanish as 1 / N; here their mean is 1. The map is the measured mean over
  prompts, and the layer keeps round(sum of P_keep) tokens: counts are fixed here, an image only chooses which.
- *alpha*. alpha_min = 0, alpha_max by bisection; it may exceed 1, the clip bounds the rate.
- *A pruned token's slot*. It takes the layer's update of the scale before D, enlarged (`cache`): this permits a count for each
  layer, and a bare residual (`bypass`) destroys the image.
- *Which tokens*. One map ranks the tokens of all layers: that of the middle layer with the highest score.
- *Guidance and whole scales*. The paper knows neither, and this policy leaves them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..profiles.baselines import dense
from ..profiles.errors import MeasurementError, ScheduleError
from ..profiles.geometry import Size
from ..profiles.measurements import Measurements
from ..profiles.model import ModelProfile
from ..profiles.plan import schedule_flops
from ..profiles.schedule import Schedule, TokenRule

Array = NDArray[np.float64]

MAP_SIDE_MIN = 4
"""Smallest map that can rank tokens or show structure."""
PAPER_POSITION = 6 / 13
"""The paper's representative scale over its number of scales."""
ALPHA_LIMIT = 1e9
"""Stands for infinity: every token whose tendency is not exactly 0 is pruned."""
RATIO_MIN = 1e-6
"""Keeps beta finite where the median layer's map is flat."""
BISECTIONS = 60

GAPS = {
    "tau": "rho is smoothed by a straight line over the scales; tau is its value at the first pruned scale",
    "tau_side": "the slope of that line decides between >= and <=; the paper has both",
    "first_pruned_scale": "the latest scale from which the target can be met; the map before it has at least 4 x 4 tokens",
    "ratio": "sigma1 / sigma2 of the map minus its mean, mean over prompts; of the raw map sigma1 is the mean",
    "representative_scale": "same relative position as the paper's 6th of 13, or the next map of at least 4 x 4",
    "beta": "ln 2 / (median ratio - 1): the median layer scores one half",
    "entropy": "normalised to mean 1, not sum 1; measured mean map; a layer keeps round(sum of P_keep), at least 1",
    "alpha": "alpha_min 0; alpha_max by bisection for the target, the clip bounds it",
    "fill": "a pruned token takes the layer's update of the last whole scale, enlarged",
    "entropy_layer": "the layer of highest score in the middle half ranks the tokens of all layers",
    "guidance": "guidance and whole scales are left as they are",
}


def toprovar_schedule(measurements: Measurements, profile: ModelProfile, target_speedup: float) -> Schedule:
    """The schedule that prunes layers and tokens until the FLOPs of the dense model over its own reach the target.

    Args:
        measurements: Of the dense model, at the profile's geometry.
        profile: The model.
        target_speedup: Dense FLOPs over pruned FLOPs, at least 1; 1 removes nothing.

    Returns:
        A schedule within 1 % of the target, with every constant and its origin in `provenance["toprovar"]`.

    Raises:
        MeasurementError: The measurements are of another model or geometry.
        ScheduleError: The target is no number >= 1, or beyond what token pruning reaches on this model.
    """
    if not (math.isfinite(target_speedup) and target_speedup >= 1):
        raise ScheduleError(f"target speed-up must be a number >= 1, got {target_speedup!r}; 1.5 is a fair start")
    _check_fits(measurements, profile)
    rates = _Rates.measured(measurements, profile)
    first, alpha = _solve(rates, profile, target_speedup)
    schedule = rates.schedule(profile, first, alpha)
    reached = schedule_flops(dense(profile), profile) / schedule_flops(schedule, profile)
    table = rates.provenance(first, alpha)
    return replace(
        schedule, provenance={"target_speedup": target_speedup, "flops_speedup": round(reached, 4), "toprovar": table}
    )


def representative_scale(sizes: tuple[Size, ...]) -> int:
    """Index of the scale whose maps score the layers: where the paper's 6th of 13 lies, or the next of at least 4 x 4."""
    position = round(PAPER_POSITION * len(sizes)) - 1
    large = [scale for scale, size in enumerate(sizes) if min(size) >= MAP_SIDE_MIN]
    return next((scale for scale in large if scale >= position), len(sizes) - 1)


def _check_fits(measurements: Measurements, profile: ModelProfile) -> None:
    layers, name = int(measurements.header["layers"]), measurements.header["profile"].get("name")
    if name != profile.name:
        raise MeasurementError(f"measurements are of model {name}, not {profile.name}; run `calibrate --model {profile.name}`")
    if layers != profile.transformer.depth:
        raise MeasurementError(f"measurements have {layers} layers, model {profile.name} {profile.transformer.depth}")
    if measurements.sizes != profile.sizes:
        raise MeasurementError(f"measurements are of scales {measurements.sizes}, model {profile.name} runs {profile.sizes}")
    if not any(min(size) >= MAP_SIDE_MIN for size in profile.sizes[:-1]):
        raise ScheduleError(
            f"model {profile.name} has no entropy map of {MAP_SIDE_MIN} x {MAP_SIDE_MIN} before its last scale to rank "
            "tokens by; use policy `skip-N` or `noguide-N`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """What the measurements say, before a target is known.

    Attributes:
        rho: `[S]`, mean over layers.
        line: `[S]`, rho smoothed.
        earliest: First scale that may be pruned: the map before it is at least 4 x 4.
        representative: Scale at which layers are scored.
        ratio: `[L]`, sigma1 / sigma2.
        beta: Of equation (4).
        score: `[L]`, R in [0, 1].
        tendency: q of each scale, `[L, N]`.
        entropy_layer: The layer whose map ranks the tokens.
    """

    rho: Array
    line: Array
    earliest: int
    representative: int
    ratio: Array
    beta: float
    score: Array
    tendency: tuple[Array, ...]
    entropy_layer: int

    @classmethod
    def measured(cls, measurements: Measurements, profile: ModelProfile) -> _Rates:
        sizes = profile.sizes
        smallest = next(scale for scale, size in enumerate(sizes) if min(size) >= MAP_SIDE_MIN)
        representative = representative_scale(sizes)
        # a map without any structure has no ratio: nothing in it is salient
        ratio = np.maximum(measurements.ratio(representative)[:, 1], 1.0)
        beta = math.log(2) / max(float(np.median(ratio)) - 1, RATIO_MIN)
        score = np.exp(-beta * (ratio - 1))
        rho = np.array([measurements.rho(scale).mean() for scale in range(len(sizes))])
        return cls(
            rho=rho,
            line=_line(rho, smallest),
            earliest=smallest + 1,
            representative=representative,
            ratio=ratio,
            beta=beta,
            score=score,
            tendency=tuple(_tendency(measurements, scale, score) for scale in range(len(sizes))),
            entropy_layer=_ranking_layer(score),
        )

    @property
    def rises(self) -> bool:
        """Whether rho crosses tau from below."""
        return bool(self.line[-1] >= self.line[0])

    def crossing(self, tau: float) -> int:
        """Equation (3): the first permitted scale whose smoothed rho has reached tau."""
        reached = self.line >= tau if self.rises else self.line <= tau
        return next(scale for scale in range(self.earliest, len(self.line)) if reached[scale])

    @property
    def starts(self) -> tuple[int, ...]:
        """Scales that some tau singles out, coarse to fine."""
        return tuple(d for d in range(self.earliest, len(self.line)) if self.crossing(self.line[d]) == d)

    def schedule(self, profile: ModelProfile, first: int, alpha: float) -> Schedule:
        """Equation (6), counted."""
        base = dense(profile)
        rules = list(base.scales)
        for scale in range(first, len(rules)):
            keep = (1 - np.clip(alpha * self.tendency[scale], 0, 1)).sum(axis=1)
            kept = tuple(max(1, round(float(n))) for n in keep)
            if min(kept) < rules[scale].count:
                rules[scale] = replace(rules[scale], tokens=TokenRule(kept=kept, fill="cache", cache_scale=first - 1))
        return replace(base, policy="toprovar", scales=tuple(rules), entropy_layer=self.entropy_layer)

    def provenance(self, first: int, alpha: float) -> dict[str, object]:
        """Every constant, rounded for the eye, and how its gap was closed."""
        return {
            "tau": round(float(self.line[first]), 4),
            "tau_side": ">=" if self.rises else "<=",
            "beta": round(self.beta, 4),
            "alpha_min": 0.0,
            "alpha_max": round(alpha, 4),
            "first_pruned_scale": first,
            "representative_scale": self.representative,
            "rho": [round(float(value), 4) for value in self.rho],
            "rho_line": [round(float(value), 4) for value in self.line],
            "ratio": [round(float(value), 4) for value in self.ratio],
            "score": [round(float(value), 4) for value in self.score],
            "gaps": dict(GAPS),
        }


def _line(rho: Array, start: int) -> Array:
    """Least-squares line through the scales from `start` on, the first whose map is large enough; drawn through all."""
    scale = np.arange(len(rho), dtype=np.float64)
    x, y = scale[start:], rho[start:]
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return np.asarray(y.mean() + slope * (scale - x.mean()))


def _tendency(measurements: Measurements, scale: int, score: Array) -> Array:
    """Equation (5) with entropies of mean 1: `[L, N]`."""
    entropy = measurements.mean_entropy(scale).mean(axis=1)
    mean = entropy.mean(axis=1, keepdims=True)
    # a scale of one key has no entropy at all; it is never pruned
    relative = np.divide(entropy, mean, out=np.ones_like(entropy), where=mean > 0)
    return np.asarray((scale + 1) / len(measurements.sizes) * score[:, None] * relative)


def _ranking_layer(score: Array) -> int:
    """The layer of highest score in the middle half: first and last layers tend to see the image as a whole."""
    margin = len(score) // 4
    return margin + int(np.argmax(score[margin : len(score) - margin]))


def _solve(rates: _Rates, profile: ModelProfile, target: float) -> tuple[int, float]:
    """First pruned scale and alpha_max."""
    whole = schedule_flops(dense(profile), profile)

    def speedup(first: int, alpha: float) -> float:
        return whole / schedule_flops(rates.schedule(profile, first, alpha), profile)

    first = next((start for start in reversed(rates.starts) if speedup(start, ALPHA_LIMIT) >= target), None)
    if first is None:
        most = max(speedup(start, ALPHA_LIMIT) for start in rates.starts)
        raise ScheduleError(
            f"target speed-up {target:g} is beyond policy toprovar on {profile.name}: {_floor(most)} is the highest, with one "
            "token left in every layer that may be pruned; ask for less, or use policy `skip-N`, which leaves whole scales out"
        )
    return first, _least(lambda alpha: speedup(first, alpha) >= target, ALPHA_LIMIT)


def _floor(speedup: float) -> str:
    """Two digits behind the point, never more than was reached: it can be asked for."""
    return f"{math.floor(speedup * 100) / 100:.2f}"


def _least(enough: Callable[[float], bool], high: float) -> float:
    """The least number in [0, high] that is enough, by bisection; `high` is."""
    if enough(0.0):
        return 0.0
    low = 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
