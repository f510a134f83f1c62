"""Which file holds which subgraph, from the schedule alone; scales that rungs share are one file. No torch here.

All files lie beside the weights, since ONNX refuses external data elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from ..profiles.plan import ScalePlan, plan_paths
from ..profiles.schedule import Schedule


def scale_files(schedule: Schedule) -> dict[ScalePlan, str]:
    """The graph of every scale of every rung.

    Scales that compute the same are one plan and one file; of several for one scale, the second is `scale_09_2.onnx`.
    """
    files: dict[ScalePlan, str] = {}
    for plan in (plan for path in plan_paths(schedule) for plan in path):
        if plan not in files:
            known = sum(other.scale == plan.scale for other in files)
            files[plan] = f"scale_{plan.scale:02d}_{known + 1}.onnx" if known else f"scale_{plan.scale:02d}.onnx"
    return files


def graph_files(schedule: Schedule) -> tuple[str, ...]:
    """Files of the subgraphs but the text encoder's, in the order they are built."""
    looks = schedule.decision is not None and schedule.decision.features == "detail"
    return ("condition.onnx", *scale_files(schedule).values(), "decoder.onnx", *(["view.onnx"] if looks else []))


def rung_files(schedule: Schedule) -> dict[str, tuple[str, ...]]:
    """By rung, the graphs of its scales after the decision, in the order they run; nothing for a schedule without rungs."""
    files, decision = scale_files(schedule), schedule.decision
    if decision is None:
        return {}
    return {
        rung.name: tuple(files[plan] for plan in path if plan.scale > decision.scale)
        for rung, path in zip(schedule.rungs, plan_paths(schedule), strict=True)
    }


def plan_file(graph_file: str) -> str:
    """`scale_03.onnx` -> `scale_03.plan`."""
    return str(Path(graph_file).with_suffix(".plan"))
