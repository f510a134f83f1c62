"""Where a policy stands beside the best of the others: the front in speed-up and fidelity, and the margin over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]
SPEEDS = {"flops_speedup": "FLOPs", "speedup": "measured latency"}
REACH = (1.2, 5.0)
"""Speed-ups at which margins are stated."""
OURS = ("auto", "adaptive")
"""Policies of the search: no rivals of one another."""


def value(record: Record, measure: str) -> float | None:
    """`psnr_db`, `ssim`, or `scene_eval`; None where the record has none."""
    found = record.get(measure)
    return float(found["accuracy"]) if isinstance(found, dict) else found


def front(records: Sequence[Record], speed: str, measure: str) -> list[tuple[float, float]]:
    """(speed-up, fidelity) of what no other record beats in both, speed-up rising."""
    points = [(float(r[speed]), v) for r in records if (v := value(r, measure)) is not None]
    best: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def margins(records: Sequence[Record], speed: str, measure: str = "psnr_db", policy: str = "auto") -> list[Record]:
    """Each point of a policy against the front of all others, on a straight line over the logarithm of the speed-up.

    Such a line flatters the others, since none of them runs between its points; beyond their ends there is no margin.

    Returns:
        `policy`, `speedup`, `margin` in units of the measure, for points within `REACH`.
    """
    own = [r for r in records if r["policy"].partition("@")[0] == policy]
    line = front([r for r in records if r["policy"].partition("@")[0] not in OURS], speed, measure)
    found = []
    for record in own:
        at, mine = float(record[speed]), value(record, measure)
        if mine is None or not line or not line[0][0] <= at <= line[-1][0] or not REACH[0] <= at <= REACH[1]:
            continue
        theirs = float(np.interp(math.log(at), [math.log(x) for x, _ in line], [y for _, y in line]))
        found.append({"policy": record["policy"], "speedup": at, "margin": round(mine - theirs, 3)})
    return sorted(found, key=lambda entry: float(entry["speedup"]))
