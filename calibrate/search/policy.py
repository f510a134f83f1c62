"""The `auto` policy: search on most of the prompts, choose for the target, verify on the prompts held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...models.load import LoadedModel
from ...profiles.errors import ScheduleError
from ...profiles.schedule import Schedule
from .search import Point, Search, choose, front
from .trials import Trials

TRIALS = "trials.json"
# every fourth prompt is held out
HELD_OUT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked for: a speed-up in FLOPs, or a PSNR to the dense images in dB; the other one is made as good as it gets."""

    speedup: float | None = None
    psnr_db: float | None = None

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.psnr_db is None):
            raise ScheduleError("a target is a speed-up or a PSNR: give --target-speedup or --min-psnr")


def auto_schedule(
    model: LoadedModel, prompts: Sequence[str], seed: int, out: Path, target: Target, budget_minutes: float | None = None
) -> Schedule:
    """Find the schedule for a target.

    Args:
        model: All weights, on one device.
        prompts: At least 2; every fourth is held out, the last where there are fewer.
        seed: Prompt i is drawn with noise seed `seed + i`.
        out: Folder that keeps what was run, so that an interrupted search resumes.
        target: What is asked for.
        budget_minutes: No new round of combinations begins after so many minutes.

    Returns:
        The schedule; `provenance["auto"]` holds the front, single costs, the factors and the check on held-out prompts.

    Raises:
        ScheduleError: Too few prompts, or the target cannot be met; the message names the nearest that can.
    """
    if len(prompts) < 2:
        raise ScheduleError(f"policy auto needs at least 2 prompts, one is held out to verify the choice; got {len(prompts)}")
    held = {i for i in range(len(prompts)) if i % HELD_OUT == HELD_OUT - 1} or {len(prompts) - 1}
    searched = [(text, seed + i) for i, text in enumerate(prompts) if i not in held]
    checked = [(text, seed + i) for i, text in enumerate(prompts) if i in held]
    key = _key(model)
    seconds = budget_minutes * 60 if budget_minutes is not None else None
    search = Search(Trials(model, searched, key, out / TRIALS), model.profile, seconds, target.speedup)
    points = search.run()
    chosen = choose(points, speedup=target.speedup, psnr_db=target.psnr_db)
    rival = _rival(search, chosen)
    trials = Trials(model, checked, key, out / f"held_out_{TRIALS}")
    here, there = trials.measure([search.schedule(chosen.plan), search.schedule(rival.plan)])
    found = {
        "target": {"speedup": target.speedup, "psnr_db": target.psnr_db},
        "prompts": {"searched": len(searched), "held_out": len(checked)},
        "chosen": _shown(chosen) | {"held_out_psnr_db": round(here.psnr_db, 2)},
        "best_product": _shown(rival) | {"held_out_psnr_db": round(there.psnr_db, 2)},
        "factors": dict(zip(("ends", "tokens", "layers"), (round(f, 4) for f in search.costs.factors), strict=True)),
        "front": [_shown(point) for point in points],
        "products": [_shown(point) for point in front(p for p in search.points.values() if not p.plan.changes)],
        "single_tokens": _singles(search.costs.tokens),
        "single_layers": _singles(search.costs.layers),
        "schedules_run": len(search.points),
    }
    return replace(search.schedule(chosen.plan), provenance={"flops_speedup": round(chosen.speedup, 4), "auto": found})


def _rival(search: Search, chosen: Point) -> Point:
    """The best product of skip-N and noguide-M that is at least as fast."""
    products = [p for p in search.points.values() if not p.plan.changes]
    fast = [p for p in products if p.speedup >= chosen.speedup] or products
    return max(fast, key=lambda p: p.fidelity.psnr_db)


def _key(model: LoadedModel) -> str:
    weight = next(model.transformer.parameters())
    facts = [model.profile.digest(), model.weights_digest(), str(weight.dtype), weight.device.type]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _shown(point: Point) -> dict[str, Any]:
    return {
        "speedup": round(point.speedup, 3),
        "psnr_db": round(point.fidelity.psnr_db, 2),
        "predicted_over_measured_mse": round(point.predicted_mse / point.fidelity.mse, 3) if point.fidelity.mse else None,
        "scales_run": point.plan.runs,
        "scales_guided": min(point.plan.guided, point.plan.runs),
        "changes": {
            scale: {"share": change.share, "fill": change.fill, "skipped_layers": list(change.skipped)}
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
