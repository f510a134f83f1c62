"""The `auto` policy: search on most of the prompts, choose for the target, verify on the prompts held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...models.load import LoadedModel
from ...profiles.baselines import dense
from ...profiles.costs import CostTable
from ...profiles.errors import ScheduleError
from ...profiles.schedule import Schedule
from ...profiles.tables import milliseconds
from .adaptive import LEAST_PROMPTS, ObservedTrials, decision_scales, fit
from .adaptive_check import check
from .price import Price
from .search import Point, Search, front
from .target import Target, choose
from .trials import Fidelity

TRIALS = "trials.json"
# every fourth prompt is held out
HELD_OUT = 4


def auto_schedule(
    model: LoadedModel,
    prompts: Sequence[str],
    seed: int,
    out: Path,
    target: Target,
    budget_minutes: float | None = None,
    costs: CostTable | None = None,
    adaptive: bool = False,
) -> Schedule:
    """Find the schedule for a target.

    Args:
        model: All weights, on one device.
        prompts: At least 2; every fourth is held out, the last where there are fewer.
        seed: Prompt i is drawn with noise seed `seed + i`.
        out: Folder that keeps what was run, so that an interrupted search resumes.
        target: What is asked for.
        budget_minutes: The search tries less where all would take longer, see `Search`.
        costs: Measured times of the target; None takes FLOPs for the price of a schedule.
        adaptive: Let each image pick a rung; the target is then met on average over the prompts searched on.

    Returns:
        The schedule; `provenance["auto"]` holds the front, single costs, the factors and the check on held-out prompts; of
        rungs, under `adaptive`, the rule and what it brings.

    Raises:
        ScheduleError: Too few prompts, or the target cannot be met; the message names the nearest that can.
        CostError: The cost table does not fit the model.
    """
    least = LEAST_PROMPTS if adaptive else 2
    if len(prompts) < least:
        what = "policy auto --adaptive" if adaptive else "policy auto"
        raise ScheduleError(f"{what} needs at least {least} prompts, one is held out to verify the choice; got {len(prompts)}")
    price = Price(model.profile, costs)
    dense_price = price.schedule(dense(model.profile))
    _check_reachable(target, costs)
    for scale in decision_scales(model.profile)[:1] if adaptive else ():
        # a table without it is refused before the search
        price.picking(scale)
    held = {i for i in range(len(prompts)) if i % HELD_OUT == HELD_OUT - 1} or {len(prompts) - 1}
    searched = [(text, seed + i) for i, text in enumerate(prompts) if i not in held]
    checked = [(text, seed + i) for i, text in enumerate(prompts) if i in held]
    key, with_ssim = trials_key(model), target.ssim is not None
    seconds = budget_minutes * 60 if budget_minutes is not None else None
    trials = ObservedTrials(model, searched, key, out / TRIALS, with_ssim)
    search = Search(trials, price, seconds, target.needed_speedup(dense_price))
    points = search.run()
    chosen = choose(points, target, dense_price)
    rival = _rival(search, chosen)
    held_out = ObservedTrials(model, checked, key, out / f"held_out_{TRIALS}", with_ssim)
    here, there = held_out.measure([search.schedule(chosen.plan), search.schedule(rival.plan)])
    found = {
        "target": asdict(target),
        "costs": _table(costs, dense_price),
        "prompts": {"searched": len(searched), "held_out": len(checked)},
        "chosen": _shown(chosen, search) | _held_out(here),
        "best_product": _shown(rival, search) | _held_out(there),
        "factors": dict(zip(("ends", "tokens", "layers"), (round(f, 4) for f in search.costs.factors), strict=True)),
        "front": [_shown(point, search) for point in points],
        "products": [_shown(point, search) for point in front(p for p in search.points.values() if p.plan.is_product)],
        "single_tokens": _singles(search.costs.tokens),
        "single_layers": _singles(search.costs.layers),
        "schedules_run": len(search.points),
    }
    schedule = search.schedule(chosen.plan)
    if adaptive:
        rule = fit(trials, search, target, chosen)
        found["adaptive"] = check(rule, search, trials, held_out, points)
        schedule = rule.schedule(search)
    return replace(schedule, provenance={"auto": found})


def _check_reachable(target: Target, costs: CostTable | None) -> None:
    """A latency below what every schedule pays is refused before the search."""
    if target.latency_ms is None:
        return
    if costs is None:
        raise ScheduleError("a target latency needs a cost table; give --costs")
    if target.latency_ms <= costs.fixed_ms:
        raise ScheduleError(
            f"target latency {target.latency_ms:g} ms: text conditioning ({milliseconds(costs.condition_ms)}) and decoder "
            f"({milliseconds(costs.decoder_ms)}) alone take {milliseconds(costs.fixed_ms)} on {costs.target}; ask for more"
        )


def _rival(search: Search, chosen: Point) -> Point:
    """The best product of skip-N and noguide-M that is at least as fast."""
    products = [p for p in search.points.values() if p.plan.is_product]
    fast = [p for p in products if p.speedup >= chosen.speedup] or products
    return max(fast, key=lambda p: p.fidelity.psnr_db)


def trials_key(model: LoadedModel) -> str:
    """What trials depend on beside prompts and schedule: model, weights, dtype, device."""
    weight = next(model.transformer.parameters())
    facts = [model.profile.digest(), model.weights_digest(), str(weight.dtype), weight.device.type]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _table(costs: CostTable | None, dense_ms: float) -> dict[str, Any] | None:
    """What the report says of the cost table; None where FLOPs were counted."""
    if costs is None:
        return None
    known = {name: getattr(costs, name) for name in ("target", "device", "precision", "batch", "versions")}
    digest = hashlib.sha256(costs.to_json()).hexdigest()
    return known | {"dense_ms": round(dense_ms, 3), "fixed_ms": round(costs.fixed_ms, 3), "sha256": digest}


def _held_out(fidelity: Fidelity) -> dict[str, Any]:
    ssim = {} if fidelity.ssim is None else {"held_out_ssim": round(fidelity.ssim, 4)}
    return {"held_out_psnr_db": round(fidelity.psnr_db, 2), **ssim}


def _shown(point: Point, search: Search) -> dict[str, Any]:
    optional: dict[str, Any] = {}
    if search.price.costs is not None:
        optional["latency_ms"] = round(search.whole / point.speedup, 2)
    if point.fidelity.ssim is not None:
        optional["ssim"] = round(point.fidelity.ssim, 4)
    return {
        "speedup": round(point.speedup, 3),
        "psnr_db": round(point.fidelity.psnr_db, 2),
        **optional,
        "predicted_over_measured_mse": round(point.predicted_mse / point.fidelity.mse, 3) if point.fidelity.mse else None,
        "scales_run": point.plan.runs,
        "scales_guided": min(point.plan.guided, point.plan.runs),
        "guidance_reused": point.plan.reuse,
        "changes": {
            scale: {
                "share": change.share,
                "fill": change.fill,
                "skipped_layers": list(change.skipped),
                "reused_layers": list(change.reused),
            }
            for scale, change in sorted(point.plan.changes.items())
            if scale < point.plan.runs
        },
    }


def _singles(costs: dict[int, Any]) -> list[dict[str, Any]]:
    """Mean squared error of each single change, as measured alone."""
    rows = []
    for scale, changes in sorted(costs.items()):
        for change, error in sorted(changes.items()):
            what = {"layer": change} if isinstance(change, int) else {"share": change.share, "fill": change.fill}
            rows.append({"scale": scale, **what, "mse": round(error, 4)})
    return rows
