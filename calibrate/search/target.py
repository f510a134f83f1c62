"""What a search is asked for, and which point of its front answers it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...profiles.errors import ScheduleError
from ...profiles.tables import milliseconds
from .search import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One of four wishes; what is not asked for is made as good as it gets.

    Attributes:
        speedup: Dense price over the schedule's.
        latency_ms: By the cost table, a batch.
        psnr_db: To the dense images, mean over the prompts.
        ssim: The same.
    """

    speedup: float | None = None
    latency_ms: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.speedup, self.latency_ms, self.psnr_db, self.ssim)) != 1:
            raise ScheduleError(
                "a target is a speed-up, a latency, a PSNR or an SSIM: give one of --target-speedup, --target-latency-ms, "
                "--min-psnr, --min-ssim"
            )

    def needed_speedup(self, dense_ms: float) -> float | None:
        """Over dense, where speed is asked for; `dense_ms` only matters to a latency."""
        return self.speedup if self.latency_ms is None else dense_ms / self.latency_ms


def choose(points: Sequence[Point], target: Target, dense_ms: float = 0.0) -> Point:
    """The point of a front for one target.

    Args:
        points: Front, speed-up rising.
        target: Speed: the nearest to dense of all that are fast enough. Fidelity: the fastest of all that are near enough.
        dense_ms: Latency of dense by the cost table.

    Raises:
        ScheduleError: No point meets the target; the message names the nearest that there is.
    """
    speedup = target.needed_speedup(dense_ms)
    if speedup is not None:
        fast = [p for p in points if p.speedup >= speedup]
        if fast:
            # a front falls in fidelity as it rises in speed
            return min(fast, key=lambda p: p.speedup)
        raise ScheduleError(_too_fast(points[-1], target, dense_ms))
    name, least = ("psnr_db", target.psnr_db) if target.psnr_db is not None else ("ssim", target.ssim)
    near = [p for p in points if getattr(p.fidelity, name) >= least]
    if near:
        return max(near, key=lambda p: p.speedup)
    best = max(points, key=lambda p: float(getattr(p.fidelity, name)))
    raise ScheduleError(_too_near(best, target))


# what is advised is rounded so that it can be met
def _too_fast(best: Point, target: Target, dense_ms: float) -> str:
    reached = f"{best.fidelity.psnr_db:.1f} dB"
    if target.latency_ms is None:
        return (
            f"target speed-up {target.speedup:g}x: the search found at most {best.speedup:.2f}x at {reached}; run again with "
            f"--target-speedup {math.floor(best.speedup * 100) / 100:.2f} or less"
        )
    least_ms = dense_ms / best.speedup
    return (
        f"target latency {target.latency_ms:g} ms: the fastest that the search found takes {milliseconds(least_ms)} "
        f"({best.speedup:.2f}x) at {reached}; run again with --target-latency-ms {math.ceil(least_ms * 10) / 10:g} or more"
    )


def _too_near(best: Point, target: Target) -> str:
    if target.psnr_db is not None:
        reached = f"{best.fidelity.psnr_db:.1f} dB at {best.speedup:.2f}x"
        advised = f"--min-psnr {int(best.fidelity.psnr_db)}"
        return f"target of {target.psnr_db:g} dB: the nearest to dense has {reached}; run again with {advised} or less"
    found = best.fidelity.ssim or 0.0
    reached, advised = f"{found:.4f} at {best.speedup:.2f}x", f"--min-ssim {int(found * 1000) / 1000:g}"
    return f"target of SSIM {target.ssim:g}: the nearest to dense has {reached}; run again with {advised} or less"
