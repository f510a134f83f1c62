"""`build_report.json` and its table: what each plan is made of, and the plans that a later build may keep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..profiles.tables import rung_files_table, table
from .plan_record import PlanRecord
from .report_page import PAGE, page
from .timing_cache import write_whole

REPORT = "build_report.json"


def report(
    records: Mapping[str, PlanRecord], engine: dict[str, Any], precision: str, rungs: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The report as JSON; `rungs` are the plans of each after the decision."""
    build = {name: value for name, value in engine.items() if name != "plans"}
    total = {name: sum(getattr(r, name) for r in records.values()) for name in ("layers", "plugins", "bytes")}
    total["seconds"] = round(sum(record.seconds for record in records.values()), 2)
    plans = {file: asdict(record) for file, record in records.items()}
    named = {"rungs": {name: list(files) for name, files in rungs.items()}}
    return {"format": 1, "precision": precision, **build, "total": total, "plans": plans, **named}


def save_report(folder: Path, content: dict[str, Any]) -> None:
    """Write the report as JSON, and as a page beside it."""
    (folder / REPORT).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page(content), encoding="utf-8")


def report_table(content: dict[str, Any]) -> str:
    """One line a plan; with rungs one line each more, of the plans that an image of it runs after the decision."""
    rows = [["plan", "layers", "precision", "plugins", "inputs", "weights", "MB", "seconds"]]
    for file, plan in sorted(content["plans"].items()):
        counts = [str(plan["plugins"]), str(len(plan["inputs"])), str(len(plan["weights"]))]
        rows.append([file, str(plan["layers"]), content["precision"], *counts, _mb(plan["bytes"]), f"{plan['seconds']:.1f}"])
    total = content["total"]
    rows.append(
        ["all", str(total["layers"]), "", str(total["plugins"]), "", "", _mb(total["bytes"]), f"{total['seconds']:.1f}"]
    )
    rungs = content.get("rungs")
    return f"{table(rows)}\n\n{rung_files_table(rungs)}" if rungs else table(rows)


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"


def earlier_plans(bundle: Path, interrupted: Path) -> dict[str, Path]:
    """Plans by key: of an interrupted build, and of the bundle that is going to be replaced.

    Records of the bundle's plans are written into `interrupted`, beside copies of them.
    """
    try:
        plans = json.loads((bundle / REPORT).read_text(encoding="utf-8"))["plans"]
    except (OSError, ValueError, KeyError, TypeError):
        plans = {}
    for file, fields in plans.items():
        try:
            record = PlanRecord(**fields)
        except TypeError:
            # of another version of this project, which plans are keyed with as well
            continue
        if (bundle / file).is_file() and (bundle / file).stat().st_size == record.bytes:
            keep(interrupted, bundle / file, record)
    return {path.stem: path for path in sorted(interrupted.glob("*.plan")) if path.with_suffix(".json").is_file()}


def keep(folder: Path, plan: Path, record: PlanRecord) -> None:
    """Put a copy of a plan where a resumed build finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{record.key}.plan"
    if not kept.with_suffix(".json").exists():
        shutil.copyfile(plan, kept)
        # the record last and whole: a plan without one does not count
        write_whole(kept.with_suffix(".json"), json.dumps(asdict(record)).encode())
