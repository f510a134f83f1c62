"""The sweep as a picture: fidelity over speed-up, in FLOPs and in measured latency, a colour for each family of policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...calibrate.figures import BLUE, GREY, ORANGE, charted, new_figure
from .front import Record, value
from .policies import family

MEASURES = {"psnr_db": "PSNR to dense, dB", "ssim": "SSIM to dense", "scene_eval": "SceneEval"}
SPEEDS = {"flops_speedup": "speed-up in FLOPs", "speedup": "speed-up in measured latency"}
LOOKS = {
    "auto": (BLUE, "o"),
    "adaptive": (BLUE, "*"),
    "toprovar": (ORANGE, "D"),
    "skip-N": (GREY, "s"),
    "noguide-N": (GREY, "^"),
    "skip-N+noguide-M": (GREY, "x"),
    "fastvar": ("#7a3e9d", "P"),
    "skipvar": ("#2e7d4f", "v"),
    "dense": ("#24292f", "*"),
}
OTHER = ("#8a949e", ".")
TICKS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20)


@charted
def sweep_chart(records: Sequence[Record]) -> Any:
    """A row a measure, a column a kind of speed-up; measures that no record has are left out."""
    shown = [name for name in MEASURES if any(value(record, name) is not None for record in records)]
    figure = new_figure(11.0, 3.6 * max(1, len(shown)))
    axes = figure.subplots(max(1, len(shown)), len(SPEEDS), squeeze=False)
    for row, measure in zip(axes, shown, strict=False):
        for cell, speed in zip(row, SPEEDS, strict=True):
            _draw(cell, records, speed, measure)
    if shown:
        axes[0][0].legend(loc="best")
    return figure


def _draw(axes: Any, records: Sequence[Record], speed: str, measure: str) -> None:
    families: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if (found := value(record, measure)) is not None:
            families.setdefault(family(record["policy"]), []).append((float(record[speed]), found))
    for name, points in families.items():
        color, marker = LOOKS.get(name, OTHER)
        line = "-" if name in ("auto", "toprovar", "skip-N", "noguide-N") else ""
        axes.plot(*zip(*sorted(points), strict=True), line, color=color, marker=marker, markersize=5, linewidth=1, label=name)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high] or [1]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(SPEEDS[speed])
    axes.set_ylabel(MEASURES[measure])
