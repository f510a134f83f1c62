"""What a rule for rungs brings on prompts that it was not fitted to, against single schedules at the same mean price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...profiles.decision import FEATURES
from ...profiles.fidelity import psnr
from .adaptive import Array, ObservedTrials, Rule, blind, losses
from .search import Point, Search
from .trials import Fidelity

VERDICTS = ("better", "worse", "within noise")


def check(
    rule: Rule, search: Search, searched: ObservedTrials, held_out: ObservedTrials, front: Sequence[Point]
) -> dict[str, Any]:
    """The rule on the prompts searched on and on those held out, each beside the best blind mixture of equal mean price.

    Args:
        rule: Fitted.
        search: Finished, on the prompts of `searched`.
        searched: Its trials.
        held_out: Of the other prompts.
        front: Single schedules to mix.

    Returns:
        For provenance: the rule, its rungs, both comparisons, and the images for a figure.
    """
    picking = search.price.picking(rule.scale)
    sets = {"searched": searched, "held_out": held_out}
    picks = {name: rule.decision.pick(trials.features(rule.scale)) for name, trials in sets.items()}
    images = [
        {
            "held_out": name == "held_out",
            "rung": rung,
            "value": round(float(values[rule.feature]), 5),
            "loss": round(float(loss), 5),
        }
        for name, trials in sets.items()
        for rung, values, loss in zip(
            picks[name], trials.features(rule.scale), _picked(rule, search, trials, picks[name]), strict=True
        )
    ]
    return {
        "scale": rule.scale,
        "feature": FEATURES["entropy"][rule.feature],
        "limits": [round(limit, 5) for limit in rule.limits],
        "order": list(rule.names),
        "measure": "ssim" if searched.with_ssim else "psnr_db",
        "rungs": [
            {
                "name": name,
                "speedup": round(search.whole / (search.whole / point.speedup + picking), 3),
                "psnr_db": round(point.fidelity.psnr_db, 2),
                "share": round(picks["searched"].count(name) / len(picks["searched"]), 3),
                "held_out_share": round(picks["held_out"].count(name) / len(picks["held_out"]), 3),
            }
            for name, point in rule.rungs.items()
        ],
        **{name: _against(rule, search, trials, picks[name], [*front, *rule.points]) for name, trials in sets.items()},
        "images": images,
    }


def _against(
    rule: Rule, search: Search, trials: ObservedTrials, picks: Sequence[str], single: Sequence[Point]
) -> dict[str, Any]:
    """Mean speed-up and fidelity of the rule and of its rival, and which is better; noise is 95 % of the paired difference."""
    picking = search.price.picking(rule.scale)
    price = picking + float(np.mean([search.whole / rule.rungs[name].speedup for name in picks]))
    # rounding must not push a price beyond the dearest or the cheapest point
    every = [search.whole / point.speedup for point in single]
    rivals = blind(single, min(max(price, min(every)), max(every)), search.whole, trials.with_ssim)
    own = _picked(rule, search, trials, picks)
    other = np.sum([share * _lost(search, trials, point) for point, share in rivals], axis=0)
    gain = other - own
    noise = 1.96 * float(np.std(gain, ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else float("inf")
    mean = float(gain.mean())
    verdict = VERDICTS[2] if abs(mean) <= noise else VERDICTS[0] if mean > 0 else VERDICTS[1]
    ours, theirs = (_shown(float(values.mean()), trials.with_ssim) for values in (own, other))
    return {
        "prompts": len(picks),
        "speedup": round(search.whole / price, 3),
        "fidelity": round(ours, 4),
        "single_fidelity": round(theirs, 4),
        "gain": round(ours - theirs, 4),
        "verdict": verdict,
    }


def _picked(rule: Rule, search: Search, trials: ObservedTrials, picks: Sequence[str]) -> Array:
    """What each prompt loses in its own rung, `[P]`."""
    by_name = {name: _lost(search, trials, point) for name, point in rule.rungs.items()}
    return np.array([by_name[name][index] for index, name in enumerate(picks)])


def _lost(search: Search, trials: ObservedTrials, point: Point) -> Array:
    fidelity: Fidelity = trials.measure([search.schedule(point.plan)])[0]
    return losses(fidelity, trials.with_ssim)


def _shown(loss: float, with_ssim: bool) -> float:
    """SSIM, or PSNR in dB of the mean squared error."""
    return 1 - loss if with_ssim else psnr(loss)
