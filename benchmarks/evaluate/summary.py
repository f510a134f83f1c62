"""Tallies to one record an engine, and records to a table: latency, fidelity, SceneEval, CLIPScore."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from ...models.tiny.scene_eval import ScenePrompt
from ...profiles.baselines import dense
from ...profiles.costs import CostTable
from ...profiles.errors import CostError
from ...profiles.fidelity import psnr
from ...profiles.plan import schedule_flops
from ...profiles.schedule import Schedule
from ...profiles.tables import three_digits
from .drawing import Drawer
from .outcome import Tally
from .scenes import judged

Record = dict[str, Any]


def records(
    drawers: Sequence[Drawer],
    tallies: Sequence[Tally],
    prompts: Sequence[ScenePrompt] | None = None,
    costs: CostTable | None = None,
) -> list[Record]:
    """One record an engine; the first engine is the reference.

    Args:
        drawers: In the order of the tallies.
        tallies: At least one.
        prompts: Of SceneEval, one an image, where objects were read.
        costs: Adds the latency that the cost table predicts.
    """
    base = statistics.median(tallies[0].latency_ms)
    found = []
    for drawer, tally in zip(drawers, tallies, strict=True):
        manifest, median = drawer.engine.manifest, statistics.median(tally.latency_ms)
        record: Record = {
            "engine": str(drawer.folder),
            "policy": manifest.policy,
            "target": manifest.target,
            "flops_speedup": round(_flops_speedup(drawer, tally), 3),
            "latency_ms": [round(v, 3) for v in (median, min(tally.latency_ms), max(tally.latency_ms))],
            "speedup": round(base / median, 3),
            "psnr_db": _mean_psnr(tally.error),
            "ssim": None if not any(tally.error) else round(statistics.fmean(tally.similarity), 4),
            "equal_images": sum(error == 0 for error in tally.error),
            "schedule_sha256": manifest.schedule_sha256,
        }
        if costs is not None:
            predicted = predicted_ms(costs, drawer, tally)
            ratio = None if predicted is None else round(predicted / median, 3)
            record |= {"predicted_ms": predicted, "predicted_over_measured": ratio}
        if prompts is not None:
            record["scene_eval"] = judged(prompts, tally.detections, tallies[0].detections)
        if tally.clip:
            half = 1.96 * float(np.std(tally.clip)) / len(tally.clip) ** 0.5
            record["clip_score"] = [round(statistics.fmean(tally.clip), 3), round(half, 3)]
        found.append(record)
    return found


def _paths(drawer: Drawer, tally: Tally) -> list[Schedule]:
    """What each image ran through; the schedule itself where it has no rungs."""
    schedule = drawer.engine.schedule
    by_name = {rung.name: path for rung, path in zip(schedule.rungs, schedule.paths, strict=False)}
    return [by_name[name] for name in tally.rungs] or [schedule]


def predicted_ms(costs: CostTable, drawer: Drawer, tally: Tally) -> float | None:
    """Median milliseconds of the timed images by the cost table; None, told on stderr, where it lacks a point."""
    try:
        timed = _paths(drawer, tally)[: len(tally.latency_ms)]
        picking = costs.picking_ms(drawer.engine.schedule)
        return round(picking + statistics.median(costs.predict(path) for path in timed), 3)
    except CostError as problem:
        print(f"{drawer.engine.manifest.policy}: no prediction: {problem}", file=sys.stderr)
        return None


def _flops_speedup(drawer: Drawer, tally: Tally) -> float:
    """Dense FLOPs over the mean of the images'."""
    profile = drawer.engine.profile
    mean = statistics.fmean(schedule_flops(path, profile) for path in _paths(drawer, tally))
    return schedule_flops(dense(profile), profile) / mean


def _mean_psnr(errors: Sequence[float]) -> float | None:
    """Mean PSNR of the images that differ; None where all are the reference's."""
    finite = [psnr(error) for error in errors if error > 0]
    return round(statistics.fmean(finite), 2) if finite else None


def rows(found: Sequence[Record]) -> list[list[str]]:
    """The table, header first; columns that no record has are left out."""
    first = found[0]
    heads = ["policy", "FLOPs", "latency ms (min-max)", "speed-up", "PSNR dB", "SSIM"]
    heads += ["predicted ms"] if "predicted_ms" in first else []
    heads += ["SceneEval (95 %)", "points to reference (95 %)"] if "scene_eval" in first else []
    heads += ["CLIPScore (95 %)"] if "clip_score" in first else []
    return [heads, *(_row(name, record, record is first) for name, record in zip(_names(found), found, strict=True))]


def _names(found: Sequence[Record]) -> list[str]:
    """Policies; of those that several engines have, the engines' folders."""
    policies = [record["policy"] for record in found]
    return [policy if policies.count(policy) == 1 else record["engine"] for policy, record in zip(policies, found, strict=True)]


def _row(name: str, record: Record, is_reference: bool) -> list[str]:
    shown = [three_digits(value) for value in record["latency_ms"]]
    cells = [name, f"{record['flops_speedup']:.2f}x", f"{shown[0]} ({shown[1]}-{shown[2]})"]
    cells.append(f"{record['speedup']:.2f}x")
    cells += ["same"] * 2 if record["psnr_db"] is None else [f"{record['psnr_db']:.1f}", f"{record['ssim']:.3f}"]
    if "predicted_ms" in record:
        ratio = record["predicted_over_measured"]
        cells.append("-" if ratio is None else f"{three_digits(record['predicted_ms'])} ({ratio - 1:+.0%})")
    if "scene_eval" in record:
        scene = record["scene_eval"]
        pair = scene["paired"]
        cells.append(f"{scene['accuracy']:.3f} ({scene['low']:.3f}-{scene['high']:.3f})")
        difference, low, high = (100 * pair[name] for name in ("difference", "low", "high"))
        cells.append("-" if is_reference else f"{difference:+.1f} ({low:+.1f} to {high:+.1f})")
    if "clip_score" in record:
        cells.append(f"{record['clip_score'][0]:.2f} +- {record['clip_score'][1]:.2f}")
    return cells


def significance(found: Sequence[Record]) -> str:
    """How many images make one point of SceneEval significant, at the disagreement seen here."""
    others = [record["scene_eval"] for record in found[1:]]
    if not others:
        return "one engine only: nothing to compare with the reference"
    images, most = others[0]["images"], max(scene["paired"]["images_for_a_point"] for scene in others)
    if most <= images:
        return f"{images} images an engine: a difference of 1 point is significant at 95 %"
    return (
        f"{images} images an engine; for 1 point to be significant at 95 % it takes about {most:,} "
        f"(all 300 prompts with --seeds {-(-most // 300)})"
    )


def machine(threads: int | None) -> dict[str, Any]:
    """Where and with what the engines ran."""
    cores = threads or len(os.sched_getaffinity(0))
    return {"machine": platform.machine(), "threads": cores, "onnxruntime": version("onnxruntime")}
