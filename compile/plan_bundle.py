"""The plans of a whole bundle: one a graph, kept from one attempt to the next until the bundle is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..profiles.manifest import Graph
from ..profiles.schedule import Schedule
from .build_report import earlier_plans, keep, report, save_report
from .graph_files import plan_file, rung_files
from .plan_record import Limits, PlanRecord
from .plans import PlanBuilder
from .weight_store import Exported

Progress = Callable[[str], None]


def kept_folder(out: Path) -> Path:
    """Where the plans of an interrupted build of `out` stay."""
    return out.with_name(f".{out.name}.plans")


def compile_plans(
    builder: PlanBuilder, exported: dict[str, Exported], schedule: Schedule, out: Path, work: Path, progress: Progress
) -> dict[str, PlanRecord]:
    """Build the plan of every graph into `work`, and the report.

    Args:
        builder: Of the target.
        exported: Graphs by file.
        schedule: Where its first scale has unconditional rows, the text conditioning sees two rows an image.
        out: The bundle's final place; its older plans are kept where the options say so.
        work: The bundle in the making.
        progress: Called with each plan's name before it is built.

    Returns:
        What was built, by plan file.
    """
    options, folder = builder.options, kept_folder(out)
    if not options.resume:
        shutil.rmtree(folder, ignore_errors=True)
    kept = earlier_plans(out, folder) if options.resume else {}
    records = {}
    for name, graph in exported.items():
        file = plan_file(name)
        progress(file)
        rows = 2 if schedule.guided and name == "condition.onnx" else 1
        limits = Limits(images=options.max_batch, text=options.max_text, rows=rows)
        records[file] = builder.build(work / file, graph, limits, kept)
        keep(folder, work / file, records[file])
    rungs = {name: [plan_file(file) for file in files] for name, files in rung_files(schedule).items()}
    save_report(work, report(records, engine_entry(builder, records, 0), options.precision, rungs))
    return records


def engine_entry(builder: PlanBuilder, records: dict[str, PlanRecord], weight_bytes: int) -> dict[str, Any]:
    """`EngineManifest.engine`."""
    options = builder.options
    return {
        "flavour": builder.kit.flavour.name,
        "version": builder.kit.version,
        "sm": list(builder.sm),
        "kernel_hash": builder.kernel_hash,
        "opt_level": options.opt_level,
        "workspace_gib": options.workspace_gib,
        "max_batch": options.max_batch,
        "max_text": options.max_text,
        "weight_bytes": weight_bytes,
        "plans": {file: record.manifest_entry() for file, record in records.items()},
    }


def with_plan(graph: Graph, records: dict[str, PlanRecord]) -> Graph:
    """The manifest's entry of a graph, with its plan where there is one."""
    file = plan_file(graph.file)
    if file not in records:
        return graph
    return Graph(file=graph.file, inputs=graph.inputs, outputs=graph.outputs, plan=file, weights=records[file].weights)
